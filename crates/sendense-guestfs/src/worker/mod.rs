//! The process that reads a guest's disk: started by the hub with nothing but a socket as its standard input, it takes over
//! the descriptors of the disk, confines itself, and serves until the socket closes.
//!
//! One thread does everything, so that not even a thread can be started once it is confined. A panic ends the process.
//!
//! Invariant: no byte of the disk is read before the sandbox stands.

mod descriptors;
mod server;

pub use descriptors::{PASSED_MAX, pass};
// An appliance is started, greets and serves as a worker does.
pub(crate) use descriptors::{close_strays, take};
pub(crate) use server::serve;

use crate::error::{Error, Result};
use crate::native::{Engine, Readers};
use crate::sandbox;
use crate::wire::request::{Message, Start};
use crate::wire::{VERSION, frame, reply};
use sendense_block::ReadAt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

/// The whole life of a worker. `open` makes the disk of the descriptors and of what the hub said about them; it runs in the
/// sandbox, because images in a repository are not trusted either.
///
/// Call it first thing in the process, before any thread is started.
pub fn run(
    readers: Readers,
    open: impl FnOnce(Vec<OwnedFd>, &[u8]) -> std::result::Result<Arc<dyn ReadAt>, String>,
) -> ExitCode {
    let Ok(socket) = standard_input() else { return ExitCode::FAILURE };
    match live(&socket, readers, open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_words(&socket, &error);
            ExitCode::FAILURE
        }
    }
}

fn live(
    socket: &UnixStream,
    readers: Readers,
    open: impl FnOnce(Vec<OwnedFd>, &[u8]) -> std::result::Result<Arc<dyn ReadAt>, String>,
) -> Result<()> {
    descriptors::close_strays(socket)?;
    die_of_panics(socket)?;
    let start = start(socket)?;
    let passed = descriptors::take(socket, start.descriptors)?;
    let level = sandbox::enter(start.uid)?;
    let disk = open(passed, &start.setup).map_err(Error::Io)?;
    let hello = reply::Message::Hello { version: VERSION, level };
    let (tag, payload) = hello.encode();
    frame::write(&mut &*socket, tag, &payload).map_err(|error| Error::Io(error.to_string()))?;
    server::serve(socket, Engine::new(disk, readers))
}

/// The socket, as an owned descriptor of its own.
pub(crate) fn standard_input() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

pub(crate) fn start(mut socket: &UnixStream) -> Result<Start> {
    let frame = frame::read(&mut socket).map_err(|error| Error::Io(error.to_string()))?;
    match Message::decode(&frame) {
        Ok(Message::Start(start)) if start.version == VERSION => Ok(start),
        Ok(Message::Start(start)) => {
            Err(Error::Io(format!("the hub speaks version {} of the protocol", start.version)))
        }
        Ok(_) => Err(Error::Io("the first frame is not Start".into())),
        Err(error) => Err(Error::Io(error.to_string())),
    }
}

/// A panic says why and ends the process at once: a reader that has lost its way must not read on.
pub(crate) fn die_of_panics(socket: &UnixStream) -> Result<()> {
    let socket = socket.try_clone().map_err(|error| Error::Io(error.to_string()))?;
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or("panic without words");
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        last_words(&socket, &Error::Io(format!("panic: {text}{place}")));
        std::process::abort();
    }));
    Ok(())
}

/// Tells the hub why there will be no more; it may not be listening.
pub(crate) fn last_words(mut socket: &UnixStream, error: &Error) {
    let sandbox = matches!(error, Error::Sandbox(_));
    let text = match error {
        Error::Sandbox(text) | Error::Io(text) => text.clone(),
        other => other.to_string(),
    };
    let (tag, payload) = reply::Message::Fatal { sandbox, text }.encode();
    let _ = frame::write(&mut socket, tag, &payload);
    let _ = socket.flush();
}
