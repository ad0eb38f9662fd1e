//! A session that is used now and then, and is not to end in between.
//!
//! A server ends a session after half an hour without a call (the administrator's setting), and a disk is copied for hours
//! without one: VDDK reads in a session of its own. What lives here: a call every few minutes. What does not: the one new
//! login of a session that ended all the same (`client`).
//!
//! Invariant: no call is made once the session was ended or let go; a call would log in again, and that session would stay.

use crate::client::Vim;
use parking_lot::Mutex;
use sendense_block::Cancel;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A sixth of the half hour after which servers end a session as they are delivered: some calls may fail.
const PERIOD: Duration = Duration::from_secs(5 * 60);

/// A session that stays alive until this is dropped.
pub struct KeptAlive {
    vim: Arc<Vim>,
    caller: Mutex<Option<Caller>>,
}

struct Caller {
    stop: Sender<()>,
    cancel: Cancel,
    thread: JoinHandle<()>,
}

impl KeptAlive {
    /// Keeps a session alive.
    pub fn new(vim: Vim) -> Self {
        Self::calling_every(PERIOD, vim)
    }

    pub(crate) fn calling_every(period: Duration, vim: Vim) -> Self {
        let vim = Arc::new(vim);
        let (stop, stopped) = channel();
        let cancel = Cancel::new();
        let (session, cancelled) = (vim.clone(), cancel.clone());
        let call = move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = session.keep_alive(&cancelled) {
                    // Whoever needs the session next meets the same trouble, or logs in again.
                    tracing::debug!(address = session.address(), %error, "keep a session alive");
                }
            }
        };
        let named = thread::Builder::new().name("vim-alive".into()).spawn(call);
        let caller = match named {
            Ok(thread) => Some(Caller { stop, cancel, thread }),
            Err(error) => {
                // Without a thread the session may end; then it costs one new login.
                tracing::warn!(%error, "no thread to keep a session alive");
                None
            }
        };
        Self { vim, caller: Mutex::new(caller) }
    }

    /// Ends the session.
    pub fn log_out(&self, cancel: &Cancel) {
        self.stop();
        self.vim.log_out(cancel);
    }

    fn stop(&self) {
        let Some(Caller { stop, cancel, thread }) = self.caller.lock().take() else { return };
        cancel.cancel();
        drop(stop);
        // A call is given up within moments; a thread that panicked makes no more.
        let _ = thread.join();
    }
}

impl Deref for KeptAlive {
    type Target = Vim;

    fn deref(&self) -> &Vim {
        &self.vim
    }
}

impl Drop for KeptAlive {
    fn drop(&mut self) {
        self.stop();
    }
}
