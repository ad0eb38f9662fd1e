//! Browsing restore points: `sendense mount`, `ls`, `stat`, `get`, `find`, `umount` and their kin.
//!
//! Names come from guests and are bytes: they are shown with everything that a terminal would act upon escaped, and are sent
//! percent-encoded.

use super::fetch;
use crate::args::{Command, FindArgs, GetArgs, LsArgs, MountArgs, Place, StatArgs, UnlockArgs};
use crate::context::Context;
use crate::output::{bytes, json, line, moment, or_dash, say, table as show};
use crate::secret::from_file;
use crate::tables::{Table, facts};
use anyhow::Result;
use sendense_api::reply::{FileListReply, FileReply, MountListReply, MountReply, VolumeListReply};
use sendense_api::{
    Backend, Client, CreateMount, FileKind, GuestFile, GuestFileInfo, LIMIT_MAX, ListQuery, Mount, Page, UnlockVolume,
    Volume, VolumeConsistency, decode_path, encode_path,
};
use sendense_types::{DiskNumber, MountId};
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// Runs the command.
pub async fn run(context: &Context, command: Command) -> Result<u8> {
    let client = &context.client;
    match command {
        Command::Mount(args) => {
            let mount = open(client, args).await?;
            if context.json {
                return json(&MountReply::from(mount)).map(|()| 0);
            }
            line(mount.mount_id.as_str());
            tell_volumes(&mount);
        }
        Command::Mounts => {
            let page = client.list_mounts(&ListQuery::default()).await?;
            if context.json {
                return json(&MountListReply::from(page)).map(|()| 0);
            }
            show(mounts(&page.items));
        }
        Command::Umount { mount } => {
            client.delete_mount(&mount).await?;
            say(format!("{mount} is closed"));
        }
        Command::Volumes { mount } => return volumes_out(context, client.list_volumes(&mount).await?),
        Command::Unlock(UnlockArgs { mount, volume, key_file }) => {
            let key = UnlockVolume { key: from_file(&key_file)? };
            return volumes_out(context, client.unlock_volume(&mount, &volume, &key).await?);
        }
        Command::Ls(LsArgs { place, path }) => {
            let browser = Browser::of(client, place);
            let page = browser.list(&path_of(&path)).await?;
            if context.json {
                return json(&FileListReply::from(page)).map(|()| 0);
            }
            show(files(&page.items, false));
        }
        Command::Stat(StatArgs { place, path }) => {
            let info = Browser::of(client, place).info(&path_of(&path)).await?;
            if context.json {
                return json(&FileReply::new(info)).map(|()| 0);
            }
            show(file(&info));
        }
        Command::Find(FindArgs { place, path, name }) => {
            let found = Browser::of(client, place).find(&path_of(&path), name.as_bytes()).await?;
            if context.json {
                let page = Page { total: found.len() as u64, items: found };
                return json(&FileListReply::from(page)).map(|()| 0);
            }
            show(files(&found, true));
        }
        Command::Get(GetArgs { place, path, to, archive, force }) => {
            let browser = Browser::of(client, place);
            fetch::fetch(&browser, &path_of(&path), to.as_deref(), archive, force).await?;
        }
        other => anyhow::bail!("{other:?} does not browse"),
    }
    Ok(0)
}

/// Opens a point.
pub async fn open(client: &Client, args: MountArgs) -> Result<Mount> {
    let MountArgs { point, disk, volume } = args;
    let asked = CreateMount { backup_id: point, disk_id: disk.map(DiskNumber), volume };
    Ok(client.create_mount(&asked).await?)
}

/// Says what can be read, and what cannot and why.
pub fn tell_volumes(mount: &Mount) {
    for volume in &mount.volumes {
        let label = volume.label.as_ref().map(|label| format!(" {label:?}")).unwrap_or_default();
        let state = match (&volume.reason, volume.consistency) {
            (Some(reason), _) => format!("cannot be read: {reason}"),
            (None, Some(VolumeConsistency::LogNotReplayed)) => {
                "its log could not be replayed: the last changes may be missing".to_owned()
            }
            (None, Some(VolumeConsistency::Replayed)) => "its log was replayed".to_owned(),
            (None, _) => "clean".to_owned(),
        };
        let state = match volume.backend {
            Some(Backend::Appliance) => format!("{state}; read by the appliance"),
            _ => state,
        };
        say(format!("{} {}{label} {}: {state}", volume.volume_id, volume.kind, bytes(volume.size_bytes)));
    }
}

fn volumes_out(context: &Context, volumes: Vec<Volume>) -> Result<u8> {
    if context.json {
        let total = volumes.len() as u64;
        return json(&VolumeListReply { success: true, volumes, total }).map(|()| 0);
    }
    let mut table = Table::new(&["VOLUME", "TYPE", "LABEL", "SIZE", "STATUS", "LOG", "READ BY", "WHY NOT"], &[3]);
    for volume in volumes {
        table.row([
            volume.volume_id,
            volume.kind,
            or_dash(volume.label),
            bytes(volume.size_bytes),
            format!("{:?}", volume.state).to_lowercase(),
            or_dash(volume.consistency.map(|state| format!("{state:?}").to_lowercase())),
            or_dash(volume.backend.map(|backend| format!("{backend:?}").to_lowercase())),
            or_dash(volume.reason),
        ]);
    }
    show(table);
    Ok(0)
}

/// An open point and a volume in it.
pub struct Browser<'a> {
    client: &'a Client,
    mount: MountId,
    volume: Option<String>,
}

impl<'a> Browser<'a> {
    fn of(client: &'a Client, place: Place) -> Self {
        Self::new(client, place.mount, place.volume)
    }

    pub fn new(client: &'a Client, mount: MountId, volume: Option<String>) -> Self {
        Self { client, mount, volume }
    }

    pub fn client(&self) -> &'a Client {
        self.client
    }

    pub fn mount(&self) -> &MountId {
        &self.mount
    }

    pub fn volume(&self) -> Option<&str> {
        self.volume.as_deref()
    }

    /// All of a folder.
    pub async fn list(&self, path: &str) -> Result<Page<GuestFile>> {
        let mut all: Vec<GuestFile> = Vec::new();
        loop {
            let offset = all.len() as u64;
            let page = self.client.list_files(&self.mount, path, self.volume(), LIMIT_MAX, offset).await?;
            let is_last = page.items.is_empty() || offset + page.items.len() as u64 >= page.total;
            all.extend(page.items);
            if is_last {
                return Ok(Page { total: all.len() as u64, items: all });
            }
        }
    }

    pub async fn info(&self, path: &str) -> Result<GuestFileInfo> {
        Ok(self.client.file_info(&self.mount, path, self.volume()).await?)
    }

    /// Names below a folder, as many as a page holds; says when there are more.
    pub async fn find(&self, path: &str, name: &[u8]) -> Result<Vec<GuestFile>> {
        let found = self.client.search_files(&self.mount, path, name, self.volume(), LIMIT_MAX, 0).await?;
        for folder in &found.unreadable {
            say(format!("cannot be read: {folder}"));
        }
        if found.total > found.files.len() as u64 {
            say(format!("the first {} of {}", found.files.len(), found.total));
        }
        if found.truncated {
            say("the search ended at its bounds and has not seen everything");
        }
        Ok(found.files)
    }
}

/// A path from the command line, as the API takes it.
pub fn path_of(path: &OsStr) -> String {
    encode_path(path.as_bytes())
}

/// A name or path for people: what is no text, or would act on a terminal, is written as `\x..`.
pub fn shown(encoded: &str) -> String {
    let mut text = String::new();
    for chunk in decode_path(encoded).utf8_chunks() {
        for letter in chunk.valid().chars() {
            // The backslash itself, so that what is shown is never two things.
            if letter.is_control() || letter == '\\' {
                letter.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape(&mut text, byte));
            } else {
                text.push(letter);
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut text, *byte));
    }
    text
}

fn escape(text: &mut String, byte: u8) {
    // A String takes all that is written to it.
    write!(text, "\\x{byte:02x}").unwrap_or_default();
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "dir",
        FileKind::Symlink => "link",
        FileKind::Other => "other",
    }
}

/// Entries of a folder.
pub fn files(files: &[GuestFile], with_path: bool) -> Table {
    let mut table = Table::new(&["TYPE", "MODE", "UID", "GID", "SIZE", "MODIFIED", "NAME"], &[4]);
    for file in files {
        let path = shown(&file.path_encoded);
        let name = if with_path { &path } else { path.rsplit('/').next().unwrap_or(&path) };
        let target = file.target.as_ref().map(|target| format!(" -> {}", target.escape_debug())).unwrap_or_default();
        table.row([
            kind(file.kind).to_owned(),
            file.mode.clone(),
            file.uid.to_string(),
            file.gid.to_string(),
            file.size.to_string(),
            or_dash(file.modified_time.map(moment)),
            format!("{name}{target}"),
        ]);
    }
    table
}

/// One entry.
pub fn file(info: &GuestFileInfo) -> Table {
    let file = &info.file;
    facts(vec![
        ("path", shown(&file.path_encoded)),
        ("type", kind(file.kind).to_owned()),
        ("size", format!("{} ({})", file.size, bytes(file.size))),
        ("mode", file.mode.clone()),
        ("owner", format!("{}:{}", file.uid, file.gid)),
        ("modified", or_dash(file.modified_time)),
        ("inode", info.inode.to_string()),
        ("names", info.links.to_string()),
        ("target", or_dash(file.target.as_ref().map(|target| target.escape_debug().to_string()))),
        ("leads to", or_dash(info.resolved_path_encoded.as_deref().map(shown))),
        ("volume", info.volume.clone()),
    ])
}

fn mounts(mounts: &[Mount]) -> Table {
    let mut table = Table::new(&["MOUNT", "MACHINE", "BACKUP", "DISK", "STATUS", "STREAMS", "CLOSES"], &[]);
    for mount in mounts {
        table.row([
            mount.mount_id.to_string(),
            mount.vm_name.clone(),
            mount.backup_id.to_string(),
            mount.disk_id.to_string(),
            format!("{:?}", mount.status).to_lowercase(),
            mount.active_streams.to_string(),
            moment(mount.expires_at),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_acting_on_a_terminal() {
        assert_eq!(shown(&encode_path("/\u{e4} b".as_bytes())), "/\u{e4} b");
        assert_eq!(shown(&encode_path(b"a\x1b[2J\n\\\xff")), "a\\x1b[2J\\x0a\\x5c\\xff");
    }
}
