//! The worker's process: started, spoken to until it is confined, kept, and buried.
//!
//! The keeper is a thread of its own for each worker: it starts the child, hands out what it says, and kills and reaps it at
//! the end. It must be the thread that starts the child, because a child that is to die with its parent dies with the
//! *thread* that made it.
//!
//! Invariant: no child outlives its keeper, and no keeper outlives its socket.

use super::connection::Connection;
use super::group::Group;
use super::{Options, Patience};
use crate::error::{Error, Result};
use crate::sandbox::{Level, ids};
use crate::wire::request::{Message, SETUP_BYTES_MAX, Start};
use crate::wire::{VERSION, frame, reply};
use crate::worker::{PASSED_MAX, pass};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// A worker that serves.
pub struct Started {
    /// The socket.
    pub connection: Arc<Connection>,
    /// The thread that keeps the process.
    pub keeper: JoinHandle<()>,
    /// What it says of its sandbox.
    pub level: Level,
    /// The child.
    pub process_id: u32,
}

/// Starts a worker and waits for its Hello.
pub fn start(options: Options) -> Result<Started> {
    if options.descriptors.len() > PASSED_MAX {
        return Err(Error::Limit(format!("a chain of more than {PASSED_MAX} files")));
    }
    if options.setup.len() > SETUP_BYTES_MAX {
        return Err(Error::Limit(format!("a description of more than {SETUP_BYTES_MAX} bytes")));
    }
    let (answer, started) = sync_channel(1);
    let keeper = thread::Builder::new()
        .name("guestfs-keeper".into())
        // It calls nothing deep; eight sessions should not cost sixteen megabytes.
        .stack_size(256 * 1024)
        .spawn(move || keep(options, &answer))
        .map_err(|error| Error::Io(format!("start a thread: {error}")))?;
    // The keeper always answers: its own waits have deadlines.
    let (connection, level, process_id) =
        started.recv().map_err(|_| Error::WorkerDied("its keeper has ended".into())).and_then(|answer| answer)?;
    Ok(Started { connection, keeper, level, process_id })
}

type Answer = Result<(Arc<Connection>, Level, u32)>;

fn keep(options: Options, answer: &SyncSender<Answer>) {
    let (mut child, socket) = match spawn(&options) {
        Ok(spawned) => spawned,
        Err(error) => {
            let _ = answer.send(Err(error));
            return;
        }
    };
    let process_id = child.id();
    let patience = options.patience;
    // Before it is told what to read. It goes with this function, after the process.
    let group = Group::around(process_id, options.bounds);
    let greeted = greet(&socket, process_id, options).and_then(|level| {
        let connection = Connection::new(socket, patience).map_err(|error| Error::Io(error.to_string()))?;
        Ok((Arc::new(connection), level.with_group(group.is_some())))
    });
    match greeted {
        Ok((connection, level)) => {
            // Nobody waits any more only when the caller was cancelled; then the socket's other users are none.
            if answer.send(Ok((connection.clone(), level, process_id))).is_err() {
                connection.end(Error::WorkerDied("nobody waits for it".into()));
            }
            let said = connection.receive();
            let died = bury(&mut child);
            connection.end(said.unwrap_or(Error::WorkerDied(died)));
        }
        Err(error) => {
            let died = bury(&mut child);
            // What it said is worth more than how it ended.
            let error = if error == gone() { Error::WorkerDied(died) } else { error };
            let _ = answer.send(Err(error));
        }
    }
}

/// Starts the program with one end of a socket pair as its standard input, and nothing else: no environment, no terminal.
fn spawn(options: &Options) -> Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| Error::Io(format!("make a socket pair: {error}")))?;
    let child = Command::new(&options.program)
        .args(&options.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::Io(format!("start the reader process {}: {error}", options.program.display())))?;
    Ok((child, ours))
}

/// Start and the descriptors, then Hello. The descriptors of this process are closed when it answers.
fn greet(mut socket: &UnixStream, process_id: u32, options: Options) -> Result<Level> {
    let Patience { start, .. } = options.patience;
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => silent(start),
        _ => gone(),
    };
    socket.set_read_timeout(Some(start)).and_then(|()| socket.set_write_timeout(Some(start))).map_err(io)?;
    let message = Message::Start(Start {
        version: VERSION,
        uid: ids::of_process(process_id),
        descriptors: options.descriptors.len() as u32,
        setup: options.setup,
    });
    let (tag, payload) = message.encode();
    // A worker that could not even begin has said why before it closed its end.
    let sent = frame::write(&mut socket, tag, &payload).and_then(|()| pass(socket, &options.descriptors));
    let heard = frame::read(&mut socket);
    match heard.map_err(|error| match error {
        frame::ReadError::Io(error) => io(error),
        frame::ReadError::Closed => gone(),
        frame::ReadError::Malformed(error) => Error::WorkerDied(format!("it broke the protocol: {}", error.0)),
    }) {
        Ok(frame) => match reply::Message::decode(&frame) {
            Ok(reply::Message::Hello { version: VERSION, level }) => {
                sent.map_err(io)?;
                socket.set_read_timeout(None).map_err(io)?;
                Ok(level)
            }
            Ok(reply::Message::Hello { version, .. }) => {
                Err(Error::WorkerDied(format!("it speaks version {version} of the protocol")))
            }
            Ok(reply::Message::Fatal { sandbox: true, text }) => Err(Error::Sandbox(text)),
            Ok(reply::Message::Fatal { sandbox: false, text }) => Err(Error::Io(text)),
            Ok(_) => Err(Error::WorkerDied("it broke the protocol: the first frame is not Hello".into())),
            Err(error) => Err(Error::WorkerDied(format!("it broke the protocol: {}", error.0))),
        },
        Err(error) => Err(error),
    }
}

fn gone() -> Error {
    Error::WorkerDied("it closed its socket".into())
}

fn silent(start: std::time::Duration) -> Error {
    Error::WorkerDied(format!("it was not ready within {} ms", start.as_millis()))
}

/// Kills the process if it still runs, waits for its end and says how it was.
fn bury(child: &mut Child) -> String {
    // It may be on its way out by itself: the socket closes a moment before the process ends, and how it ended is worth knowing.
    for _ in 0..20 {
        match child.try_wait() {
            Ok(None) => thread::sleep(std::time::Duration::from_millis(5)),
            _ => break,
        }
    }
    // Fails only when it has ended already.
    let _ = child.kill();
    match child.wait() {
        Ok(status) => describe(status),
        Err(error) => format!("wait for it: {error}"),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (_, Some(libc::SIGSYS)) => "it made a system call that the sandbox forbids".into(),
        (_, Some(libc::SIGKILL)) => "it was killed".into(),
        (_, Some(signal)) => format!("it ended by signal {signal}"),
        (None, None) => "it ended".into(),
    }
}
