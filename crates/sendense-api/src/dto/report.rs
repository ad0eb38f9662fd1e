//! What is out of order in a repository.

use sendense_types::{RepositoryId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How a repository is looked through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ReconcileQuery {
    /// Only look: nothing is repaired.
    #[param(required = false)]
    pub dry_run: bool,
    /// Give moves up whose other repository is lost for good. What lies here is this repository's then. Refused while the other one may be
    /// in the catalog and cannot be reached.
    #[param(required = false)]
    pub forget_moves: bool,
}

/// What was out of order in a repository when it was looked through, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepositoryReport {
    /// The repository.
    #[schema(value_type = String)]
    pub repository_id: RepositoryId,
    /// When it was looked through.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who wanted that: a person, `start` or `daily`.
    pub made_by: String,
    /// True when nothing was to be repaired.
    pub dry_run: bool,
    /// How many points lie there.
    pub backup_count: u64,
    /// What is or was out of order, at most 1000 of it.
    pub findings: Vec<ReportFinding>,
    /// How many there were.
    pub findings_total: u64,
}

/// Something that is out of order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReportFinding {
    /// What sort it is. More may come; none is ever renamed.
    pub kind: FindingKind,
    /// The id or path that it is about.
    pub subject: String,
    /// What is the matter, for people.
    pub message: String,
    /// Whether it can be repaired without a person.
    pub repairable: bool,
    /// Whether it was.
    pub repaired: bool,
}

/// Sorts of what is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An unfinished point that no task works on. Repaired: it is removed.
    DraftWithoutTask,
    /// The catalog knows a point that is not there. Repaired: its row is removed.
    RowWithoutFiles,
    /// A point lies there that the catalog does not know. Repaired: it is taken in.
    FilesWithoutRow,
    /// The catalog says that a point builds on another one, and it is a full. Repaired: its row is written anew.
    RowOutOfDate,
    /// A task was ended because whoever had it did not renew its lease.
    LeaseOut,
    /// A point is open for browsing although what read it has ended. Repaired: it is closed.
    MountForgotten,
    /// A deletion that was begun and not ended. Repaired: it is ended.
    DeletionUnfinished,
    /// A merge that was begun and not ended. Repaired: it is ended or undone.
    MergeUnfinished,
    /// A move to or from another repository that was begun and not settled. Repaired: it is ended or undone.
    MoveUnfinished,
    /// A manifest cannot be read. A person must look.
    Unreadable,
    /// A file or folder that no point names. A person must look.
    Stranger,
    /// A machine's folder could not be looked through: nothing of it is changed.
    Unlisted,
}

impl FindingKind {
    /// In words.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::DraftWithoutTask => "draft without a task",
            Self::RowWithoutFiles => "row without files",
            Self::FilesWithoutRow => "files without a row",
            Self::RowOutOfDate => "row out of date",
            Self::LeaseOut => "lease run out",
            Self::MountForgotten => "mount forgotten",
            Self::DeletionUnfinished => "unfinished deletion",
            Self::MergeUnfinished => "unfinished merge",
            Self::MoveUnfinished => "unfinished move",
            Self::Unreadable => "unreadable manifest",
            Self::Stranger => "stranger",
            Self::Unlisted => "folder not listed",
        }
    }
}
