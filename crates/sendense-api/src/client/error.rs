//! Why a call did not give what was asked for.

use crate::ProblemBody;
use sendense_types::ProblemCode;

/// Why a call did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The hub said no. The caller acts as the problem's code says.
    #[error("{}", problem_text(.problem))]
    Problem {
        /// The HTTP status.
        status: u16,
        /// When to come again, if the hub said so.
        retry_after_seconds: Option<u64>,
        /// What it said.
        problem: Box<ProblemBody>,
    },
    /// The hub could not be reached, or the connection broke. Another try may help; whether a call that changes
    /// something was carried out is not known.
    #[error("the hub cannot be reached: {0}")]
    Unreachable(String),
    /// What answered does not speak as a hub of this version does. Another try does not help.
    #[error("{0}")]
    Protocol(String),
    /// The options cannot be used; nothing was sent.
    #[error("{0}")]
    Options(String),
}

impl ClientError {
    /// The problem's code, when the hub said no with a code that this version knows.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Problem { problem, .. } => problem.known_code(),
            _ => None,
        }
    }

    /// The HTTP status, when the hub said no.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// True when the same question may get an answer later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Problem { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::Unreachable(_) => true,
            Self::Protocol(_) | Self::Options(_) => false,
        }
    }
}

fn problem_text(problem: &ProblemBody) -> String {
    if problem.details.is_empty() { problem.error.clone() } else { format!("{}: {}", problem.error, problem.details) }
}
