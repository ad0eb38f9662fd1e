//! The last words of a program, however much it says.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

/// What is kept: a kernel's last forty lines.
const KEPT_BYTES: usize = 4096;

/// The end of what a program wrote.
#[derive(Clone, Default)]
pub struct Tail(Arc<Mutex<Vec<u8>>>);

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
        });
        tail
    }

    fn take(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..surplus);
    }

    /// The last lines as one, without control characters.
    pub fn words(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept).into_owned();
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
        assert_eq!(tail.words(), "line 9994 ; line 9995 ; line 9996 ; line 9997 ; line 9998 ; line 9999 ");
        assert!(tail.0.lock().unwrap_or_else(PoisonError::into_inner).len() <= KEPT_BYTES);
    }
}
