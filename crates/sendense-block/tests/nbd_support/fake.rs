//! A server that says what its script tells it to, right or wrong.

use sendense_block::nbd::frame::{self, OptionReply, ReplyHeader, Request, info, option, option_reply};
use sendense_block::nbd::{Options, Uri};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

pub const SIZE: u64 = 1 << 20;
/// The numbers that the fake gives to `base:allocation` and to the first bitmap.
pub const BASE: u32 = 7;
pub const BITMAP: u32 = 9;

pub struct Fake {
    socket: PathBuf,
    _dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// Serves one connection by a script. Whatever the script leaves open stays open until the client leaves, so that
    /// the client cannot mistake the end of the script for the end of the connection.
    pub fn serve(script: impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fake");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut peer = Peer { stream };
            // Clients that found out hang up on us; that is no failure of the script.
            if script(&mut peer).is_ok() {
                peer.hold();
            }
        });
        Self { socket, _dir: dir, thread: Some(thread) }
    }

    /// Serves requests on an export of [`SIZE`] bytes, structured or not, with both contexts.
    pub fn requests(structured: bool, script: impl FnOnce(&mut Peer) -> io::Result<()> + Send + 'static) -> Self {
        Self::serve(move |peer| {
            peer.negotiate(structured)?;
            script(peer)
        })
    }

    pub fn options(&self) -> Options {
        Options {
            contexts: vec!["qemu:dirty-bitmap:b".into()],
            handshake_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ..Options::new(Uri::unix(&self.socket, "x").unwrap())
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // If no client ever came, the thread still waits for one.
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the fake server's script failed");
        }
    }
}

pub struct Peer {
    pub stream: UnixStream,
}

impl Peer {
    pub fn give(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Waits for the client to leave.
    pub fn hold(&mut self) {
        let _ = io::copy(&mut self.stream, &mut io::sink());
    }

    pub fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    pub fn greet(&mut self) -> io::Result<()> {
        self.give(&frame::MAGIC_SERVER.to_be_bytes())?;
        self.give(&frame::MAGIC_OPTION.to_be_bytes())?;
        self.give(&(frame::FLAG_FIXED_NEWSTYLE | frame::FLAG_NO_ZEROES).to_be_bytes())?;
        assert_eq!(self.take(4)?, [0, 0, 0, 3]);
        Ok(())
    }

    /// The client's next option and its payload.
    pub fn option(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let head = self.take(frame::OPTION_BYTES)?;
        assert_eq!(head[..8], frame::MAGIC_OPTION.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        Ok((number(8), self.take(number(12) as usize)?))
    }

    pub fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        let head = OptionReply { option, kind, len: payload.len() as u32 }.encode();
        self.give(&[&head[..], payload].concat())
    }

    pub fn ack(&mut self, option: u32) -> io::Result<()> {
        self.reply(option, option_reply::ACK, &[])
    }

    /// Greets and answers options until `stop` comes, which is left unanswered.
    pub fn until(&mut self, stop: u32, structured: bool) -> io::Result<()> {
        self.greet()?;
        loop {
            match self.option()?.0 {
                found if found == stop => return Ok(()),
                option::STRUCTURED_REPLY if structured => self.ack(option::STRUCTURED_REPLY)?,
                option::SET_META_CONTEXT => {
                    self.context(BASE, "base:allocation")?;
                    self.context(BITMAP, "qemu:dirty-bitmap:b")?;
                    self.ack(option::SET_META_CONTEXT)?;
                }
                other => self.reply(other, option_reply::ERR_UNSUP, &[])?,
            }
        }
    }

    pub fn context(&mut self, id: u32, name: &str) -> io::Result<()> {
        let payload = [&id.to_be_bytes()[..], name.as_bytes()].concat();
        self.reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, &payload)
    }

    pub fn negotiate(&mut self, structured: bool) -> io::Result<()> {
        self.until(option::GO, structured)?;
        self.export(SIZE, !frame::export_flags::READ_ONLY)?;
        self.block_sizes(1, 4096, 1 << 20)?;
        self.ack(option::GO)
    }

    pub fn export(&mut self, size: u64, flags: u16) -> io::Result<()> {
        let payload = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        self.reply(option::GO, option_reply::INFO, &payload)
    }

    pub fn block_sizes(&mut self, minimum: u32, preferred: u32, maximum: u32) -> io::Result<()> {
        let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
        self.reply(option::GO, option_reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())
    }

    pub fn request(&mut self) -> io::Result<Request> {
        let bytes = self.take(frame::REQUEST_BYTES)?;
        Ok(Request::decode(&bytes.try_into().unwrap()).unwrap())
    }

    pub fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> io::Result<()> {
        self.give(&[&ReplyHeader::Simple { error, cookie }.encode()[..], data].concat())
    }

    pub fn chunk(&mut self, cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> io::Result<()> {
        let head = ReplyHeader::Chunk { flags, kind, cookie, len: payload.len() as u32 }.encode();
        self.give(&[&head[..], payload].concat())
    }
}

/// The payload of a data chunk.
pub fn data(at: u64, bytes: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], bytes].concat()
}

/// The payload of a hole chunk.
pub fn hole(at: u64, len: u32) -> Vec<u8> {
    [&at.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

/// The payload of an error chunk.
pub fn error(errno: u32, message: &[u8]) -> Vec<u8> {
    [&errno.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message].concat()
}

/// The payload of a status chunk.
pub fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let extents = extents.iter().flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat());
    context.to_be_bytes().into_iter().chain(extents).collect()
}
