//! What a request asks for, checked.
//!
//! What lives here: a request's header to a value that can be carried out, or the error number that it deserves
//! (`doc/proto.md`, sections "Request types" and "Error values"). What does not: payloads and work. Invariant: the range of
//! an [`Ask`] lies inside the export.

use crate::extent::Extent;
use crate::nbd::frame::{Command, Request, command_flags, errno};
use crate::nbd::server::options::REQUEST_BYTES_MAX;
use crate::units::{ByteLen, ByteOffset};

/// What the checks need to know of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    /// Whether `base:allocation` was agreed on.
    pub(super) allocation: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Read { range: Extent, whole: bool },
    Write { range: Extent, durable: bool },
    Zero { range: Extent, durable: bool, allocated: bool },
    Trim { range: Extent, durable: bool },
    Flush,
    Cache { range: Extent },
    Status { range: Extent, one: bool },
    Disconnect,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: u32,
    pub(super) words: &'static str,
}

const fn refusal(errno: u32, words: &'static str) -> Refusal {
    Refusal { errno, words }
}

pub(super) fn check(request: &Request, facts: &Facts) -> Result<Ask, Refusal> {
    let Some(command) = Command::from_code(request.command) else {
        return Err(refusal(errno::EINVAL, "the command is not known"));
    };
    if command == Command::Disconnect {
        return Ok(Ask::Disconnect);
    }
    // "Valid for all commands"; without effect on those that write nothing.
    let known = command_flags::FUA
        | match command {
            Command::Read => command_flags::DF,
            Command::WriteZeroes => command_flags::NO_HOLE,
            Command::BlockStatus => command_flags::REQ_ONE,
            _ => 0,
        };
    let has = |flag: u16| request.flags & flag != 0;
    if has(!known) {
        return Err(refusal(errno::EINVAL, "the command has a flag that it cannot have"));
    }
    let writes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
    if writes && facts.read_only {
        return Err(refusal(errno::EPERM, "the export is for reading only"));
    }
    if command == Command::Flush {
        return Ok(Ask::Flush);
    }
    let range = Extent::new(ByteOffset(request.offset), ByteLen(request.len.into()))
        .filter(|range| range.end().0 <= facts.size)
        .ok_or_else(|| match command {
            Command::Write | Command::WriteZeroes => refusal(errno::ENOSPC, "the range passes the end of the export"),
            _ => refusal(errno::EINVAL, "the range passes the end of the export"),
        })?;
    let durable = has(command_flags::FUA);
    match command {
        Command::Read if range.len().0 > REQUEST_BYTES_MAX => {
            Err(refusal(errno::EINVAL, "the read is longer than the largest request"))
        }
        Command::Read if has(command_flags::DF) && !facts.structured => {
            Err(refusal(errno::EINVAL, "DF needs structured replies"))
        }
        Command::Read => Ok(Ask::Read { range, whole: has(command_flags::DF) || !facts.structured }),
        Command::Write => Ok(Ask::Write { range, durable }),
        Command::WriteZeroes => Ok(Ask::Zero { range, durable, allocated: has(command_flags::NO_HOLE) }),
        Command::Trim => Ok(Ask::Trim { range, durable }),
        Command::Cache => Ok(Ask::Cache { range }),
        Command::BlockStatus if !facts.allocation => Err(refusal(errno::EINVAL, "no metadata context was chosen")),
        Command::BlockStatus if range.is_empty() => Err(refusal(errno::EINVAL, "nothing has no status")),
        Command::BlockStatus => Ok(Ask::Status { range, one: has(command_flags::REQ_ONE) }),
        Command::Flush | Command::Disconnect => Err(refusal(errno::EINVAL, "answered above")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::frame::command_flags as flag;
    use proptest::prelude::*;

    const OPEN: Facts = Facts { size: 1000, read_only: false, structured: true, allocation: true };

    fn ask(command: Command, flags: u16, offset: u64, len: u32) -> Request {
        Request { flags, command: command.code(), cookie: 1, offset, len }
    }

    fn refused(request: &Request, facts: &Facts) -> u32 {
        check(request, facts).expect_err("this must be refused").errno
    }

    #[test]
    fn each_fault_has_its_number() {
        for command in [Command::Read, Command::Cache, Command::Trim, Command::BlockStatus] {
            assert_eq!(refused(&ask(command, 0, 999, 2), &OPEN), errno::EINVAL, "{command:?}");
            assert_eq!(refused(&ask(command, 0, u64::MAX, 2), &OPEN), errno::EINVAL, "{command:?}");
        }
        for command in [Command::Write, Command::WriteZeroes] {
            assert_eq!(refused(&ask(command, 0, 999, 2), &OPEN), errno::ENOSPC, "{command:?}");
            assert!(check(&ask(command, flag::FUA, 998, 2), &OPEN).is_ok());
        }
        let closed = Facts { read_only: true, ..OPEN };
        for command in [Command::Write, Command::WriteZeroes, Command::Trim] {
            assert_eq!(refused(&ask(command, 0, 0, 1), &closed), errno::EPERM, "{command:?}");
        }
        let large = Facts { size: 1 << 40, ..OPEN };
        assert_eq!(refused(&ask(Command::Read, 0, 0, (32 << 20) + 1), &large), errno::EINVAL);
        assert!(check(&ask(Command::Read, 0, 0, 32 << 20), &large).is_ok());
        assert!(check(&ask(Command::WriteZeroes, 0, 0, u32::MAX), &large).is_ok());
        assert!(check(&ask(Command::BlockStatus, 0, 0, u32::MAX), &large).is_ok());
        assert_eq!(refused(&ask(Command::BlockStatus, 0, 5, 0), &OPEN), errno::EINVAL);
        assert_eq!(refused(&ask(Command::BlockStatus, 0, 0, 5), &Facts { allocation: false, ..OPEN }), errno::EINVAL);
        let simple = Facts { structured: false, ..OPEN };
        assert_eq!(refused(&ask(Command::Read, flag::DF, 0, 5), &simple), errno::EINVAL);
        let Ok(Ask::Read { whole: true, .. }) = check(&ask(Command::Read, 0, 0, 5), &simple) else {
            panic!("a simple reply is whole");
        };
        for (command, flags) in [
            (Command::Read, flag::NO_HOLE),
            (Command::Write, flag::DF),
            (Command::WriteZeroes, flag::FAST_ZERO),
            (Command::Flush, 1 << 15),
            (Command::BlockStatus, flag::DF),
        ] {
            assert_eq!(refused(&ask(command, flags, 0, 5), &OPEN), errno::EINVAL, "{command:?} {flags}");
        }
        assert_eq!(refused(&Request { command: 8, ..ask(Command::Read, 0, 0, 1) }, &OPEN), errno::EINVAL);
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_inside(
            flags: u16, command in 0u16..10, offset in prop_oneof![0u64..3000, any::<u64>()],
            len in prop_oneof![0u32..3000, any::<u32>()], read_only: bool, structured: bool, allocation: bool,
        ) {
            let facts = Facts { size: 2000, read_only, structured, allocation };
            if let Ok(
                Ask::Read { range, .. } | Ask::Write { range, .. } | Ask::Zero { range, .. } | Ask::Trim { range, .. }
                | Ask::Cache { range } | Ask::Status { range, .. },
            ) = check(&Request { flags, command, cookie: 0, offset, len }, &facts) {
                prop_assert!(range.end().0 <= 2000);
                prop_assert_eq!(range.start().0, offset);
                prop_assert_eq!(range.len().0, u64::from(len));
            }
        }
    }
}
