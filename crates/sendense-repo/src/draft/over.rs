//! A disk that begins as the copy of an image instead of with nothing: what stays of it is not moved.
//!
//! What lives here: the order in which the copy is made and gone on with. What stays, and how bytes are copied where the file
//! system cannot share them, is the caller's ([`Over`]), who also reads the image's segments from the disk in the end.
//!
//! Invariant: the copied image is only read. Until the new one is sealed its first cluster holds zeros.

use super::disk::{Begun, DiskDraft, DiskSpec, SCRATCH_SUFFIXES, Segments, image_spec, scratch_name};
use crate::capacity::Reservation;
use crate::crashsafe::{self, NewFile};
use crate::digests::Spill;
use crate::error::{Error, Result};
use crate::layout;
use crate::repository::Repository;
use parking_lot::{Mutex, RwLock};
use sendense_block::backend::File;
use sendense_block::{self as block, BlockIndex, Digest, ReadAt};
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Held, Image, Part, Patch, Writer};
use sendense_types::BackupId;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An image that is copied.
pub(crate) struct Base<'a> {
    pub image: &'a Image,
    pub file: &'a File,
    /// Its manifest's words.
    pub disk: &'a crate::manifest::Disk,
}

/// Who decides what stays of the copy.
pub(crate) trait Over {
    /// Takes out of `held` what does not stay of a table's blocks, and tells the digests of the rest.
    fn stays(&mut self, first: BlockIndex, held: &mut [Held], digests: &mut Vec<Option<Digest>>) -> Result<()>;
    /// The file was made: it holds the image already, or nothing, and [`Over::part`] fills it.
    fn begun(&mut self, is_clone: bool) -> Result<()>;
    /// Is told of the parts of the copy behind the first cluster, in order.
    fn part(&mut self, copy: &dyn NewFile, part: Part) -> Result<()>;
    /// All parts were told.
    fn all_told(&mut self, copy: &dyn NewFile) -> Result<()>;
}

impl DiskDraft {
    /// Begins a disk of a point in any folder of that point's VM, over what another image holds.
    pub(crate) fn begin_over(
        repository: Repository,
        backup_id: BackupId,
        dir: PathBuf,
        reservation: Arc<Reservation>,
        spec: DiskSpec,
        base: &Base<'_>,
        over: &mut dyn Over,
    ) -> Result<Self> {
        // The folder is found by its name, which another hub's may bear by now.
        let turn = repository.ownership()?.hold()?;
        let image =
            crashsafe::create_clone(repository.fs(), &dir.join(layout::draft_image_name(spec.number)), base.file);
        let create = |suffix| crashsafe::create_file(repository.fs(), &dir.join(scratch_name(spec.number, suffix)));
        let [tables, digests] = SCRATCH_SUFFIXES.map(create);
        drop(turn);
        let ((image, is_clone), tables) = (image?, tables?);
        over.begun(is_clone)?;
        if !is_clone {
            image.set_len(base.file.size())?;
        }
        let spill = Spill::new(digests?, block::block_count(spec.capacity))?;
        let (writer, dropped_bytes) = patch(&image, &tables, &spill, &spec, base, over)?;
        over.all_told(&*image)?;
        let begun = Begun {
            segment_bytes: base.disk.image.segment_bytes,
            stored_bytes: base.disk.image.stored_bytes.saturating_sub(dropped_bytes),
        };
        Ok(Self {
            repository,
            backup_id,
            spec,
            dir,
            writer,
            image,
            tables,
            segments: Segments::ReadBack(begun),
            spill,
            parent: None,
            reservation,
            storing: RwLock::default(),
            marked: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            sealed: Mutex::new(false),
        })
    }
}

/// The writer, and how many payload bytes do not stay.
fn patch(
    image: &Arc<dyn NewFile>,
    tables: &Arc<dyn NewFile>,
    spill: &Spill,
    spec: &DiskSpec,
    base: &Base<'_>,
    over: &mut dyn Over,
) -> Result<(Writer, u64)> {
    let over = Mutex::new(over);
    // What went wrong here, in this crate's words: between the two lies a crate that knows no files.
    let wrong: Mutex<Option<Error>> = Mutex::new(None);
    let keep_word = |done: Result<()>| {
        done.map_err(|error| {
            let told = block::Error::new(block::Kind::Invalid, "go on with a copy");
            wrong.lock().get_or_insert(error);
            told
        })
    };
    let mut digests = Vec::new();
    let mut keep = |first: BlockIndex, held: &mut [Held]| {
        let stays = over.lock().stays(first, held, &mut digests);
        keep_word(stays.and_then(|()| match digests.iter().all(Option::is_none) {
            true => Ok(()),
            false => spill.keep(first, &digests),
        }))
    };
    let mut part = |part: Part| keep_word(over.lock().part(&**image, part));
    let patch = Patch { base: base.image, keep: &mut keep, part: &mut part };
    let patched = Writer::patch(image.clone(), tables.clone(), image_spec(spec), Arc::new(Deaf), patch);
    match (patched, wrong.into_inner()) {
        (Ok((writer, kept)), _) => Ok((writer, kept.dropped_bytes)),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(match error.kind {
            block::Kind::Corrupt => {
                Error::corrupt(base.file.name().as_ref(), None, "read the tables of the image").caused_by(error)
            }
            _ => error.into(),
        }),
    }
}
