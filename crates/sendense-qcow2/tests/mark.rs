//! Images that are marked while they grow: a mark waits for what is being put, an image goes on from its last mark, and
//! however many marks there are it stays as short as its blocks.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use sendense_block::backend::{Faulty, File, Operation, Options};
use sendense_block::{BLOCK_BYTES, BlockIndex, ByteLen};
use sendense_qcow2::writer::{Deaf, Mark};
use sendense_qcow2::{Held, Spec, Writer};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use support::*;

fn spec(blocks: u64) -> Spec {
    Spec { capacity: ByteLen(blocks * BLOCK_BYTES), backing: None }
}

/// Goes on from a mark with the files as a process leaves them that dies: all blocks below it are known.
fn resume(path: &Path, blocks: u64, mark: &Mark) -> Writer {
    let open = |path: &Path, most: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len().min(most)).unwrap();
        Arc::new(File::open(path, Options::Write).unwrap())
    };
    let image = open(path, mark.image_bytes().unwrap().0);
    let scratch = open(&path.with_extension("spill"), mark.scratch_bytes(spec(blocks).capacity).unwrap().0);
    Writer::resume(image, scratch, spec(blocks), Arc::new(Deaf), mark, &mut |_, _| Ok(())).unwrap()
}

fn form(n: u64) -> Form {
    if n.is_multiple_of(3) { Form::Raw } else { Form::Zstd }
}

#[test]
fn a_mark_waits_for_the_blocks_that_are_being_put() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    let (begun, writes) = mpsc::channel();
    let slow = Faulty::new(create(&path), false, move |_, operation| {
        if matches!(operation, Operation::Write(..)) {
            begun.send(()).unwrap();
            // A disk that takes its time.
            std::thread::sleep(Duration::from_millis(200));
        }
        None
    });
    let writer =
        Writer::create(Arc::new(slow), create(&path.with_extension("spill")), spec(4), Arc::new(Deaf)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| put(&writer, 0, &content(7), Form::Raw));
        writes.recv().unwrap();
        let (mark, ()) = writer.mark(|| ()).unwrap();
        assert_eq!((mark.raw_blocks, mark.clusters), (1, 2), "half a block is in the mark");
    });
}

#[test]
fn threads_put_while_another_marks_and_the_image_goes_on_from_the_last_mark() {
    const BLOCKS: u64 = 600;
    let dir = tempfile::tempdir().unwrap();
    let path = at(&dir, "disk.qcow2");
    let mark = {
        let writer = writer(&path, BLOCKS * BLOCK_BYTES, None);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let marks = scope.spawn(|| {
                let mut last = writer.mark(|| ()).unwrap().0;
                while !ended.load(Ordering::SeqCst) {
                    last = writer.mark(|| ()).unwrap().0;
                }
                last
            });
            let lanes: Vec<_> = (0..3)
                .map(|lane| {
                    let writer = &writer;
                    scope.spawn(move || {
                        for first in (lane * 8..BLOCKS - 100).step_by(24) {
                            let batch: Vec<_> = (first..first + 8).map(|n| (n, content(n), form(n))).collect();
                            put_all(writer, &batch);
                        }
                    })
                })
                .collect();
            lanes.into_iter().for_each(|lane| lane.join().unwrap());
            ended.store(true, Ordering::SeqCst);
            let mark = marks.join().unwrap();
            // These come to nothing.
            let late: Vec<_> = (BLOCKS - 90..BLOCKS).map(|n| (n, content(n), form(n))).collect();
            put_all(&writer, &late);
            mark
        })
    };
    let writer = resume(&path, BLOCKS, &mark);
    let mut held = vec![Held::Absent; BLOCKS as usize];
    writer.held(BlockIndex(0), &mut held).unwrap();
    assert!(held[BLOCKS as usize - 90..].iter().all(|held| *held == Held::Absent), "it is later than the mark");
    let missing = (0..BLOCKS).filter(|n| held[*n as usize] == Held::Absent);
    missing.for_each(|n| put(&writer, n, &content(n), form(n)));
    writer.seal().unwrap();
    check_clean(&path);
    let disk = convert(&path, "qcow2");
    for n in 0..BLOCKS {
        assert!(disk[(n * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize] == content(n), "block {n} differs");
    }
}

#[test]
fn an_image_that_is_marked_often_stays_as_short_as_its_blocks() {
    // Before each mark a raw block is put behind the arena, so that nothing of that can be given back.
    for per_mark in [1, 5, 40] {
        const BLOCKS: u64 = 400;
        let dir = tempfile::tempdir().unwrap();
        let path = at(&dir, "disk.qcow2");
        let writer = writer(&path, BLOCKS * BLOCK_BYTES, None);
        writer.mark(|| ()).unwrap();
        let blocks: Vec<u64> = (0..BLOCKS).collect();
        for some in blocks.chunks(per_mark + 1) {
            let (raw, frames) = some.split_last().unwrap();
            frames.iter().for_each(|n| put(&writer, *n, &content(*n), Form::Zstd));
            put(&writer, *raw, &content(*raw), Form::Raw);
            writer.mark(|| ()).unwrap();
        }
        let sealed = writer.seal().unwrap();
        check_clean(&path);
        // The header, the tables, and holes of less than a hundredth.
        let most = BLOCKS + BLOCKS / 100 + 8;
        assert!(
            sealed.file_bytes.0 <= most * BLOCK_BYTES,
            "{per_mark}: {} of {most}",
            sealed.file_bytes.0 / BLOCK_BYTES
        );
        assert!(convert(&path, "qcow2")[..BLOCK_BYTES as usize] == content(0));
    }
}
