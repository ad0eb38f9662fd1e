//! Files in memory that know what was synced: a crash keeps all, nothing, or any sectors of what was not.

use crate::error::{Error, Kind, Result};
use crate::extent::Extent;
use crate::overlay::folder::{Blob, Boot, Folder};
use crate::units::{ByteLen, ByteOffset};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub const SECTOR: usize = 512;

/// What is left of that which was not synced.
#[derive(Debug, Clone, Copy)]
pub enum Crash {
    /// Everything: a killed process.
    Keep,
    /// Nothing.
    Drop,
    /// Any sectors, in any order, chosen by this seed.
    Mix(u64),
}

/// Numbers that look random and are the same each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % end.max(1)
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Writes since the last sync; a hole is a write of zeros.
    writes: Vec<(usize, Vec<u8>)>,
    /// So many bytes have their room.
    reserved: usize,
}

type Names = BTreeMap<String, usize>;

#[derive(Default)]
struct World {
    inodes: Vec<Inode>,
    /// The names as they were after each change since the last sync, the synced ones first.
    names: Vec<Names>,
    /// Changes until the machine dies.
    countdown: Option<usize>,
    dead: bool,
    /// Changes until there is no room, and how many bytes of that write are done all the same.
    full: Option<(usize, usize)>,
    /// Fails every sync.
    sync_fails: bool,
    /// What it says it has room for; nothing said is no bound.
    available: Option<u64>,
    /// Which run of the machine it is.
    boot: u8,
    /// Its file system cannot promise room.
    reserves_nothing: bool,
}

/// A folder on a disk that can crash.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<World>>);

impl Sim {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(World { names: vec![Names::new()], ..World::default() })))
    }

    /// Lets the machine die in the change that comes after so many others.
    pub fn die_after(&self, changes: usize) {
        self.0.lock().countdown = Some(changes);
    }

    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// Lets writes fail from the one on that comes after so many others; it does some of its bytes.
    pub fn fill_up_after(&self, writes: Option<(usize, usize)>) {
        self.0.lock().full = writes;
    }

    pub fn let_syncs_fail(&self, fail: bool) {
        self.0.lock().sync_fails = fail;
    }

    pub fn reserve_nothing(&self) {
        self.0.lock().reserves_nothing = true;
    }

    pub fn set_available(&self, bytes: u64) {
        self.0.lock().available = Some(bytes);
    }

    pub fn size_of(&self, name: &str) -> usize {
        let world = self.0.lock();
        world.inodes[world.names.last().unwrap()[name]].now.len()
    }

    /// What is there after the crash. The old machine is dead.
    pub fn crash(&self, crash: Crash) -> Self {
        let mut world = self.0.lock();
        world.dead = true;
        let mut dice = Dice(match crash {
            Crash::Mix(seed) => seed,
            _ => 0,
        });
        let names = match crash {
            Crash::Keep => world.names.clone(),
            Crash::Drop => vec![world.names[0].clone()],
            Crash::Mix(_) => vec![world.names[dice.below(world.names.len())].clone()],
        };
        // A process that was killed leaves the machine running.
        let boot = if matches!(crash, Crash::Keep) { world.boot } else { world.boot.wrapping_add(1) };
        let mut inodes = world.inodes.clone();
        for inode in &mut inodes {
            let bytes = match crash {
                Crash::Keep => inode.now.clone(),
                Crash::Drop => inode.durable.clone(),
                Crash::Mix(_) => inode.mixed(&mut dice),
            };
            *inode = match crash {
                // What was not synced is not durable by that.
                Crash::Keep => inode.clone(),
                _ => Inode { durable: bytes.clone(), now: bytes, ..Inode::default() },
            };
        }
        Self(Arc::new(Mutex::new(World { inodes, names, boot, ..World::default() })))
    }

    /// Does a change, or the last one of this machine.
    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> Result<T> {
        let mut world = self.0.lock();
        let gone = || Error::new(Kind::Io, "the machine is gone");
        if world.dead {
            return Err(gone());
        }
        let done = change(&mut world);
        match world.countdown {
            Some(0) => {
                world.dead = true;
                Err(gone())
            }
            Some(left) => {
                world.countdown = Some(left - 1);
                Ok(done)
            }
            None => Ok(done),
        }
    }

    fn rename_all(&self, rename: impl FnOnce(&mut Names)) -> Result<()> {
        self.change(|world| {
            let mut names = world.names.last().unwrap().clone();
            rename(&mut names);
            world.names.push(names);
        })
    }

    fn blob(&self, inode: usize) -> Arc<dyn Blob> {
        Arc::new(SimBlob { sim: self.clone(), inode })
    }
}

impl Inode {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        overwrite(&mut self.now, at, bytes);
        // A disk has whole sectors: what it may be left with is what a sector held at some time, never a mix of two.
        let start = at / SECTOR * SECTOR;
        let end = (at + bytes.len()).next_multiple_of(SECTOR).min(self.now.len());
        self.writes.push((start, self.now[start..end].to_vec()));
    }

    fn mixed(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        if dice.coin() {
            bytes.resize(self.now.len(), 0);
        }
        let mut writes: Vec<_> = self.writes.iter().collect();
        if dice.coin() {
            for end in (1..writes.len()).rev() {
                writes.swap(end, dice.below(end + 1));
            }
        }
        for (at, written) in writes {
            let all = dice.below(4) == 0;
            for sector in sectors(*at, written.len()) {
                if all || dice.coin() {
                    overwrite(&mut bytes, sector.start, &written[sector.start - at..sector.end - at]);
                }
            }
        }
        bytes.truncate(self.now.len().max(self.durable.len()));
        bytes
    }
}

/// The parts of a range that lie in one sector each.
pub fn sectors(at: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = at + len;
    (at / SECTOR..end.div_ceil(SECTOR)).map(move |n| (n * SECTOR).max(at)..((n + 1) * SECTOR).min(end))
}

fn overwrite(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Folder for Sim {
    fn open(&self, name: &str) -> Result<Option<Arc<dyn Blob>>> {
        let inode = self.0.lock().names.last().unwrap().get(name).copied();
        Ok(inode.map(|inode| self.blob(inode)))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn Blob>> {
        let inode = self.0.lock().inodes.len();
        self.0.lock().inodes.push(Inode::default());
        self.rename_all(|names| assert!(names.insert(name.to_owned(), inode).is_none(), "{name} is there"))?;
        Ok(self.blob(inode))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rename_all(|names| {
            let inode = names.remove(from).unwrap();
            names.insert(to.to_owned(), inode);
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.rename_all(|names| {
            names.remove(name);
        })
    }

    fn boot(&self) -> Option<Boot> {
        Some([self.0.lock().boot; 36])
    }

    fn available(&self) -> Result<ByteLen> {
        Ok(ByteLen(self.0.lock().available.unwrap_or(u64::MAX)))
    }

    fn sync(&self) -> Result<()> {
        self.change(|world| {
            world.names.drain(..world.names.len() - 1);
        })
    }
}

struct SimBlob {
    sim: Sim,
    inode: usize,
}

impl Blob for SimBlob {
    fn size(&self) -> ByteLen {
        ByteLen(self.sim.0.lock().inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        let world = self.sim.0.lock();
        let at = at.0 as usize;
        buf.copy_from_slice(&world.inodes[self.inode].now[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, at: ByteOffset, bytes: &[u8]) -> Result<()> {
        let at = at.0 as usize;
        self.sim.change(|world| match &mut world.full {
            Some(_) if at + bytes.len() <= world.inodes[self.inode].reserved => {
                world.inodes[self.inode].write(at, bytes);
                Ok(())
            }
            Some((0, done)) => {
                let done = (*done).min(bytes.len());
                world.inodes[self.inode].write(at, &bytes[..done]);
                Err(Error::new(Kind::NoSpace, "the disk is full"))
            }
            full => {
                if let Some((left, _)) = full {
                    *left -= 1;
                }
                world.inodes[self.inode].write(at, bytes);
                Ok(())
            }
        })?
    }

    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.sim.change(|world| {
            let inode = &mut world.inodes[self.inode];
            let len = len.0 as usize;
            inode.writes.retain(|(at, bytes)| at + bytes.len() <= len);
            inode.now.resize(len, 0);
        })
    }

    fn reserve(&self, len: ByteLen) {
        let mut world = self.sim.0.lock();
        let possible = !world.reserves_nothing;
        let inode = &mut world.inodes[self.inode];
        // What lies beyond its end is room too, but the journal's reserve is a hope and no promise.
        inode.reserved = if possible { inode.now.len().min(len.0 as usize) } else { 0 };
    }

    fn punch(&self, range: Extent) -> Result<()> {
        let zeros = vec![0; range.len().0 as usize];
        self.sim.change(|world| world.inodes[self.inode].write(range.start().0 as usize, &zeros))
    }

    fn is_hole(&self) -> Result<bool> {
        let world = self.sim.0.lock();
        Ok(world.inodes[self.inode].now.iter().all(|byte| *byte == 0))
    }

    fn sync(&self) -> Result<()> {
        self.sim.change(|world| {
            if world.sync_fails {
                return Err(Error::new(Kind::Io, "the disk does not sync"));
            }
            let inode = &mut world.inodes[self.inode];
            inode.durable = inode.now.clone();
            inode.writes.clear();
            Ok(())
        })?
    }
}
