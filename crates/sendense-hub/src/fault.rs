//! From the errors of the rooms below to problems that a caller understands.
//!
//! What lives here: one translation per room. What does not: decisions. Invariant: what a caller is told says who must act;
//! the chain of causes is in the details once, and nowhere else.

use sendense_block::error::chain;
use sendense_types::{Problem, ProblemCode};

/// A result whose failure is a problem.
pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

/// Turns a room's error into a problem.
pub(crate) trait OrProblem<T> {
    /// The same result with a problem.
    fn or_problem(self) -> Result<T>;
}

impl<T> OrProblem<T> for std::result::Result<T, sendense_catalog::Error> {
    fn or_problem(self) -> Result<T> {
        self.map_err(|error| of_catalog(&error))
    }
}

impl<T> OrProblem<T> for std::result::Result<T, sendense_source::Error> {
    fn or_problem(self) -> Result<T> {
        self.map_err(|error| of_source(&error))
    }
}

/// A problem of the catalog. Faults of ours are logged here, because the caller is told only that they happened.
pub(crate) fn of_catalog(error: &sendense_catalog::Error) -> Problem {
    if error.kind() == sendense_catalog::Kind::Internal {
        tracing::error!(error = %chain(error), "catalog failed");
    }
    error.to_problem()
}

/// A problem of a source.
pub(crate) fn of_source(error: &sendense_source::Error) -> Problem {
    use sendense_source::Kind;
    let code = match error.kind {
        Kind::NotFound => ProblemCode::VmNotFound,
        Kind::Unavailable | Kind::Busy => ProblemCode::SourceUnavailable,
        Kind::Denied | Kind::MissingTool | Kind::Failed | Kind::Disturbed | Kind::ScratchFull | Kind::Unsupported => {
            ProblemCode::SourceFailed
        }
        Kind::Invalid => ProblemCode::InvalidInput,
        Kind::Unsafe => ProblemCode::PathNotAllowed,
        Kind::Cancelled => ProblemCode::Cancelled,
    };
    Problem::new(code, error.to_string(), causes(error))
}

/// A problem of deciding what a new machine will be: what is in its way, or does not fit, is told as the request's.
pub(crate) fn of_planning(error: &sendense_source::Error) -> Problem {
    use sendense_source::Kind;
    match error.kind {
        Kind::Busy => Problem::new(ProblemCode::Conflict, error.to_string(), ""),
        Kind::Unsupported => Problem { code: ProblemCode::InvalidInput, ..of_source(error) },
        _ => of_source(error),
    }
}

/// A problem of reading or writing blocks somewhere; `what` says where.
pub(crate) fn of_block(what: &str, error: &sendense_block::Error) -> Problem {
    use sendense_block::Kind;
    let code = match error.kind {
        Kind::NoSpace => ProblemCode::NoSpace,
        Kind::Corrupt => ProblemCode::Corrupt,
        Kind::Cancelled => ProblemCode::Cancelled,
        Kind::Exists => ProblemCode::Conflict,
        Kind::Invalid => ProblemCode::InvalidInput,
        Kind::Unavailable | Kind::Deadline => ProblemCode::Busy,
        Kind::Io | Kind::OutOfRange | Kind::Protocol | Kind::Unsupported | Kind::Denied | Kind::NotFound => {
            ProblemCode::Internal
        }
    };
    Problem::new(code, format!("{what}: {error}"), causes(error))
}

/// A fault of ours.
pub(crate) fn internal(message: impl Into<String>, details: impl Into<String>) -> Problem {
    let problem = Problem::new(ProblemCode::Internal, message, details);
    tracing::error!(error = %problem.message, details = %problem.details, "internal fault");
    problem
}

/// Wrong input.
pub(crate) fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::InvalidInput, message, "")
}

/// Whatever caused an error, in one line; empty when nothing did.
fn causes(error: &dyn std::error::Error) -> String {
    error.source().map(chain).unwrap_or_default()
}

impl<T> OrProblem<T> for std::result::Result<T, sendense_repo::Error> {
    fn or_problem(self) -> Result<T> {
        self.map_err(|error| of_repo(&error))
    }
}

/// A problem of a repository.
pub(crate) fn of_repo(error: &sendense_repo::Error) -> Problem {
    use sendense_repo::Kind;
    let code = match &error.kind {
        Kind::NotFound => ProblemCode::BackupNotFound,
        Kind::Exists | Kind::Conflict { .. } => ProblemCode::Conflict,
        Kind::HasDependents { .. } => ProblemCode::HasDependents,
        Kind::Held { .. } => ProblemCode::BackupHeld,
        Kind::Owned | Kind::Fenced => ProblemCode::RepositoryOwned,
        Kind::NoSpace => ProblemCode::NoSpace,
        Kind::Corrupt { .. } => ProblemCode::Corrupt,
        Kind::Unavailable | Kind::Denied | Kind::Io => ProblemCode::RepositoryUnavailable,
        Kind::Invalid => ProblemCode::InvalidInput,
        Kind::Unsupported => ProblemCode::Internal,
        Kind::Cancelled => ProblemCode::Cancelled,
    };
    let message = match &error.kind {
        Kind::NoSpace => "no space in the repository".to_owned(),
        Kind::Owned => "another deployment or hub owns the repository".to_owned(),
        Kind::Fenced => "another hub has taken the repository".to_owned(),
        _ => error.to_string(),
    };
    Problem::new(code, message, chain(error))
}

/// A problem of a backup's mover.
pub(crate) fn of_mover(error: &sendense_node::mover::Error) -> Problem {
    use sendense_node::mover::Error;
    match error {
        Error::Source { what, source } => {
            let problem = of_source(source);
            // The machine was there a moment ago: what is missing now is the source's failure.
            let code = match problem.code {
                ProblemCode::VmNotFound | ProblemCode::InvalidInput => ProblemCode::SourceFailed,
                code => code,
            };
            Problem::new(code, format!("{what}: {}", problem.message), problem.details)
        }
        Error::Copy { source, .. } => match repository_error(source) {
            Some(repository) => {
                let problem = of_repo(repository);
                Problem { details: chain(error), ..problem }
            }
            None => {
                let code = match source.kind {
                    sendense_block::Kind::Cancelled => ProblemCode::Cancelled,
                    // The writer of images reports a full file system itself.
                    sendense_block::Kind::NoSpace => ProblemCode::NoSpace,
                    sendense_block::Kind::Unavailable | sendense_block::Kind::Deadline => {
                        ProblemCode::SourceUnavailable
                    }
                    _ => ProblemCode::SourceFailed,
                };
                Problem::new(code, error.to_string(), chain(error))
            }
        },
        Error::TrackingLost { .. } => Problem::new(ProblemCode::TrackingLost, error.to_string(), ""),
        Error::Cancelled => Problem::new(ProblemCode::Cancelled, "cancelled", ""),
    }
}

/// A problem of a restore onto a machine.
pub(crate) fn of_restore(error: &sendense_node::restore::Error) -> Problem {
    use sendense_node::restore::Error;
    match error {
        Error::Planning(error) => of_planning(error),
        Error::Source(error) => of_source(error),
        Error::Copy { source, .. } => match repository_error(source) {
            Some(repository) => of_repo(repository),
            None => of_block("restore to the hypervisor", source),
        },
        Error::HandOver(error) => of_block("hand the machine over", error),
    }
}

/// The repository's own error in a chain of causes: blocks that could not be stored, rather than read.
fn repository_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e sendense_repo::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(repository) = error.downcast_ref() {
            return Some(repository);
        }
        next = error.source();
    }
    None
}
