//! Exit codes. They are part of the interface: scripts rely on them.

use sendense_api::ClientError;

/// Something failed that no other code describes.
pub const FAILED: u8 = 1;
/// The command line is wrong (clap exits with it).
pub const USAGE: u8 = 2;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 3;
/// Something is in the way: a running backup, dependents, an existing file.
pub const CONFLICT: u8 = 4;
/// The hub cannot be reached, or is too busy now. Try again.
pub const UNAVAILABLE: u8 = 5;
/// The work was accepted and then failed: the backup, restore or verification that was waited for.
pub const WORK_FAILED: u8 = 6;
/// No token, a wrong one, or one that may not do this.
pub const DENIED: u8 = 7;
/// Waiting was stopped with Ctrl-C; the work goes on.
pub const INTERRUPTED: u8 = 130;

/// Work that was waited for and did not complete.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {message} [{code}]")]
pub struct WorkFailed {
    /// What it was: `backup bk-…`.
    pub what: String,
    /// Why, as the hub says.
    pub message: String,
    /// The problem code.
    pub code: String,
}

/// The code for an error that reached `main`.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.is::<WorkFailed>() {
        return WORK_FAILED;
    }
    let Some(error) = error.downcast_ref::<ClientError>() else { return FAILED };
    match error.status() {
        Some(400 | 405 | 413) => USAGE,
        Some(401 | 403) => DENIED,
        Some(404) => NOT_FOUND,
        Some(409) => CONFLICT,
        Some(503) => UNAVAILABLE,
        _ if matches!(error, ClientError::Unreachable(_)) => UNAVAILABLE,
        _ => FAILED,
    }
}
