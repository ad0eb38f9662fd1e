//! VMDK, which `qemu-img` writes: from a raw image beside it, whose format is given and never guessed.

use sendense_api::VmdkSubformat;
use sendense_block::Cancel;
use sendense_repo::{Error, Kind};
use sendense_source::child::{self, Spec};
use std::path::Path;

/// Makes `to` a VMDK of the raw image `from`. Both lie in a folder that was checked. The tool has no deadline of its own:
/// the task has one, and stops it.
pub(super) fn convert(from: &Path, to: &Path, subformat: VmdkSubformat, cancel: &Cancel) -> Result<(), Error> {
    let spec = Spec::new("qemu-img", "qemu-utils")
        .args(["convert", "-f", "raw", "-O", "vmdk", "-o"])
        .arg(format!("subformat={}", subformat.as_str()))
        // Absolute paths: neither is taken for a flag or a protocol.
        .arg(from)
        .arg(to);
    match child::run(&spec, cancel) {
        Ok(_) => Ok(()),
        Err(error) if error.kind == sendense_source::Kind::Cancelled => {
            Err(Error::new(Kind::Cancelled, "stopped on request"))
        }
        Err(error) => Err(Error::new(Kind::Io, error.to_string()).caused_by(error)),
    }
}
