//! Asking work to stop. Asking is not waiting: whoever asks joins the threads afterwards.

use crate::error::{Error, Kind, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

type Hook = Arc<dyn Fn() + Send + Sync>;

/// A cheap clone that can be asked "were we told to stop?". Blocking waits (an NBD read, a child process) register a hook
/// that ends them, so that cancellation takes effect within a second even while nothing arrives.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// [`OPEN`], and from there once and for ever [`ASKED`] or [`COMMITTED`].
    state: AtomicU8,
    hooks: Mutex<Hooks>,
}

const OPEN: u8 = 0;
const ASKED: u8 = 1;
const COMMITTED: u8 = 2;

#[derive(Default)]
struct Hooks {
    next: u64,
    hooks: BTreeMap<u64, Hook>,
}

impl Cancel {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks. The hooks run once, on this thread, in the order they were registered. Too late after [`Cancel::commit`].
    pub fn cancel(&self) {
        if !self.settle(ASKED) {
            return;
        }
        let hooks = std::mem::take(&mut self.0.hooks.lock().hooks);
        for hook in hooks.into_values() {
            hook();
        }
    }

    /// True once somebody has asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == ASKED
    }

    /// Passes the point of no return: what makes the work's result visible comes next and is finished whatever anybody asks.
    /// An error of kind [`Kind::Cancelled`] when somebody has asked: then it must never be made visible, however late the
    /// thread that would do so comes back from where it was stuck.
    pub fn commit(&self) -> Result<()> {
        if self.settle(COMMITTED) || self.is_committed() { Ok(()) } else { self.check() }
    }

    /// True once the point of no return was passed.
    pub fn is_committed(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == COMMITTED
    }

    /// True for the one who decides what it is.
    fn settle(&self, state: u8) -> bool {
        self.0.state.compare_exchange(OPEN, state, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// An error of kind [`Kind::Cancelled`] once somebody has asked; for use with `?` between steps.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(Kind::Cancelled, "stopped on request")) } else { Ok(()) }
    }

    /// Runs `hook` when somebody asks, at once if somebody has already. Dropping the guard takes the hook back.
    #[must_use = "the hook is taken back when the guard is dropped"]
    pub fn on_cancel(&self, hook: impl Fn() + Send + Sync + 'static) -> HookGuard {
        let hook: Hook = Arc::new(hook);
        let mut hooks = self.0.hooks.lock();
        let id = hooks.next;
        hooks.next += 1;
        hooks.hooks.insert(id, hook.clone());
        drop(hooks);
        // `cancel` may have taken the hooks just before the insertion: then this one would wait for ever.
        if self.is_cancelled() && self.0.hooks.lock().hooks.remove(&id).is_some() {
            hook();
        }
        HookGuard { cancel: self.clone(), id }
    }
}

/// Keeps a hook registered.
pub struct HookGuard {
    cancel: Cancel,
    id: u64,
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        self.cancel.0.hooks.lock().hooks.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn hooks_run_once_and_not_after_their_guard() {
        let (cancel, count) = (Cancel::new(), Arc::new(AtomicUsize::new(0)));
        let counter = |count: &Arc<AtomicUsize>| {
            let count = count.clone();
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        let _kept = cancel.on_cancel(counter(&count));
        drop(cancel.on_cancel(counter(&count)));
        assert!(cancel.check().is_ok());
        cancel.cancel();
        cancel.cancel();
        let _late = cancel.on_cancel(counter(&count));
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert_eq!(cancel.check().unwrap_err().kind, Kind::Cancelled);
    }

    #[test]
    fn whoever_comes_first_decides() {
        let asked = Cancel::new();
        asked.cancel();
        assert_eq!(asked.commit().unwrap_err().kind, Kind::Cancelled);
        assert!(!asked.is_committed());

        let (committed, ran) = (Cancel::new(), Arc::new(AtomicUsize::new(0)));
        let counted = ran.clone();
        let _kept = committed.on_cancel(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        committed.commit().unwrap();
        committed.cancel();
        committed.commit().unwrap();
        assert!(committed.is_committed() && committed.check().is_ok());
        assert_eq!(ran.load(Ordering::SeqCst), 0, "what is being finished is not disturbed");
    }
}
