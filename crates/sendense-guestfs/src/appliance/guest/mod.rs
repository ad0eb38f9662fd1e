//! The agent: the first and only program of the guest. It greets the hub before the disk is attached, then answers as a worker
//! does, with the guest's kernel as its reader.
//!
//! What a hostile disk makes of it is the guest's trouble: outside, its words are checked like any worker's.
//!
//! Invariant: the hub has been greeted before the module that finds the disk is loaded.

mod devices;
mod kernel;
mod left;
mod mounted;
mod partitions;

use crate::error::{Error, Result};
use crate::native::{Engine, Readers};
use crate::sandbox::Level;
use crate::wire::{VERSION, frame, reply};
use crate::worker::serve;
use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// The whole life of the agent. When it ends the guest's kernel has lost its first process, and ends too.
pub fn run() -> ExitCode {
    if let Err(error) = live() {
        kernel::say(&format!("the agent has ended: {error}"));
    }
    // Does not come back.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    ExitCode::FAILURE
}

fn live() -> Result<()> {
    kernel::mount_own_files()?;
    let mut line = if kernel::has_port() { port()? } else { serial_line()? };
    let (tag, payload) = reply::Message::Hello { version: VERSION, level: kernel::level() }.encode();
    frame::write(&mut line, tag, &payload).map_err(|error| Error::Io(error.to_string()))?;
    let (inside, outside) = UnixStream::pair().map_err(|error| Error::Io(error.to_string()))?;
    relay(line, outside)?;
    let engine = Engine::with_finder(Box::new(devices::discover), Readers::default());
    serve(&inside, engine)
}

/// The serial line, as a plain stream of bytes.
fn serial_line() -> Result<File> {
    let fault = |errno: rustix::io::Errno| Error::Io(format!("open the serial line: {errno}"));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let line = rustix::fs::open("/dev/ttyS0", flags, Mode::empty()).map_err(fault)?;
    let mut modes = tcgetattr(&line).map_err(fault)?;
    modes.make_raw();
    tcsetattr(&line, OptionalActions::Now, &modes).map_err(fault)?;
    Ok(line.into())
}

/// A virtual machine's port to the hub, which is a plain stream of bytes. It shows a moment after its driver is there.
fn port() -> Result<File> {
    /// Most of it would be the time of a machine that has stopped.
    const TRIES: u32 = 2000;
    kernel::load("line");
    for _ in 0..TRIES {
        let ports = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let mut ports = ports.filter(|entry| entry.file_name().to_string_lossy().starts_with("vport"));
        if let Some(port) = ports.next() {
            return File::options()
                .read(true)
                .write(true)
                .open(port.path())
                .map_err(|error| Error::Io(format!("open the port to the hub: {error}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Error::Io("the machine has no port to the hub".into()))
}

/// Carries bytes between the line and the server's socket: the server waits on sockets, and a line is none.
fn relay(line: File, socket: UnixStream) -> Result<()> {
    let fault = |error: std::io::Error| Error::Io(format!("split the serial line: {error}"));
    let (line_in, socket_in) = (line.try_clone().map_err(fault)?, socket.try_clone().map_err(fault)?);
    std::thread::spawn(move || {
        carry(line_in, &socket_in);
        // The hub has gone: the server ends with its socket.
        let _ = socket_in.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || carry(socket, &line));
    Ok(())
}

/// Until either side ends.
fn carry(mut from: impl Read, mut to: impl Write) {
    /// A frame of a file's content in one go.
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) if to.write_all(&buffer[..read]).is_ok() => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

impl Level {
    /// What the process outside has put into the guest's command line.
    fn of_command_line(line: &str) -> Level {
        let number = line.split_whitespace().find_map(|word| word.strip_prefix("sendense_level="));
        Level::from_bits(number.and_then(|number| number.parse().ok()).unwrap_or_default())
    }
}
