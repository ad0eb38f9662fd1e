//! What lies below an overlay: the disk of the restore point.
//!
//! A machine that runs on it reads it as it lies there. Where what is read becomes a point or the disk of another machine, each block is
//! compared with the point's digests: [`Comparing`]. Invariant: while it compares, nobody is given a block that is not what was
//! backed up, whoever asks.

use parking_lot::RwLock;
use sendense_block::{
    self as block, AllocationMap, ByteLen, ByteOffset, ChangeMap, Content, Extent, ExtentSet, MappedExtent, Overlay,
    ReadAt,
};
use sendense_repo::chain::ChainReader;
use sendense_repo::{ComparedDisk, OnDamage, Repository};
use sendense_types::{BackupId, DiskNumber, Problem, ProblemCode, VmContextId};
use std::sync::Arc;

/// What a machine writes at the least: so much of a block may be what lay below while the rest was written.
const SECTOR_BYTES: usize = 512;

/// The disk of a point.
pub(super) struct Below {
    chain: ChainReader,
    /// While somebody asks for it.
    compared: RwLock<Option<Arc<ComparedDisk>>>,
}

impl Below {
    pub fn new(chain: ChainReader) -> Self {
        Self { chain, compared: RwLock::default() }
    }

    fn compared(&self) -> Option<Arc<ComparedDisk>> {
        self.compared.read().clone()
    }
}

impl ReadAt for Below {
    fn size(&self) -> ByteLen {
        self.chain.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        match self.compared() {
            Some(compared) => compared.read_at(at, buf),
            None => self.chain.read_at(at, buf),
        }
    }
}

impl AllocationMap for Below {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        match self.compared() {
            Some(compared) => compared.allocation(within),
            None => self.chain.allocation(within),
        }
    }
}

/// Disks that are compared for as long as this is there.
pub(super) struct Comparing {
    disks: Vec<(Arc<Below>, Arc<ComparedDisk>)>,
}

impl Comparing {
    /// Compares what is read of these disks from now on. Blocks.
    ///
    /// # Errors
    /// Where the digests of one cannot be read: then none is compared.
    pub fn begin<'a>(
        repository: &Repository,
        vm: &VmContextId,
        backup: &BackupId,
        who: &str,
        disks: impl Iterator<Item = (DiskNumber, &'a Arc<Below>)>,
    ) -> sendense_repo::Result<Self> {
        let opened = disks.map(|(id, below)| {
            let compared = repository.open_compared(vm, backup, id, who, OnDamage::Fail)?;
            Ok((below.clone(), Arc::new(compared)))
        });
        let disks: Vec<_> = opened.collect::<sendense_repo::Result<_>>()?;
        for (below, compared) in &disks {
            *below.compared.write() = Some(compared.clone());
        }
        Ok(Self { disks })
    }

    /// The disk that was damaged, and how, if one was met.
    fn damage(&self) -> Option<(String, String)> {
        self.disks.iter().find_map(|(_, disk)| Some((disk.name().to_owned(), disk.failure()?)))
    }

    /// True when what was read was damaged.
    pub fn has_met_damage(&self) -> bool {
        self.damage().is_some()
    }

    /// The problem of a task that met damage, told so that it is clear what to do; any other one as it is.
    pub fn told(&self, problem: Problem, advice: &str) -> Problem {
        match self.damage() {
            Some((name, found)) if problem.code != ProblemCode::Cancelled => {
                Problem::new(ProblemCode::Corrupt, format!("{name} is damaged"), format!("{found}; {advice}"))
            }
            _ => problem,
        }
    }
}

impl Drop for Comparing {
    fn drop(&mut self) {
        for (below, _) in &self.disks {
            *below.compared.write() = None;
        }
    }
}

/// What was written to a disk, over what lies below.
pub(super) struct WrittenDisk {
    pub overlay: Arc<Overlay>,
    pub below: Arc<Below>,
}

impl WrittenDisk {
    /// A block that was written in part has the rest from below, as the machine saw it. Fails where that is damaged and something of it is
    /// in the bytes that were read; a block that was written anew as a whole has nothing to do with what lay there.
    fn check_below(&self, within: Extent, bytes: &[u8]) -> block::Result<()> {
        let Some(compared) = self.below.compared() else { return Ok(()) };
        let mut below = vec![0; bytes.len()];
        match compared.read_at(within.start(), &mut below) {
            Err(error) if error.kind == block::Kind::Corrupt => {
                // What cannot be read at all came into no block.
                let is_there = self.below.chain.read_at(within.start(), &mut below).is_ok();
                let mut sectors = bytes.chunks(SECTOR_BYTES).zip(below.chunks(SECTOR_BYTES));
                match is_there && sectors.any(|(now, before)| now == before) {
                    true => Err(error),
                    false => Ok(()),
                }
            }
            read => read,
        }
    }
}

impl ReadAt for WrittenDisk {
    fn size(&self) -> ByteLen {
        self.overlay.size()
    }

    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> block::Result<()> {
        self.overlay.read_at(at, buf)?;
        // The overlay has shown that all of this lies on the disk.
        let range = Extent::between(at, ByteOffset(at.0 + buf.len() as u64));
        for written in self.overlay.changed(range)?.as_slice() {
            for mapped in self.overlay.allocation(*written)?.iter().filter(|mapped| mapped.content == Content::Data) {
                for block in mapped.extent.block_indices() {
                    let part = Extent::block(block).intersect(mapped.extent);
                    let from = (part.start().0 - at.0) as usize;
                    self.check_below(part, &buf[from..from + part.len().0 as usize])?;
                }
            }
        }
        Ok(())
    }
}

impl AllocationMap for WrittenDisk {
    fn allocation(&self, within: Extent) -> block::Result<Vec<MappedExtent>> {
        self.overlay.allocation(within)
    }
}

impl ChangeMap for WrittenDisk {
    fn changed(&self, within: Extent) -> block::Result<ExtentSet> {
        self.overlay.changed(within)
    }
}
