//! Handing open files to a worker over its socket, and closing what it inherited by accident.
//!
//! The descriptors come by message instead of by inheritance: then the child is started without running any of our code
//! between fork and exec, and nothing that some other thread opened at the wrong moment slips in.
//!
//! Invariant: after [`close_strays`] and [`take`] the process holds standard input, output, error, its socket, and what was passed.

use crate::error::{Error, Result};
use nix::errno::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// How many descriptors a worker takes: a chain of 500 images and their side files is beyond what retention allows.
pub const PASSED_MAX: usize = 1000;
/// How many go with one message; the kernel takes 253.
const BATCH: usize = 128;

/// Sends descriptors, in order, behind a frame that said how many come.
///
/// # Errors
/// The socket's.
pub fn pass(socket: &UnixStream, descriptors: &[OwnedFd]) -> std::io::Result<()> {
    for batch in descriptors.chunks(BATCH) {
        let borrowed: Vec<BorrowedFd<'_>> = batch.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
        // A message needs a byte to travel with.
        sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives as many as were announced.
///
/// # Errors
/// [`Error::Io`] when fewer come.
pub fn take(socket: &UnixStream, announced: u32) -> Result<Vec<OwnedFd>> {
    let announced = announced as usize;
    if announced > PASSED_MAX {
        return Err(Error::Io(format!("{announced} descriptors; {PASSED_MAX} are the most")));
    }
    let mut taken = Vec::new();
    while taken.len() < announced {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| Error::Io(format!("receive descriptors: {errno}")))?;
        let before = taken.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                taken.extend(descriptors);
            }
        }
        if received.bytes != 1 || received.flags.contains(ReturnFlags::CTRUNC) || taken.len() == before {
            return Err(Error::Io("descriptors are missing; the limit on open files may be too low".into()));
        }
    }
    Ok(taken)
}

/// Closes everything but standard input, output, error and the socket. The hub marks all its descriptors "close on exec";
/// this is for those that a library of another language did not mark.
///
/// # Errors
/// The list of open descriptors cannot be read.
pub fn close_strays(socket: &UnixStream) -> Result<()> {
    let listing = |error: std::io::Error| Error::Io(format!("list the open descriptors: {error}"));
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .map_err(listing)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in open {
        if descriptor > 2 && descriptor != socket.as_raw_fd() {
            match nix::unistd::close(descriptor) {
                // The listing's own descriptor is in the list, and closed by now.
                Ok(()) | Err(Errno::EBADF) => {}
                Err(errno) => return Err(Error::Io(format!("close descriptor {descriptor}: {errno}"))),
            }
        }
    }
    Ok(())
}
