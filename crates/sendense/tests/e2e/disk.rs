//! A guest's disk: a raw file with a model of its bytes, and a guest that writes at random but repeatably.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A small generator of numbers (xorshift64*), so that a failing run can be repeated from its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Noise, text, or zeros.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        match self.below(4) {
            0 => vec![0; len],
            1 => format!("line {} of a log file\n", self.next()).into_bytes().into_iter().cycle().take(len).collect(),
            _ => {
                let mut bytes = Vec::with_capacity(len + 8);
                while bytes.len() < len {
                    bytes.extend(self.next().to_le_bytes());
                }
                bytes.truncate(len);
                bytes
            }
        }
    }
}

/// A raw image with the bytes that it should hold.
pub struct Disk {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

impl Disk {
    /// A sparse image with some data in it.
    pub fn create(path: &Path, size: usize, random: &mut Random) -> Self {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create_new(path).unwrap().set_len(size as u64).unwrap();
        let mut disk = Self { path: path.to_owned(), bytes: vec![0; size] };
        for _ in 0..16 {
            disk.write_somewhere(size / 24, random);
        }
        disk
    }

    /// The guest writes up to `len_max` bytes somewhere, not aligned to anything.
    pub fn write_somewhere(&mut self, len_max: usize, random: &mut Random) {
        let at = random.below(self.bytes.len() as u64) as usize;
        let len = (1 + random.below(len_max as u64) as usize).min(self.bytes.len() - at);
        let data = random.bytes(len);
        OpenOptions::new().write(true).open(&self.path).unwrap().write_all_at(&data, at as u64).unwrap();
        self.bytes[at..at + len].copy_from_slice(&data);
    }

    /// The guest writes what cannot be compressed, everywhere.
    pub fn fill_with_noise(&mut self, random: &mut Random) {
        for chunk in self.bytes.chunks_mut(8) {
            let noise = random.next().to_le_bytes();
            chunk.copy_from_slice(&noise[..chunk.len()]);
        }
        fs::write(&self.path, &self.bytes).unwrap();
    }

    /// The guest writes logs, everywhere.
    pub fn fill_with_text(&mut self) {
        for (number, line) in self.bytes.chunks_mut(80).enumerate() {
            let text =
                format!("{number:012} a line of a log file that says much the same as the one before, as they do\n");
            line.copy_from_slice(&text.as_bytes()[..line.len()]);
        }
        fs::write(&self.path, &self.bytes).unwrap();
    }

    /// The disk is grown or shrunk.
    pub fn resize(&mut self, size: usize) {
        OpenOptions::new().write(true).open(&self.path).unwrap().set_len(size as u64).unwrap();
        self.bytes.resize(size, 0);
    }
}

/// Fails, saying where, when a file does not hold exactly these bytes.
pub fn assert_holds(path: &Path, want: &[u8]) {
    let got = fs::read(path).unwrap();
    assert_eq!(got.len(), want.len(), "size of {}", path.display());
    if let Some(at) = got.iter().zip(want).position(|(got, want)| got != want) {
        panic!("{} differs at byte {at} (block {})", path.display(), at / 65536);
    }
}
