//! A disk into a file: the repository's own extraction, with a request's rules and a request's words.

use super::Job;
use crate::fault::{Result, of_repo};
use sendense_api::{ImageFormat, VmdkSubformat};
use sendense_repo::extract::{self, Format, How, Owner, extract};
use sendense_types::{Problem, ProblemCode, TaskId};
use std::path::Path;

/// Restores a disk into a file at `path`, an absolute and resolved path that was checked against the allowed roots. Its
/// folder must exist.
pub(crate) fn restore_file(
    job: &Job<'_>,
    path: &Path,
    format: ImageFormat,
    subformat: VmdkSubformat,
    overwrite: bool,
    task_id: &TaskId,
) -> Result<()> {
    let (lanes, suffix, owner) = (job.lanes, task_id.as_str(), Owner::Us);
    let how = |format| How {
        format,
        lanes,
        suffix,
        disk_name: job.name,
        overwrite,
        owner,
        needed_bytes: job.needed_bytes,
        is_last: true,
    };
    match format {
        ImageFormat::Raw => extract(&job.disk, path, how(Format::Raw), job.progress, job.cancel),
        ImageFormat::Qcow2 => extract(&job.disk, path, how(Format::Qcow2), job.progress, job.cancel),
        ImageFormat::Vmdk => {
            let fill = |part: &Path| super::vmdk::write(job, part, subformat);
            extract::extract_with(path, how(Format::Raw), job.cancel, &fill)
        }
    }
    .map_err(|error| failed(path, &error))
}

/// Removes what a restore to a file left that nobody works on any more. True when something was there.
pub(crate) fn remove_parts(path: &Path, task_id: &TaskId) -> Result<bool> {
    extract::remove_parts(path, task_id.as_str())
        .map(|removed| !removed.is_empty())
        .map_err(|error| failed(path, &error))
}

/// What went wrong at the target is the caller's or the operator's to mend, not the repository's fault.
pub(crate) fn failed(path: &Path, error: &sendense_repo::Error) -> Problem {
    use sendense_repo::Kind;
    let problem = of_repo(error);
    let told = |code, message: &str| Problem::new(code, message, problem.details.clone());
    match error.kind {
        Kind::Exists => told(ProblemCode::Conflict, "the target exists already"),
        Kind::NotFound => told(ProblemCode::InvalidInput, "the target's folder does not exist"),
        Kind::Denied => told(ProblemCode::InvalidInput, "the hub may not write the target"),
        Kind::NoSpace => told(ProblemCode::NoSpace, "no space for the target"),
        Kind::Io => told(ProblemCode::Internal, &format!("restore to {}", path.display())),
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendense_block::backend::Memory;
    use sendense_block::copy::{Progress, Snapshot};
    use sendense_block::{ByteLen, ByteOffset, Cancel, WriteAt};
    use std::sync::Arc;

    fn run(path: &Path, format: ImageFormat, overwrite: bool, cancel: &Cancel) -> Result<Snapshot> {
        let disk = Memory::zeroed(ByteLen(3 * 65536 + 512));
        disk.write_at(ByteOffset(65536), &[7; 4096]).unwrap();
        let progress = Arc::new(Progress::default());
        let job =
            Job { name: "disk 0", disk: Arc::new(disk), needed_bytes: None, lanes: 2, progress: &progress, cancel };
        restore_file(&job, path, format, VmdkSubformat::default(), overwrite, &TaskId::generate())?;
        assert_eq!(std::fs::read(path).map(|bytes| bytes.len() > 65536).ok(), Some(true));
        Ok(progress.snapshot())
    }

    /// The bytes themselves are the extraction's to prove.
    #[test]
    fn a_restore_is_measured_and_its_failures_are_told_as_whose_they_are() {
        let folder = tempfile::tempdir().unwrap();
        // Restores take resolved paths.
        let folder = folder.path().canonicalize().unwrap();
        let (path, go) = (folder.join("disk"), Cancel::new());
        for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
            let progress = run(&path, format, format == ImageFormat::Qcow2, &go).unwrap();
            assert!(progress.planned.0 >= 4096 && progress.done == progress.planned, "{progress:?}");
        }
        let code = |path: &Path, format, cancel: &Cancel| run(path, format, false, cancel).unwrap_err().code;
        assert_eq!(code(&path, ImageFormat::Raw, &go), ProblemCode::Conflict);
        assert_eq!(code(&folder.join("none/disk"), ImageFormat::Raw, &go), ProblemCode::InvalidInput);
        std::os::unix::fs::symlink(&folder, folder.join("link")).unwrap();
        assert_eq!(code(&folder.join("link/disk"), ImageFormat::Raw, &go), ProblemCode::InvalidInput);
        let stop = Cancel::new();
        stop.cancel();
        assert_eq!(code(&folder.join("stopped"), ImageFormat::Raw, &stop), ProblemCode::Cancelled);
        assert!(!folder.join("stopped").exists());
    }
}
