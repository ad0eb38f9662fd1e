//! Work that everything else is before.

/// The least that a thread may ask for; a disk's queue takes it for the lowest of eight levels.
pub const NICE_MAX: i32 = 19;

/// Does it on a thread of its own that everything else is before, at the processor and at the disk: the kernel takes the place
/// of a read in a disk's queue from its thread's niceness, and threads that it begins have the same. Who has no rights cannot take
/// niceness back, so the thread ends with it.
pub fn humbly<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Of a thread: on Linux it is each thread that has a niceness.
            if let Err(error) = rustix::process::setpriority_process(None, NICE_MAX) {
                tracing::debug!(%error, "work at the usual priority");
            }
            work()
        });
        match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The niceness of the calling thread, as Linux tells it: the 19th word, after a name that may hold anything in brackets.
    fn niceness() -> i32 {
        let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, words) = text.rsplit_once(')').unwrap();
        words.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn only_the_work_is_humble() {
        let before = niceness();
        assert_eq!(humbly(niceness), NICE_MAX);
        let of_a_helper = || std::thread::scope(|scope| scope.spawn(niceness).join().unwrap());
        assert_eq!(humbly(of_a_helper), NICE_MAX);
        assert_eq!(niceness(), before);
    }
}
