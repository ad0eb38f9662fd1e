//! Failures of a call on their way to the wire.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use sendense_types::{Problem, ProblemCode};

/// The result of a handler.
pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

/// A problem as an answer. The body is written by [`super::finish`], which knows the time and sees every answer.
#[derive(Debug)]
pub(super) struct Failure(pub Problem);

impl Failure {
    pub fn new(code: ProblemCode, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self(Problem::new(code, message, details))
    }

    /// A field, parameter or body that is missing or wrong.
    pub fn invalid(message: impl Into<String>, details: impl Into<String>) -> Self {
        Self::new(ProblemCode::InvalidInput, message, details)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status_of(self.0.code).into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// The status that carries a code.
pub(super) fn status_of(code: ProblemCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The problem that an error status without one means: an answer that the framework made.
pub(super) fn of_status(status: StatusCode) -> Problem {
    let code = match status.as_u16() {
        401 => ProblemCode::Unauthorized,
        403 => ProblemCode::Forbidden,
        404 => ProblemCode::RouteNotFound,
        405 => ProblemCode::MethodNotAllowed,
        413 => ProblemCode::TooLarge,
        408 | 429 | 503 => ProblemCode::Busy,
        400..500 => ProblemCode::InvalidInput,
        _ => ProblemCode::Internal,
    };
    let message = match code {
        ProblemCode::RouteNotFound => "no such route",
        ProblemCode::MethodNotAllowed => "the route does not have this method",
        ProblemCode::TooLarge => "the request body is too large",
        ProblemCode::Busy => "the hub is busy",
        ProblemCode::InvalidInput => "the request is not valid",
        ProblemCode::Unauthorized => "a token is needed",
        ProblemCode::Forbidden => "the token does not allow this",
        _ => "an internal fault; the hub's log tells more",
    };
    Problem::new(code, message, "")
}
