//! The last words of a program, however much it says.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What is kept: a kernel's last forty lines.
const KEPT_BYTES: usize = 4096;
/// How long its last words are waited for when a program has ended: they are in the pipe, but a process it has left behind may hold
/// that open.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// The end of what a program wrote.
#[derive(Clone, Default)]
pub struct Tail(Arc<(Mutex<Kept>, Condvar)>);

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    is_all: bool,
}

impl Tail {
    /// Reads until the program has closed its end, in a thread of its own.
    pub fn of(mut from: impl Read + Send + 'static) -> Tail {
        let tail = Tail::default();
        let kept = tail.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                kept.take(&buffer[..read]);
            }
            kept.end();
        });
        tail
    }

    fn take(&self, bytes: &[u8]) {
        let mut kept = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes.extend_from_slice(bytes);
        let surplus = kept.bytes.len().saturating_sub(KEPT_BYTES);
        kept.bytes.drain(..surplus);
    }

    fn end(&self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).is_all = true;
        self.0.1.notify_all();
    }

    /// The last lines of a program that has ended, as one, without control characters.
    pub fn words(&self) -> String {
        let kept = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(kept, END_TIMEOUT, |kept| !kept.is_all);
        let (kept, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept.bytes).into_owned();
        // A kernel's list of its calls is for its own people.
        let telling = |line: &&str| !line.is_empty() && !line.contains("+0x") && !line.starts_with("Call Trace");
        let lines: Vec<&str> = text.lines().map(str::trim).filter(telling).collect();
        let last = &lines[lines.len().saturating_sub(6)..];
        last.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let tail = Tail::default();
        for number in 0..10_000 {
            tail.take(format!("line {number}\x1b\r\n\n").as_bytes());
        }
        tail.end();
        assert_eq!(tail.words(), "line 9994 ; line 9995 ; line 9996 ; line 9997 ; line 9998 ; line 9999 ");
        assert!(tail.0.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.len() <= KEPT_BYTES);
    }

    #[test]
    fn what_was_said_last_is_not_missed() {
        let (mut said, from) = std::os::unix::net::UnixStream::pair().unwrap_or_else(|error| panic!("{error}"));
        let tail = Tail::of(from);
        let words = std::thread::spawn(move || tail.words());
        std::io::Write::write_all(&mut said, b"the reason\n").unwrap_or_else(|error| panic!("{error}"));
        drop(said);
        assert_eq!(words.join().unwrap_or_default(), "the reason");
    }
}
