//! Browsing restore points. Guest paths are bytes, so they are given percent-encoded and stand in the URL as they are.

use super::{Client, ClientError, read, refusal, retry_after, unreachable};
use crate::dto::encode_path;
use crate::reply::{
    CleanupStatusReply, DoneReply, FileHistoryReply, FileListReply, FileReply, MountListReply, MountReply,
    MountResourcesReply, SearchReply, VolumeListReply,
};
use crate::{
    ArchiveFormat, CleanupStatus, CreateMount, FileHistory, GuestFile, GuestFileInfo, HistoryQuery, ListQuery, Mount,
    MountResources, Page, UnlockVolume, Volume,
};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use reqwest::{Method, RequestBuilder, Response};
use sendense_types::MountId;
use std::time::Duration;

type Result<T> = std::result::Result<T, ClientError>;

/// How long a download may be silent; a hub that reads from a slow share, or packs a long run of zeros, may be slow.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// A file or an archive as it comes.
#[derive(Debug)]
pub struct Download {
    response: Response,
    /// The file's ETag: the same bytes have the same.
    pub etag: Option<String>,
    /// The first byte that comes; not zero only when the hub went on from where it was asked to.
    pub start: u64,
    /// How many bytes come, where that is known.
    pub bytes: Option<u64>,
}

impl Download {
    /// The next piece; none at the end.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the connection breaks before all has come.
    pub async fn next_piece(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>> {
        match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
            Ok(piece) => piece.map_err(unreachable),
            Err(_) => Err(ClientError::Unreachable(format!("the hub was silent for {} s", SILENCE_MAX.as_secs()))),
        }
    }
}

/// Restore points that are open for browsing. Paths are percent-encoded ([`encode_path`]); `volume` may be left out where the
/// mount has a volume of its own.
impl Client {
    /// Opens a restore point.
    pub async fn create_mount(&self, request: &CreateMount) -> Result<Mount> {
        Ok(self.send::<_, MountReply>(Method::POST, &["restore", "mount"], request).await?.payload)
    }

    /// The restore points that are open.
    pub async fn list_mounts(&self, page: &ListQuery) -> Result<Page<Mount>> {
        Ok(self.get::<_, MountListReply>(&["restore", "mounts"], page).await?.into())
    }

    /// Closes one.
    pub async fn delete_mount(&self, mount: &MountId) -> Result<()> {
        self.delete::<_, DoneReply>(&["restore", mount.as_str()], &()).await.map(drop)
    }

    /// What is on its disk.
    pub async fn list_volumes(&self, mount: &MountId) -> Result<Vec<Volume>> {
        Ok(self.get::<_, VolumeListReply>(&["restore", mount.as_str(), "volumes"], &()).await?.volumes)
    }

    /// Opens an encrypted volume; what lies inside has joined the answer.
    pub async fn unlock_volume(&self, mount: &MountId, volume: &str, key: &UnlockVolume) -> Result<Vec<Volume>> {
        let path = ["restore", mount.as_str(), "volumes", volume, "unlock"];
        Ok(self.send::<_, VolumeListReply>(Method::POST, &path, key).await?.volumes)
    }

    /// A page of a folder.
    pub async fn list_files(
        &self,
        mount: &MountId,
        path: &str,
        volume: Option<&str>,
        limit: u32,
        offset: u64,
    ) -> Result<Page<GuestFile>> {
        let page = [("limit", limit.to_string()), ("offset", offset.to_string())];
        let call = self.guest_call(mount, "files", Some(path), volume, &page);
        Ok(self.finish::<FileListReply>(call).await?.into())
    }

    /// One entry; a link is described, not followed.
    pub async fn file_info(&self, mount: &MountId, path: &str, volume: Option<&str>) -> Result<GuestFileInfo> {
        let call = self.guest_call(mount, "file-info", Some(path), volume, &[]);
        Ok(self.finish::<FileReply>(call).await?.file)
    }

    /// Names below a folder; `name` is a pattern of bytes.
    pub async fn search_files(
        &self,
        mount: &MountId,
        path: &str,
        name: &[u8],
        volume: Option<&str>,
        limit: u32,
        offset: u64,
    ) -> Result<SearchReply> {
        let more = [("name", encode_path(name)), ("limit", limit.to_string()), ("offset", offset.to_string())];
        self.finish(self.guest_call(mount, "search", Some(path), volume, &more)).await
    }

    /// A file, from the byte `from` on if it is still the one of that `etag`, else from its start.
    pub async fn download_file(
        &self,
        mount: &MountId,
        path: &str,
        volume: Option<&str>,
        resume: Option<(u64, &str)>,
    ) -> Result<Download> {
        let mut call = self.guest_call(mount, "download", Some(path), volume, &[]);
        if let Some((from, etag)) = resume {
            call = call.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, etag);
        }
        self.stream(call).await
    }

    /// A folder with everything in it, as an archive.
    pub async fn download_directory(
        &self,
        mount: &MountId,
        path: &str,
        volume: Option<&str>,
        format: ArchiveFormat,
    ) -> Result<Download> {
        let format = [("format", format.as_str().to_owned())];
        self.stream(self.guest_call(mount, "download-directory", Some(path), volume, &format)).await
    }

    /// What became of a file over the points of its machine; the query's `path` is percent-encoded already.
    pub async fn file_history(&self, vm: &str, query: &HistoryQuery) -> Result<FileHistory> {
        let HistoryQuery { path, disk_id, volume, limit, offset } = query;
        let mut text = format!("path={path}&limit={}&offset={offset}", limit.get());
        if let Some(disk_id) = disk_id {
            text.push_str(&format!("&disk_id={disk_id}"));
        }
        if let Some(volume) = volume {
            text.push_str(&format!("&volume={}", encode_path(volume.as_bytes())));
        }
        let call = self.call_with(Method::GET, &["vms", vm, "files", "history"], Some(&text));
        Ok(self.finish::<FileHistoryReply>(call).await?.payload)
    }

    /// How many points are open and may be.
    pub async fn mount_resources(&self) -> Result<MountResources> {
        Ok(self.get::<_, MountResourcesReply>(&["restore", "resources"], &()).await?.payload)
    }

    /// What closes points that nobody uses.
    pub async fn cleanup_status(&self) -> Result<CleanupStatus> {
        Ok(self.get::<_, CleanupStatusReply>(&["restore", "cleanup-status"], &()).await?.payload)
    }

    /// A call about a path of a guest. The path is in the URL already as it must be there.
    fn guest_call(
        &self,
        mount: &MountId,
        what: &str,
        path: Option<&str>,
        volume: Option<&str>,
        more: &[(&str, String)],
    ) -> RequestBuilder {
        let mut query: Vec<String> = path.map(|path| format!("path={path}")).into_iter().collect();
        query.extend(volume.map(|volume| format!("volume={}", encode_path(volume.as_bytes()))));
        query.extend(more.iter().map(|(name, value)| format!("{name}={value}")));
        self.call_with(Method::GET, &["restore", mount.as_str(), what], Some(&query.join("&")))
    }

    async fn stream(&self, call: RequestBuilder) -> Result<Download> {
        let response = tokio::time::timeout(self.timeout, call.send())
            .await
            .map_err(|_| ClientError::Unreachable("the hub does not answer".to_owned()))?
            .map_err(unreachable)?;
        let status = response.status().as_u16();
        if !response.status().is_success() {
            let retry_after_seconds = retry_after(&response);
            return Err(refusal(status, retry_after_seconds, &read(response).await?));
        }
        let header = |name| response.headers().get(name)?.to_str().ok();
        let etag = header(ETAG).map(str::to_owned);
        let bytes = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let start = match status {
            206 => {
                let range = header(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes "));
                let start = range.and_then(|range| range.split('-').next()?.parse().ok());
                start.ok_or_else(|| ClientError::Protocol("a part without Content-Range".to_owned()))?
            }
            _ => 0,
        };
        Ok(Download { response, etag, start, bytes })
    }
}
