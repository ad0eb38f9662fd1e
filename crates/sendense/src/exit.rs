//! How the program ends when something went wrong: the exit code, the words for people, and the JSON for programs.
//!
//! Exit codes are part of the interface: scripts rely on them. So is the shape of the JSON: it is the problem body that
//! the hub sends; what never reached a hub gets the same shape with a code of its own.

use sendense_api::{ClientError, ProblemBody};
use sendense_types::{Clock, ProblemCode, SystemClock, WhoActs};

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
#[error("{what}: {message}")]
pub struct WorkFailed {
    /// What it was: `backup bk-…`.
    pub what: String,
    /// Why, as the hub says.
    pub message: String,
    /// Particulars, as the hub says. May be empty.
    pub details: String,
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

/// The error for people: what, the particulars, the code, and whether another try helps.
pub fn told(error: &anyhow::Error) -> Vec<String> {
    let body = body(error);
    let mut lines = vec![body.error.clone()];
    lines.extend(Some(body.details.clone()).filter(|details| !details.is_empty()));
    let wait = match error.downcast_ref::<ClientError>() {
        Some(ClientError::Problem { retry_after_seconds, .. }) => *retry_after_seconds,
        Some(_) => None,
        None if error.is::<WorkFailed>() => None,
        // Nothing of the hub's: a file that cannot be read, a folder that is no repository. The words above are all.
        None => return lines,
    };
    let advice = match (body.known_code().map(ProblemCode::who_acts), wait) {
        _ if matches!(error.downcast_ref(), Some(ClientError::Unreachable(_))) => {
            "try again; whether a call that changes something was carried out is not known"
        }
        (Some(WhoActs::Time), Some(seconds)) => &format!("try again in {seconds} s"),
        (Some(who), _) => advice(who),
        (None, _) => "another try may not help",
    };
    lines.push(format!("code {}: {advice}", body.code));
    lines
}

/// Who must do something, and whether another try helps.
pub const fn advice(who: WhoActs) -> &'static str {
    match who {
        WhoActs::Time => "try again later",
        WhoActs::Caller => "another try does not help before something is changed",
        WhoActs::Operator => "whoever runs the hub, the repository or the source must look; another try may not help",
    }
}

/// The error for programs.
pub fn body(error: &anyhow::Error) -> ProblemBody {
    let own = |code: &str, message: String, details: String| ProblemBody {
        success: false,
        error: message,
        code: code.to_owned(),
        details,
        timestamp: SystemClock.now(),
    };
    if let Some(failed) = error.downcast_ref::<WorkFailed>() {
        return own(&failed.code, failed.to_string(), failed.details.clone());
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Problem { problem, .. }) => (**problem).clone(),
        Some(ClientError::Unreachable(_)) => own("hub_unreachable", format!("{error:#}"), String::new()),
        Some(ClientError::Protocol(_)) => own("hub_not_understood", format!("{error:#}"), String::new()),
        Some(ClientError::Options(_)) | None => own("client_failed", format!("{error:#}"), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use sendense_types::{Problem, Timestamp};

    fn refusal(code: ProblemCode, retry_after_seconds: Option<u64>) -> anyhow::Error {
        let problem = Problem::new(code, "no", "because");
        let problem = Box::new(ProblemBody::new(problem, Timestamp::from_micros(0)));
        ClientError::Problem { status: code.http_status(), retry_after_seconds, problem }.into()
    }

    fn check(error: &anyhow::Error, expected: Expect) {
        expected.assert_eq(&format!("{} | {}", code(error), told(error).join(" | ")));
    }

    #[test]
    fn people_are_told_whether_another_try_helps() {
        check(
            &refusal(ProblemCode::VmNotFound, None),
            expect!["3 | no | because | code vm_not_found: another try does not help before something is changed"],
        );
        check(&refusal(ProblemCode::Busy, Some(7)), expect!["5 | no | because | code busy: try again in 7 s"]);
        check(
            &refusal(ProblemCode::BackupRunning, None),
            expect!["4 | no | because | code backup_running: try again later"],
        );
        check(
            &refusal(ProblemCode::NoSpace, None),
            expect![
                "1 | no | because | code no_space: whoever runs the hub, the repository or the source must look; another try may not help"
            ],
        );
        check(
            &ClientError::Unreachable("connection refused".to_owned()).into(),
            expect![
                "5 | the hub cannot be reached: connection refused | code hub_unreachable: try again; whether a call that changes something was carried out is not known"
            ],
        );
        let failed = WorkFailed {
            what: "backup bk-1".into(),
            message: "stopped".into(),
            details: String::new(),
            code: "cancelled".into(),
        };
        check(
            &failed.into(),
            expect!["6 | backup bk-1: stopped | code cancelled: another try does not help before something is changed"],
        );
        check(&anyhow::anyhow!("no such file").context("read x"), expect!["1 | read x: no such file"]);
    }

    #[test]
    fn programs_get_the_problem_as_the_hub_said_it() {
        let body = body(&refusal(ProblemCode::Forbidden, None));
        assert_eq!((body.code.as_str(), body.details.as_str(), body.success), ("forbidden", "because", false));
    }
}
