//! Files of an open point: list, describe, fetch, search.

use super::Who;
use crate::app::App;
use crate::http::extract::{Id, Query, query_bytes};
use crate::http::problem::{Failure, Result};
use crate::http::range::{Wanted, wanted};
use crate::mounts::{fault, outlet::Pieces};
use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue,
    LAST_MODIFIED,
};
use http::{Method, StatusCode, Uri};
use sendense_api::reply::{FileListReply, FileReply, SearchReply};
use sendense_api::{ArchiveQuery, FileQuery, FilesQuery, ProblemBody, SearchQuery};
use sendense_guestfs::GuestPath;
use sendense_guestfs::session::WalkOptions;
use sendense_types::{MountId, ProblemCode};

/// The path of a query, as bytes; the root when none is given.
pub(super) fn guest_path(uri: &Uri) -> Result<GuestPath> {
    let bytes = query_bytes(uri, "path").unwrap_or_else(|| b"/".to_vec());
    GuestPath::parse(&bytes).map_err(|error| Failure(fault::of_guestfs(&error)))
}

/// List a folder.
///
/// By name. Links on the way to it are followed inside the volume; what is in it is described and not followed.
#[utoipa::path(
    get, path = "/restore/{mount_id}/files", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount."), FilesQuery),
    responses(
        (status = 200, description = "A page of the folder.", body = FileListReply),
        (status = 409, description = "The volume is locked or cannot be read.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn list_files(
    State(app): State<App>,
    Id(mount_id): Id<MountId>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<FilesQuery>,
) -> Result<Json<FileListReply>> {
    let limit = query.limit.get() as usize;
    let page = app.list_files(&mount_id, guest_path(&uri)?, query.volume.as_deref(), query.offset, limit).await?;
    Ok(Json(page.into()))
}

/// Show one entry.
///
/// A link is described, with where it leads to inside the volume.
#[utoipa::path(
    get, path = "/restore/{mount_id}/file-info", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount."), FileQuery),
    responses(
        (status = 200, description = "The entry.", body = FileReply),
        (status = 409, description = "The volume is locked or cannot be read.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn file_info(
    State(app): State<App>,
    Id(mount_id): Id<MountId>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<FileQuery>,
) -> Result<Json<FileReply>> {
    Ok(Json(FileReply::new(app.file_info(&mount_id, guest_path(&uri)?, query.volume.as_deref()).await?)))
}

/// Fetch a file.
///
/// One `Range` is honoured, of several none. The `ETag` is the same as long as the bytes are, whichever mount they are read
/// through, so that a download can be resumed later with `If-Range`. A link is followed inside the volume.
#[utoipa::path(
    get, path = "/restore/{mount_id}/download", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount."), FileQuery),
    responses(
        (status = 200, description = "The file.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The part that `Range` asks for.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "`If-None-Match` names the file's ETag."),
        (status = 409, description = "The volume is locked or cannot be read.", body = ProblemBody),
        (status = 416, description = "The range lies beyond the end; `Content-Range` tells the size.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn download_file(
    State(app): State<App>,
    Extension(caller): Who,
    Id(mount_id): Id<MountId>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    headers: HeaderMap,
    Query(query): Query<FileQuery>,
) -> Result<Response> {
    let file = app.file(&mount_id, guest_path(&uri)?, query.volume.as_deref()).await?;
    let size = file.size_bytes;
    let mut answer = HeaderMap::new();
    answer.insert(ETAG, header(file.etag.clone())?);
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(date) = file.modified.and_then(http_date) {
        answer.insert(LAST_MODIFIED, header(date)?);
    }
    let (status, part) = match wanted(&headers, &file.etag, size) {
        Wanted::Nothing => return Ok((StatusCode::NOT_MODIFIED, answer).into_response()),
        Wanted::Unsatisfiable => {
            let problem = Failure::new(
                ProblemCode::RangeNotSatisfiable,
                "the range lies beyond the end of the file",
                format!("the file has {size} bytes"),
            );
            answer.insert(CONTENT_RANGE, header(format!("bytes */{size}"))?);
            return Ok((answer, problem).into_response());
        }
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(part) => {
            let range = format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1));
            answer.insert(CONTENT_RANGE, header(range)?);
            (StatusCode::PARTIAL_CONTENT, part)
        }
    };
    answer.insert(CONTENT_LENGTH, header((part.end - part.start).to_string())?);
    attachment(&mut answer, &file.name)?;
    if method == Method::HEAD {
        return Ok((status, answer).into_response());
    }
    let pieces = app.read_file(&caller, file, part).await?;
    Ok((status, answer, body(pieces)).into_response())
}

/// Fetch a folder.
///
/// As an archive that is packed while it is sent. Links go in as links; devices, pipes and sockets are left out and named in
/// an entry at the end. An archive that cannot be finished breaks off and does not end as a whole one.
#[utoipa::path(
    get, path = "/restore/{mount_id}/download-directory", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount."), ArchiveQuery),
    responses(
        (status = 200, description = "The archive.", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 409, description = "The volume is locked or cannot be read.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn download_directory(
    State(app): State<App>,
    Extension(caller): Who,
    Id(mount_id): Id<MountId>,
    OriginalUri(uri): OriginalUri,
    method: Method,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response> {
    let (path, volume) = (guest_path(&uri)?, query.volume.as_deref());
    let (name, pieces) = app.read_folder(&caller, &mount_id, path, volume, query.format).await?;
    let mut answer = HeaderMap::new();
    attachment(&mut answer, &name)?;
    // Without a reader the packing ends by itself.
    let body = if method == Method::HEAD { Body::empty() } else { body(pieces) };
    Ok((answer, body).into_response())
}

/// Search for names.
///
/// Below a folder, through everything under it.
#[utoipa::path(
    get, path = "/restore/{mount_id}/search", tag = "restore",
    params(("mount_id" = String, Path, description = "The mount."), SearchQuery),
    responses(
        (status = 200, description = "A page of what fits.", body = SearchReply),
        (status = 409, description = "The volume is locked or cannot be read.", body = ProblemBody),
        (status = 502, description = "The process that read the disk has ended.", body = ProblemBody),
    ),
    extensions(("x-role" = json!("operator"))),
)]
pub(in crate::http) async fn search_files(
    State(app): State<App>,
    Id(mount_id): Id<MountId>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<SearchQuery>,
) -> Result<Json<SearchReply>> {
    let options =
        WalkOptions { name: query_bytes(&uri, "name"), ignore_case: query.ignore_case, ..WalkOptions::default() };
    let (path, limit) = (guest_path(&uri)?, query.limit.get() as usize);
    let found = app.search_files(&mount_id, path, query.volume.as_deref(), options, query.offset, limit).await?;
    Ok(Json(SearchReply {
        success: true,
        files: found.files,
        total: found.total,
        truncated: found.truncated,
        unreadable: found.unreadable,
    }))
}

fn body(pieces: Pieces) -> Body {
    Body::from_stream(futures::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) }))
}

/// To be saved under a name, and not to be shown, whatever is in it.
fn attachment(answer: &mut HeaderMap, name: &[u8]) -> Result<()> {
    answer.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.insert(CONTENT_DISPOSITION, header(disposition(name))?);
    Ok(())
}

/// `Content-Disposition` (RFC 6266): plain letters for old programs, and all of the name as RFC 5987 writes it.
fn disposition(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || " !#$&+-.^_`{}~()[],=@".contains(letter);
    let plain: String = text.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    let plain = if plain.is_empty() { "file" } else { &plain };
    // `/` cannot be in a name.
    let encoded = sendense_api::encode_path(text.as_bytes());
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

/// A time as HTTP writes it; none for what its calendar does not reach.
fn http_date(seconds: i64) -> Option<String> {
    let at = jiff::Timestamp::from_second(seconds).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    (1970..=9999).contains(&at.year()).then(|| at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

fn header(text: String) -> Result<HeaderValue> {
    HeaderValue::try_from(text)
        .map_err(|error| Failure(crate::fault::internal("an answer's header cannot be written", error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_in_both_forms() {
        for (name, want) in [
            (&b"a b.txt"[..], "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
            (
                b"\"\r\nSet-Cookie: x",
                "attachment; filename=\"___Set-Cookie_ x\"; filename*=UTF-8''%22%0D%0ASet-Cookie%3A%20x",
            ),
            ("\u{e4}".as_bytes(), "attachment; filename=\"_\"; filename*=UTF-8''%C3%A4"),
            (b"\xff", "attachment; filename=\"_\"; filename*=UTF-8''%EF%BF%BD"),
            (b"", "attachment; filename=\"file\"; filename*=UTF-8''"),
        ] {
            assert_eq!(disposition(name), want);
        }
        assert_eq!(http_date(784_111_777).as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!((http_date(-1), http_date(i64::MAX)), (None, None));
    }
}
