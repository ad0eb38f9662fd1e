//! OpenAPI schemas of the words that `sendense-types` fixes. The nouns themselves know nothing of OpenAPI, so each word
//! has a stand-in here, named alike; its values are taken from the enum itself and cannot drift from it.

use std::borrow::Cow;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

macro_rules! words {
    ($($name:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let values = sendense_types::$name::ALL.iter().map(|word| word.as_str());
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values)).description(Some($doc)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )*};
}

words! {
    BackupType, "What a point, or one disk of it, holds: every block that is not zero, or what differs from its parent.";
    BackupStatus, "The life of a backup: pending, running, then completed, failed or cancelled.";
    Phase, "Where a running backup is.";
    VerifyState, "What verifications say of a point: its files are as they were written; some of its bytes are not; or it needs bytes that a point below it has lost.";
    VerifyDepth, "How much a verification looks at: the files, or every block too.";
    Consistency, "What the guest was told before the freeze.";
    Compression, "How hard blocks are compressed.";
    OnTrackingLoss, "What to do when change tracking cannot be trusted although an incremental was asked for.";
    PowerState, "Whether the machine runs.";
    TaskKind, "What a task does.";
    TaskState, "The life of a task: pending, running, then completed, failed or cancelled.";
    ExecutionState, "The life of an execution: running, then completed, failed or cancelled; or skipped from the start.";
    VmOutcome, "What became of a VM in an execution: waiting, running, then completed, failed or skipped.";
    SourceKind, "What a source is.";
    RepositoryKind, "Where a repository lies.";
    RepositoryMode, "What may be done in a repository now: everything; reading and verifying; nothing new, while what runs comes to its end; or nothing, and its folder is left alone.";
    SpaceState, "How much room a repository has left: enough; low, so that somebody should see to it within days; or critical.";
    ProblemCode, "A stable word for the kind of failure. More codes may come; none is ever renamed.";
}
