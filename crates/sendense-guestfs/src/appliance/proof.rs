//! Which appliance a hub starts: User Mode Linux, until a virtual machine with KVM has been proven on this machine.
//!
//! That `/dev/kvm` is there proves nothing: it may give machines whose processor never runs. So the proof is a machine: the very
//! appliance, on a disk of zeros, must greet within a deadline. It is made once in the life of a process, when the first
//! appliance is asked for, and beside that one, so that nobody waits for it.
//!
//! Invariant: a virtual machine is never the reason that a volume is not read: who has none gets the other kind.

use super::kit::{FILE_SYSTEMS, Kit, Seen};
use super::machine::{Accelerator, KVM};
use super::{Disk, Options};
use crate::error::{Error, Result};
use sendense_block::ByteLen;
use sendense_block::backend::Memory;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a virtual machine may take to greet. With a processor of its own it takes two seconds; one that is slower than
/// User Mode Linux on a busy machine is not worth having.
const DEADLINE: Duration = Duration::from_secs(20);

/// The kits of a process: put together when they are first needed, and anew when one of their parts was replaced, as an upgrade
/// does.
pub struct Kits {
    folder: PathBuf,
    kept: Mutex<Option<(Kit, Seen)>>,
    /// None where no virtual machine is wanted.
    proof: Option<Arc<Tested>>,
}

/// Who is told how a proof ended.
type Told = dyn Fn(&Result<()>) + Send + Sync;

/// A proof, and who is told how it ended.
struct Tested {
    known: Mutex<Proof>,
    told: Box<Told>,
}

/// What is known of virtual machines here.
#[derive(Debug)]
enum Proof {
    NotTried,
    Running,
    Proven(Kit, Seen),
    Refuted,
}

impl Kits {
    /// Kits of User Mode Linux whose first files lie in `folder`, under one name.
    pub fn new(folder: PathBuf) -> Kits {
        Kits { folder, kept: Mutex::default(), proof: None }
    }

    /// And of a virtual machine with KVM, once one has been proven; `told` is called when that is known, with the reason when
    /// there is none. For a program whose `main` begins with [`run_if_asked`](super::run_if_asked).
    pub fn or_virtual_machine(self, told: impl Fn(&Result<()>) + Send + Sync + 'static) -> Kits {
        let tested = Tested { known: Mutex::new(Proof::NotTried), told: Box::new(told) };
        Kits { proof: Some(Arc::new(tested)), ..self }
    }

    /// A kit that fits this machine as it is.
    ///
    /// # Errors
    /// As [`Kit::prepare`]; it is tried again the next time.
    pub fn get(&self) -> Result<Kit> {
        if let Some(kit) = self.proven() {
            return Ok(kit);
        }
        // What is in it is set whole.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kit, seen)) = &*kept
            && kit.look() == *seen
        {
            return Ok(kit.clone());
        }
        let kit = Kit::prepare(&self.folder)?;
        let seen = kit.look();
        *kept = Some((kit.clone(), seen));
        Ok(kit)
    }

    /// The kit of a virtual machine, if it is proven; the first call begins the proof.
    fn proven(&self) -> Option<Kit> {
        let proof = self.proof.as_ref()?;
        let mut known = proof.lock();
        match &*known {
            Proof::Proven(kit, seen) if kit.look() == *seen => return Some(kit.clone()),
            Proof::Running | Proof::Refuted => return None,
            // One whose kernel or emulator was replaced is proven anew.
            Proof::NotTried | Proof::Proven(..) => {}
        }
        *known = Proof::Running;
        drop(known);
        let (folder, told) = (self.folder.clone(), proof.clone());
        let run = move || {
            told.ended(found(&folder));
        };
        if let Err(error) = std::thread::Builder::new().name("appliance-proof".into()).spawn(run) {
            proof.ended(Err(Error::Io(format!("start a thread: {error}"))));
        }
        None
    }
}

impl Tested {
    fn lock(&self) -> MutexGuard<'_, Proof> {
        // What is in it is set whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, found: Result<Kit>) {
        let (known, told) = match found {
            Ok(kit) => {
                let seen = kit.look();
                (Proof::Proven(kit, seen), Ok(()))
            }
            Err(error) => (Proof::Refuted, Err(error)),
        };
        // Whoever is told may ask for a kit at once, and gets the one that was proven.
        *self.lock() = known;
        (self.told)(&told);
    }
}

/// A kit whose machine has been started.
fn found(folder: &Path) -> Result<Kit> {
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    opened.map_err(|error| Error::unsupported(format!("open {KVM}: {error}")))?;
    let kit = Kit::virtual_machine(folder, Accelerator::Kvm, Path::new("/"), &FILE_SYSTEMS)?;
    prove(Options { patience: super::Patience { start: DEADLINE, ..super::PATIENCE }, ..Options::new(kit.clone()) })?;
    Ok(kit)
}

/// Starts an appliance on a disk of zeros and waits until it greets, at most as long as its options say.
///
/// # Errors
/// Why it did not.
pub fn prove(options: Options) -> Result<()> {
    // The smallest disk that partitions are looked for on.
    const DISK_BYTES: u64 = 1 << 20;
    let disk = Disk::serve(Arc::new(Memory::zeroed(ByteLen(DISK_BYTES))))?;
    super::start(options, disk).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn a_kit_is_kept_until_a_part_of_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let kits = Kits::new(folder.path().to_owned());
        let kit = kits.get().unwrap_or_else(|error| panic!("{error}"));
        let made = fs::metadata(&kit.first_files).unwrap().modified().unwrap();
        assert_eq!(kits.get().unwrap(), kit);
        assert_eq!(fs::metadata(&kit.first_files).unwrap().modified().unwrap(), made);
        fs::remove_file(&kit.first_files).unwrap();
        assert!(kits.get().unwrap().first_files.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
