//! A control group around a reader and whatever it starts: memory and processes bounded by the kernel, for all of them
//! together, beside the limits that each sets itself.
//!
//! It takes control groups that this process may divide: of version 1 where their folders can be written to, of version 2 where
//! the hub's own group is the hub's alone (systemd's `Delegate=`). Elsewhere there is none, and the session's level does not
//! name one.
//!
//! Invariant: a group's name tells who made it, and it goes with its processes; what a killed hub leaves is empty, and the
//! next one removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// What every group of ours is called, before the hub's process id and a number.
const NAME: &str = "sendense-reader-";
/// Where a hub of version 2 goes itself: a group whose members are bounded may have no processes of its own.
const OWN: &str = "sendense-hub";
/// How often a group is tried to be removed while its last processes end, and how long is waited between: two seconds, a
/// hundred times what a killed guest takes.
const TRIES: u32 = 400;
const PAUSE: Duration = Duration::from_millis(5);

/// What all processes of a session may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Memory, with what they have cached of files.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u32,
}

/// A group; removed when it is dropped.
#[derive(Debug)]
pub struct Group {
    folders: Vec<PathBuf>,
}

/// A place where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    folder: PathBuf,
    /// What is bounded there.
    memory: bool,
    processes: bool,
    unified: bool,
}

impl Group {
    /// Puts a process into a group of its own; none where this machine has none to give.
    pub fn around(process_id: u32, bounds: Bounds) -> Option<Group> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let places = places();
        let name = format!("{NAME}{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Both are bounded, or it is not called a group.
        let bounded = places.iter().any(|place| place.memory) && places.iter().any(|place| place.processes);
        if !bounded {
            return None;
        }
        let mut group = Group { folders: Vec::new() };
        let made = places.iter().try_for_each(|place| group.make(place, &name, bounds)).and_then(|()| {
            group.folders.iter().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), process_id.to_string()))
        });
        if made.is_err() {
            // Out of what was made, or that could not be removed while the process lives.
            for place in places {
                let _ = fs::write(place.folder.join("cgroup.procs"), process_id.to_string());
            }
            return None;
        }
        Some(group)
    }

    fn make(&mut self, place: &Hierarchy, name: &str, bounds: Bounds) -> io::Result<()> {
        let folder = place.folder.join(name);
        fs::create_dir(&folder)?;
        self.folders.push(folder.clone());
        if place.memory {
            let bytes = bounds.memory_bytes.to_string();
            let file = if place.unified { "memory.max" } else { "memory.limit_in_bytes" };
            fs::write(folder.join(file), &bytes)?;
            // What is swapped out counts, where the kernel counts it.
            let (file, bytes) =
                if place.unified { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", &*bytes) };
            let _ = fs::write(folder.join(file), bytes);
        }
        if place.processes {
            fs::write(folder.join("pids.max"), bounds.processes.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Version 2 ends whatever is left in it; elsewhere they end with the process that was killed.
            let _ = fs::write(folder.join("cgroup.kill"), "1");
            for _ in 0..TRIES {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => thread::sleep(PAUSE),
                    _ => break,
                }
            }
        }
    }
}

/// Finds the places for groups, which for version 2 takes a process that has started no other yet, and removes what hubs that
/// were killed left in them. Done once; the first reader does it where nobody did before.
pub fn prepare_groups() {
    places();
}

fn places() -> &'static [Hierarchy] {
    static PLACES: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    PLACES.get_or_init(find)
}

fn find() -> Vec<Hierarchy> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let found = hierarchies(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    let places: Vec<Hierarchy> = found.into_iter().filter_map(usable).collect();
    places.iter().for_each(|place| sweep(&place.folder));
    places
}

/// The groups that this process is in, where they are mounted, and what they could bound.
fn hierarchies(groups: &str, mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let unified = controllers.is_empty();
        let has = |name: &str| controllers.split(',').any(|controller| controller == name);
        let (memory, processes) = (unified || has("memory"), unified || has("pids"));
        if !memory && !processes {
            continue;
        }
        let mounted = mounts.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let (kind, options) = (kind.next()?, kind.nth(1)?);
            let fits = match unified {
                true => kind == "cgroup2",
                false => {
                    kind == "cgroup" && controllers.split(',').all(|name| options.split(',').any(|one| one == name))
                }
            };
            let mut mount = mount.split(' ').skip(3);
            let (root, point) = (mount.next()?, mount.next()?);
            let below = Path::new(path).strip_prefix(root).ok()?;
            fits.then(|| Path::new(point).join(below))
        });
        found.extend(mounted.map(|folder| Hierarchy { folder, memory, processes, unified }));
    }
    found
}

/// What can be used of a hierarchy; none when nothing can.
fn usable(place: Hierarchy) -> Option<Hierarchy> {
    if !place.unified {
        return may_divide(&place.folder).then_some(place);
    }
    let lists = |file: &str| fs::read_to_string(place.folder.join(file)).unwrap_or_default();
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|one| one == name);
    let there = lists("cgroup.controllers");
    let (memory, processes) = (has(&there, "memory"), has(&there, "pids"));
    if !memory && !processes {
        return None;
    }
    let given = lists("cgroup.subtree_control");
    let wanted: Vec<&str> = [("memory", memory), ("pids", processes)]
        .into_iter()
        .filter(|(name, there)| *there && !has(&given, name))
        .map(|(name, _)| name)
        .collect();
    if !wanted.is_empty() && !divide(&place.folder, &wanted) {
        return None;
    }
    may_divide(&place.folder).then_some(Hierarchy { memory, processes, ..place })
}

/// Whether groups can be made in a folder.
fn may_divide(folder: &Path) -> bool {
    let probe = folder.join(format!("{NAME}{}-probe", process::id()));
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
}

/// Lets the groups in our own one be bounded, for which this process must leave it: only where it is alone there.
fn divide(folder: &Path, controllers: &[&str]) -> bool {
    let me = process::id().to_string();
    let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    if members.split_ascii_whitespace().any(|member| member != me) {
        return false;
    }
    let own = folder.join(OWN);
    let wanted: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    if fs::create_dir(&own).is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        return false;
    }
    let divided = fs::write(own.join("cgroup.procs"), &me)
        .and_then(|()| fs::write(folder.join("cgroup.subtree_control"), wanted.join(" ")));
    if divided.is_err() {
        // Back to where it was; a group that nobody is in does no harm where it cannot be removed.
        let _ = fs::write(folder.join("cgroup.procs"), &me);
        let _ = fs::remove_dir(&own);
    }
    divided.is_ok()
}

/// Removes the groups of hubs that have ended. One with processes cannot be removed.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|name| name.strip_prefix(NAME)?.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn place(folder: &str, memory: bool, processes: bool, unified: bool) -> Hierarchy {
        Hierarchy { folder: folder.into(), memory, processes, unified }
    }

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let service = "0::/system.slice/sendense-hub.service\n";
        let mounts = "25 30 0:23 / /sys rw - sysfs sysfs rw\n\
                      35 25 0:30 / /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let folder = "/sys/fs/cgroup/system.slice/sendense-hub.service";
        assert_eq!(hierarchies(service, mounts), [place(folder, true, true, true)]);

        let old = "9:name=systemd:/\n8:pids:/\n5:devices:/\n4:memory:/a/b\n3:cpu,cpuacct:/\n0::/x\n";
        let mounts = "40 39 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 39 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let found = hierarchies(old, mounts);
        let memory = place("/sys/fs/cgroup/memory/a/b", true, false, false);
        assert_eq!(found, [place("/sys/fs/cgroup/pids", false, true, false), memory]);

        // A container sees only a part of the tree, and a group elsewhere cannot be named.
        let part = "40 39 0:35 /a /cgroup rw - cgroup cgroup rw,memory\n";
        assert_eq!(hierarchies("4:memory:/a/b\n", part), [place("/cgroup/b", true, false, false)]);
        assert_eq!(hierarchies("4:memory:/c\n", part), []);
        for (groups, mounts) in
            [("", ""), ("4", "-"), ("0::", " - "), ("4:memory", "a b - cgroup"), ("::\n:", " - cgroup2")]
        {
            assert_eq!(hierarchies(groups, mounts), []);
        }
    }

    #[test]
    fn what_ended_hubs_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this id: it is above the largest that Linux gives.
        let (gone, ours) = (format!("{NAME}4194305-3"), format!("{NAME}{}-3", process::id()));
        for name in [&gone, &ours, &format!("{NAME}x-1"), &"other".to_owned()] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path());
        let left = |name: &str| dir.path().join(name).exists();
        assert!(!left(&gone) && left(&ours) && left("other") && left(&format!("{NAME}x-1")));
    }
}
