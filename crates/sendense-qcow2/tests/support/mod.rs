//! What the tests share: QEMU's tools as oracles, a model disk, and ways to fill an image from it.
#![allow(dead_code, reason = "each test file uses its part")]

use sendense_block::backend::{File, Options};
use sendense_block::codec::Decoder;
use sendense_block::{
    AllocationMap, BLOCK_BYTES, Block, BlockIndex, BlockSink, ByteLen, ByteOffset, Content, Digest, Extent, Kind,
    Payload, ReadAt, digest,
};
use sendense_qcow2::gate::Folder;
use sendense_qcow2::writer::Deaf;
use sendense_qcow2::{Backing, Chain, Sealed, Spec, Writer};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// Runs one of QEMU's tools, which must succeed; what it printed.
pub fn qemu(tool: &str, arguments: &[&str]) -> String {
    let output = qemu_output(tool, arguments);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // qemu-io says "failed" on its output and exits with 0 for some commands.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("failed"), "{tool} {arguments:?}: {text}");
    text
}

/// Runs one of QEMU's tools.
pub fn qemu_output(tool: &str, arguments: &[&str]) -> Output {
    Command::new(tool)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {tool} (Debian package qemu-utils): {error}"))
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `qemu-img check` must find nothing at all: no corruption, no leak.
pub fn check_clean(image: &Path) {
    let report = qemu("qemu-img", &["check", "-f", "qcow2", text(image)]);
    assert!(report.contains("No errors were found on the image."), "{report}");
}

/// The image's bytes as QEMU reads them, its backing chain included.
pub fn convert(image: &Path, format: &str) -> Vec<u8> {
    let raw = image.with_extension("converted.raw");
    qemu("qemu-img", &["convert", "-f", format, "-O", "raw", text(image), text(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// Some of the bytes, as QEMU reads them.
pub fn convert_range(image: &Path, at: u64, len: u64) -> Vec<u8> {
    let raw = image.with_extension("range.raw");
    let options = format!(
        "driver=raw,offset={at},size={len},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
        text(image)
    );
    qemu("qemu-img", &["convert", "--image-opts", &options, "-O", "raw", text(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// An empty file that may grow.
pub fn create(path: &Path) -> Arc<File> {
    Arc::new(File::open(path, Options::CreateNew).unwrap())
}

/// A writer of `path` with its scratch file beside it.
pub fn writer(path: &Path, capacity: u64, backing: Option<&str>) -> Writer {
    let backing = backing.map(|name| Backing { name: name.to_owned(), format: "qcow2".to_owned() });
    let spec = Spec { capacity: ByteLen(capacity), backing };
    Writer::create(create(path), create(&path.with_extension("spill")), spec, Arc::new(Deaf)).unwrap()
}

/// How a test stores a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Zero,
    Raw,
    Zstd,
}

/// A block of some content: compressible, not compressible, by its seed.
pub fn content(seed: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // The part that is noise decides how large the frame will be: from tens of bytes to nearly a block.
    let noise = (seed % 16) as usize * 4000;
    for (n, byte) in block.iter_mut().enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = if n < noise { state as u8 } else { seed as u8 | 1 };
    }
    block
}

/// Puts one block; a frame that does not shrink is stored raw, as the pipeline does.
pub fn put(writer: &Writer, index: u64, block: &[u8], form: Form) {
    put_all(writer, &[(index, block.to_vec(), form)]);
}

/// Puts one batch.
pub fn put_all(writer: &Writer, blocks: &[(u64, Vec<u8>, Form)]) {
    let frames: Vec<_> = blocks.iter().map(|(_, block, _)| zstd::bulk::compress(block, 1).unwrap()).collect();
    let batch: Vec<_> = blocks
        .iter()
        .zip(&frames)
        .map(|((index, block, form), frame)| Block {
            index: BlockIndex(*index),
            digest: Digest::of(block),
            payload: match form {
                Form::Zero => {
                    assert!(digest::is_zero(block));
                    Payload::Zero
                }
                Form::Zstd if frame.len() < block.len() => Payload::Zstd(frame),
                _ => Payload::Raw(block),
            },
        })
        .collect();
    writer.put(&batch).unwrap();
}

/// Writes a whole image from `(index, content, form)`.
pub fn write_image(path: &Path, capacity: u64, backing: Option<&str>, blocks: &[(u64, Vec<u8>, Form)]) -> Sealed {
    let writer = writer(path, capacity, backing);
    for batch in blocks.chunks(5) {
        put_all(&writer, batch);
    }
    writer.seal().unwrap()
}

/// A path in a folder.
pub fn at(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

/// Runs qemu-io commands on an image.
pub fn qemu_io(image: &Path, commands: &[String]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(image));
    qemu("qemu-io", &arguments);
}

/// Numbers that look random and are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    /// The next one below `bound`.
    pub fn roll(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Opens a chain below a folder.
pub fn open_chain(dir: &Path, name: &str) -> Chain {
    let folder = Folder::new(dir).unwrap();
    Chain::open(folder.open_top(name, "qcow2").unwrap(), &folder).unwrap()
}

/// The chain reads as `model`, in large and in odd pieces, and its allocation map tells no lie.
pub fn check_chain(chain: &Chain, model: &[u8]) {
    assert_eq!(chain.size().0, model.len() as u64);
    let mut got = vec![0xee; model.len()];
    for (n, piece) in got.chunks_mut(1 << 20).enumerate() {
        chain.read_at(ByteOffset((n as u64) << 20), piece).unwrap();
    }
    let differs = got.iter().zip(model).position(|(a, b)| a != b);
    assert!(differs.is_none(), "the disk differs at {differs:?}");
    let mut dice = Dice(0x5eed);
    for _ in 0..200 {
        let from = dice.roll(model.len() as u64);
        let len = dice.roll(200_000).min(model.len() as u64 - from) as usize;
        let mut piece = vec![0xee; len];
        chain.read_at(ByteOffset(from), &mut piece).unwrap();
        assert!(piece == model[from as usize..][..len], "{len} bytes at {from} differ");
    }
    let mut next = 0;
    for mapped in chain.allocation(Extent::whole(chain.size())).unwrap() {
        assert_eq!(mapped.extent.start().0, next);
        assert!(!mapped.extent.is_empty());
        next = mapped.extent.end().0;
        let bytes = &model[mapped.extent.start().0 as usize..next as usize];
        assert!(mapped.content == Content::Data || digest::is_zero(bytes), "{} is not zero", mapped.extent);
    }
    assert_eq!(next, model.len() as u64);
    let (mut frame, mut decoder, mut block) = (Vec::new(), Decoder::default(), vec![0; BLOCK_BYTES as usize]);
    for (index, model) in (0..).map(BlockIndex).zip(model.chunks(BLOCK_BYTES as usize)) {
        if chain.read_frame(index, &mut frame).unwrap() {
            decoder.decode(&frame, &mut block).unwrap();
            assert!(block == model, "the frame of block {index} is of another one");
        }
    }
    if !model.is_empty() {
        let beyond = chain.read_at(ByteOffset(model.len() as u64 - 1), &mut [0; 2]).unwrap_err();
        assert_eq!(beyond.kind, Kind::OutOfRange);
    }
}
