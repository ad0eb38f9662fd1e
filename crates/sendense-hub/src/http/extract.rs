//! How requests are read: paths, queries and bodies, with failures that name what is wrong.
//!
//! The framework's own extractors answer in plain text and with 415 or 422, so these stand in for them.

use super::problem::{Failure, Result};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body_util::BodyExt;
use sendense_types::ProblemCode;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use std::time::Duration;

/// The longest body that is taken. The longest that makes sense, a backup with a hundred tags, has some ten KiB.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;

/// How much of a body that is too large is read and thrown away: what somebody may send by mistake.
const DRAIN_BYTES_MAX: usize = 64 << 20;
/// How long that may take: 64 MiB over 100 Mbit/s.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);

/// Query parameters. Unknown ones never come here: the gate refuses them by the documented names.
#[derive(Debug)]
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
            .map(Self)
            .map_err(|error| wrong_value(&error.path().to_string(), &error.inner().to_string(), "parameter"))
    }
}

/// A JSON object as body.
#[derive(Debug)]
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self> {
        let is_json = is_json(&request);
        let body = read(request).await?;
        if body.is_empty() {
            // So that the first missing field is named, as for an empty object.
            return decode(b"{}").map(Self);
        }
        if !is_json {
            return Err(Failure::invalid("the body must be JSON", "send the header Content-Type: application/json"));
        }
        decode(&body).map(Self)
    }
}

/// No body, or an empty object: some clients cannot send nothing.
#[derive(Debug)]
pub(super) struct NoBody;

impl<S: Sync> FromRequest<S> for NoBody {
    type Rejection = Failure;

    async fn from_request(request: Request, _state: &S) -> Result<Self> {
        let body = read(request).await?;
        if body.is_empty() {
            return Ok(Self);
        }
        match serde_json::from_slice::<serde_json::Value>(&body) {
            Ok(serde_json::Value::Object(fields)) => match fields.keys().next() {
                None => Ok(Self),
                Some(field) => Err(Failure::invalid(format!("unknown field {field}"), "this call takes no body")),
            },
            Ok(_) => Err(Failure::invalid("the body must be a JSON object", "this call takes no body")),
            Err(error) => Err(Failure::invalid("the body is not valid JSON", error.to_string())),
        }
    }
}

/// An id in the path. What cannot be an id names nothing, so it is not found.
#[derive(Debug)]
pub(super) struct Id<T>(pub T);

/// Ids that may stand in a path, and what is said when there is no such thing.
pub(super) trait PathId: FromStr<Err = sendense_types::IdError> {
    /// The code.
    const MISSING: ProblemCode;
    /// The noun.
    const NOUN: &'static str;
}

impl PathId for sendense_types::BackupId {
    const MISSING: ProblemCode = ProblemCode::BackupNotFound;
    const NOUN: &'static str = "backup";
}

impl PathId for sendense_types::ExportId {
    const MISSING: ProblemCode = ProblemCode::ExportNotFound;
    const NOUN: &'static str = "export";
}

impl PathId for sendense_types::ExecutionId {
    const MISSING: ProblemCode = ProblemCode::ExecutionNotFound;
    const NOUN: &'static str = "execution";
}

impl PathId for sendense_types::TaskId {
    const MISSING: ProblemCode = ProblemCode::TaskNotFound;
    const NOUN: &'static str = "task";
}

impl PathId for sendense_types::MountId {
    const MISSING: ProblemCode = ProblemCode::MountNotFound;
    const NOUN: &'static str = "mount";
}

/// A body as it is, at most so long.
pub(super) async fn bytes(request: Request, bytes_max: usize) -> Result<Vec<u8>> {
    let body = http_body_util::Limited::new(request.into_body(), bytes_max);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Failure::invalid("the body cannot be read", error.to_string())),
    }
}

/// A parameter of the query as the bytes that it stands for: names in a guest need not be text.
pub(super) fn query_bytes(uri: &http::Uri, name: &str) -> Option<Vec<u8>> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let value = pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
    Some(sendense_api::decode_path(value))
}

impl<T: PathId, S: Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let NameOrId(text) = NameOrId::from_request_parts(parts, state).await?;
        text.parse().map(Self).map_err(|error: sendense_types::IdError| {
            Failure::new(T::MISSING, format!("{} not found", T::NOUN), error.to_string())
        })
    }
}

/// A name or an id in the path, percent-decoded.
#[derive(Debug)]
pub(super) struct NameOrId(pub String);

impl<S: Sync> FromRequestParts<S> for NameOrId {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        match Path::<String>::from_request_parts(parts, &()).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(rejection) => Err(Failure::invalid("the path cannot be read", rejection.body_text())),
        }
    }
}

fn is_json(request: &Request) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn read(request: Request) -> Result<Vec<u8>> {
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::invalid("the body could not be read", error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            drain(body).await;
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// Reads the rest of a body and throws it away, within bounds. Many clients write all of a request before they look at the
/// answer; if the connection were closed under them they would see that and never the answer.
pub(super) async fn drain(mut body: axum::body::Body) {
    let all = async {
        let mut drained = 0;
        while drained < DRAIN_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            drained += frame.data_ref().map_or(0, |data| data.len());
        }
    };
    // Who is slower than that, or sends more, is cut off.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
}

/// The answer to a body that is too large.
pub(super) fn too_large() -> Failure {
    let details = format!("at most {BODY_BYTES_MAX} bytes are taken");
    Failure::new(ProblemCode::TooLarge, "the request body is too large", details)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let value: serde_json::Value = serde_json::from_slice(body)
        .map_err(|error| Failure::invalid("the body is not valid JSON", error.to_string()))?;
    // Some clients say `null` where they mean nothing.
    if value.is_null() {
        return decode(b"{}");
    }
    // A list would otherwise be taken as the fields in their order.
    if !value.is_object() {
        return Err(Failure::invalid("the body must be a JSON object", ""));
    }
    // From the text, not from the value: a field that is given twice is an error only there.
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| wrong_value(&error.path().to_string(), &error.inner().to_string(), "field"))
}

/// What serde found wrong, in the API's words. `path` is where, `what` says whether that is a field or a parameter.
fn wrong_value(path: &str, found: &str, what: &str) -> Failure {
    // serde_json adds the place in the text, which helps nobody once the field is named.
    let found = found.rsplit_once(" at line ").map_or(found, |(found, _)| found);
    let quoted = |prefix: &str| {
        let rest = found.strip_prefix(prefix)?.strip_prefix('`')?;
        rest.split_once('`')
    };
    let within = |field: &str| match path {
        "." | "?" | "" => field.to_owned(),
        path if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
        path => format!("{path}.{field}"),
    };
    if let Some((field, _)) = quoted("missing field ") {
        return Failure::invalid(format!("{} is required", within(field)), "");
    }
    if let Some((field, rest)) = quoted("unknown field ") {
        let details = rest.trim_start_matches(", ").replace("expected one of", "known are").replace('`', "");
        return Failure::invalid(format!("unknown {what} {}", within(field)), details);
    }
    if let Some((field, _)) = quoted("duplicate field ") {
        return Failure::invalid(format!("{} is given twice", within(field)), "");
    }
    match path {
        "." | "?" | "" => Failure::invalid(found.replace('`', "'"), ""),
        path => Failure::invalid(format!("{path}: {}", found.replace('`', "'")), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use sendense_api::{BackupFilter, CreateBackup, CreateRepository, RestoreBackup};

    fn check<T: DeserializeOwned + std::fmt::Debug>(body: &str, expect: Expect) {
        let Failure(problem) = decode::<T>(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::InvalidInput);
        expect.assert_eq(&format!("{} | {}", problem.message, problem.details));
    }

    #[test]
    fn what_is_wrong_is_named() {
        check::<CreateBackup>("{}", expect!["vm_name is required | "]);
        check::<CreateBackup>(r#"{"vm_name": "x"}"#, expect!["repository_id is required | "]);
        check::<CreateBackup>(r#"{"vm_name": "x", "repository_id": "r"}"#, expect!["backup_type is required | "]);
        check::<CreateBackup>(r#"{"vm_name": 7}"#, expect!["vm_name: invalid type: integer '7', expected a string | "]);
        check::<CreateBackup>(r#"{"vm_name": "x", "vm_name": "y"}"#, expect!["vm_name is given twice | "]);
        check::<CreateBackup>(
            r#"{"vmname": "x"}"#,
            expect![
                "unknown field vmname | known are vm_name, vm_context_id, repository_id, backup_type, disk_id, policy_id, tags, quiesce, quiesce_or_fail, compression, on_tracking_loss, time_limit_seconds, bytes_per_second_max, exclude_disks"
            ],
        );
        check::<CreateBackup>(
            r#"{"vm_name": "x", "repository_id": "r", "backup_type": "differential"}"#,
            expect!["backup_type: unknown variant 'differential', expected 'full' or 'incremental' | "],
        );
        check::<CreateBackup>(
            r#"{"vm_context_id": "../x"}"#,
            expect![[
                r#"vm_context_id: VM context id "../x" is not valid: 1 to 64 characters of a-z A-Z 0-9 . _ - are allowed, the first a letter or digit | "#
            ]],
        );
        check::<CreateBackup>(r#"{"disk_id": -1}"#, expect!["disk_id: invalid value: integer '-1', expected u32 | "]);
        check::<CreateBackup>("null", expect!["vm_name is required | "]);
        check::<CreateBackup>("[1]", expect!["the body must be a JSON object | "]);
        check::<CreateBackup>(
            "{",
            expect!["the body is not valid JSON | EOF while parsing an object at line 1 column 1"],
        );
        check::<CreateRepository>(
            r#"{"name": "x", "type": "local", "config": {}}"#,
            expect!["config.path is required | "],
        );
        check::<CreateRepository>(
            r#"{"name": "x", "type": "tape", "config": {}}"#,
            expect!["type: unknown variant 'tape', expected one of 'local', 'nfs', 'cifs', 's3' | "],
        );
        check::<RestoreBackup>(r#"{"target": {"kind": "file"}}"#, expect!["target.path is required | "]);
        check::<RestoreBackup>(
            r#"{"target": {"kind": "file", "path": "/x", "mode": 1}}"#,
            expect!["unknown field target.mode | known are path, format, overwrite, onto, resize, force, subformat"],
        );
        check::<RestoreBackup>(
            r#"{"target": {"kind": "tape"}}"#,
            expect!["target.kind: unknown variant 'tape', expected one of 'file', 'nbd', 'vm' | "],
        );
        check::<RestoreBackup>(r#"{"target": {}}"#, expect!["target.kind is required | "]);
    }

    async fn query(query: &str) -> Result<BackupFilter> {
        let request = http::Request::builder().uri(format!("/?{query}")).body(()).unwrap();
        Query::from_request_parts(&mut request.into_parts().0, &()).await.map(|Query(filter)| filter)
    }

    #[tokio::test]
    async fn queries_are_read() {
        let filter = query("vm_name=a%20b%2Fc&limit=1000&offset=5&status=completed").await.unwrap();
        assert_eq!((filter.vm_name.as_deref(), filter.limit.get(), filter.offset), (Some("a b/c"), 1000, 5));
        assert_eq!(query("").await.unwrap(), BackupFilter::default());
        for (text, expect) in [
            ("limit=0", expect!["limit: 0 is out of range: 1 to 1000 is allowed | "]),
            ("limit=1001", expect!["limit: 1001 is out of range: 1 to 1000 is allowed | "]),
            ("limit=x", expect!["limit: invalid digit found in string | "]),
            ("offset=-1", expect!["offset: invalid digit found in string | "]),
            (
                "status=done",
                expect![
                    "status: unknown variant 'done', expected one of 'pending', 'running', 'completed', 'failed', 'cancelled' | "
                ],
            ),
            ("limit=1&limit=2", expect!["limit is given twice | "]),
        ] {
            let Failure(problem) = query(text).await.unwrap_err();
            expect.assert_eq(&format!("{} | {}", problem.message, problem.details));
        }
    }
}
