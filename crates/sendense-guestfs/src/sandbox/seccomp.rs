//! The system calls a worker may make. Any other ends the process.
//!
//! Names can be asked about through `newfstatat` and `statx` with `AT_EMPTY_PATH`, because that is how the C library and the
//! standard library learn the size of an open file; the filter cannot look at the name. Such a call opens nothing, and in an
//! empty root folder it finds nothing.
//!
//! Invariant: nothing on the list opens, connects, signals, starts, maps code or changes who the process is.

use crate::error::{Error, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Calls that are harmless whatever their arguments.
const PLAIN: [libc::c_long; 32] = [
    // What is open: the disk and the socket.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_fstat,
    libc::SYS_fadvise64,
    libc::SYS_close,
    // Memory; mapping is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Locks, time, chance.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // The end, and the way there of a program that aborts or overflows its stack.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
];

/// Sets the filter.
///
/// # Errors
/// [`Error::Sandbox`]: the kernel has no seccomp or does not allow it, or the processor is unknown.
pub fn apply() -> Result<()> {
    let filter = filter().map_err(|error| Error::Sandbox(format!("build the seccomp filter: {error}")))?;
    seccompiler::apply_filter(&filter).map_err(|error| Error::Sandbox(format!("set the seccomp filter: {error}")))
}

fn filter() -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    // An empty list of rules means: always.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PLAIN.iter().map(|call| (*call, Vec::new())).collect();
    let exec = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(&[(2, SeccompCmpOp::MaskedEq(exec), 0)])?]);
    }
    let empty_path = libc::AT_EMPTY_PATH as u64;
    rules.insert(libc::SYS_newfstatat, vec![rule(&[(3, SeccompCmpOp::MaskedEq(empty_path), empty_path)])?]);
    rules.insert(libc::SYS_statx, vec![rule(&[(2, SeccompCmpOp::MaskedEq(empty_path), empty_path)])?]);
    // Whether a descriptor is open: the standard library asks before it closes one, where it is built with its own checks.
    rules.insert(libc::SYS_fcntl, vec![rule(&[(1, SeccompCmpOp::Eq, libc::F_GETFD as u64)])?]);
    // Its own limits, downwards or up to the hard ones.
    rules.insert(libc::SYS_prlimit64, vec![rule(&[(0, SeccompCmpOp::Eq, 0)])?]);
    // abort() signals itself and nobody else.
    let (own, abort) = (u64::from(std::process::id()), libc::SIGABRT as u64);
    rules.insert(libc::SYS_tgkill, vec![rule(&[(0, SeccompCmpOp::Eq, own), (2, SeccompCmpOp::Eq, abort)])?]);
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

/// All of the conditions must hold.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> std::result::Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions
        .iter()
        .map(|(argument, op, value)| SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value));
    SeccompRule::new(conditions.collect::<std::result::Result<_, _>>()?)
}
