//! The body of every failed call, and the error that a failed task carries.

use crate::schema;
use sendense_types::{Problem, ProblemCode, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every reply that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemBody {
    /// Always false.
    #[schema(example = false)]
    pub success: bool,
    /// One sentence for people.
    #[schema(example = "VM not found")]
    pub error: String,
    /// The stable kind; a program decides by this and by nothing else.
    #[schema(value_type = schema::ProblemCode)]
    pub code: String,
    /// Particulars: names, what stands in the way, what to do. May be empty.
    #[schema(example = "no VM named 'x' is known; discover its source first")]
    pub details: String,
    /// When the hub said so.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
}

impl ProblemBody {
    /// The body that tells `problem`.
    pub fn new(problem: Problem, timestamp: Timestamp) -> Self {
        let Problem { code, message, details } = problem;
        Self { success: false, error: message, code: code.as_str().to_owned(), details, timestamp }
    }

    /// The code, when this version knows it. A newer hub may use a word that an older client has not heard of.
    pub fn known_code(&self) -> Option<ProblemCode> {
        self.code.parse().ok()
    }
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskError {
    /// The stable kind.
    #[schema(value_type = schema::ProblemCode)]
    pub code: ProblemCode,
    /// One sentence for people.
    pub message: String,
    /// Particulars. May be empty.
    pub details: String,
}

impl From<Problem> for TaskError {
    fn from(problem: Problem) -> Self {
        let Problem { code, message, details } = problem;
        Self { code, message, details }
    }
}

impl From<TaskError> for Problem {
    fn from(error: TaskError) -> Self {
        let TaskError { code, message, details } = error;
        Self { code, message, details }
    }
}
