//! The system calls that decoding needs. All others answer ENOSYS, which the C library takes for an
//! old kernel and finds another way (it starts threads with `clone` when there is no `clone3`).
//!
//! A list of what is allowed, as a list of what is forbidden would leave each new call open. The
//! kernel remembers what the filter says of a call without regard to its arguments, so that those of
//! reading cost next to nothing.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule,
};

/// For every task. What opens, makes, renames and removes files is Landlock's matter.
const ALWAYS: &[c_long] = &[
    // Reading and writing what is open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_close_range,
    // Finding files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, and the end of the process and of its child.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_prctl,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_restart_syscall,
    // Signals of this process to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    // Waiting, and pipes between threads.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // Who, when, how much.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getsid,
    libc::SYS_getpgid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
];

/// The same by their first names, where a machine still has them.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(target_arch = "aarch64")]
const OLD: &[c_long] = &[libc::SYS_renameat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OLD: &[c_long] = &[];

/// For a tree that is put on the host: what no reader needs.
const EXTRACTING: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    // Of what cannot be opened, by its descriptor's path.
    libc::SYS_setxattr,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_mknodat,
];

/// Those that can also do harm, by an argument: its number, a mask, and what the masked bits are to be.
const SAFE_BY_ARGUMENT: &[(c_long, u8, u64, u64)] = &[
    // Not to be executed later.
    (libc::SYS_mmap, 2, libc::PROT_EXEC as u64, 0),
    (libc::SYS_mprotect, 2, libc::PROT_EXEC as u64, 0),
    // Threads, not name spaces, in which a user is root.
    (libc::SYS_clone, 0, NAME_SPACES, 0),
    (libc::SYS_socketpair, 0, u32::MAX as u64, libc::AF_UNIX as u64),
    // Limits and processors of this process, not of another one.
    (libc::SYS_prlimit64, 0, u32::MAX as u64, 0),
    (libc::SYS_sched_setaffinity, 0, u32::MAX as u64, 0),
];

const NAME_SPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What devices may be asked: sectors and size of a disk, the connection of a mount, a terminal's width and
/// echo. Not to carry out commands (SG_IO), and not to take something for typed by the user (TIOCSTI).
#[allow(clippy::unnecessary_cast, reason = "musl has another type for them")]
const REQUESTS: &[u64] = &[
    libc::TCGETS as u64,
    libc::TCSETS as u64,
    libc::TCSETSW as u64,
    libc::TCSETSF as u64,
    libc::TIOCGWINSZ as u64,
    libc::FIONBIO as u64,
    libc::FIOCLEX as u64,
    // uapi/linux/fs.h: BLKSSZGET, BLKGETSIZE64
    0x1268,
    0x8008_1272,
    // uapi/linux/fuse.h: FUSE_DEV_IOC_CLONE, _BACKING_OPEN, _BACKING_CLOSE
    0x8004_e500,
    0x4010_e501,
    0x4004_e502,
];

/// Requests of fcntl that let signals be sent to another process.
const OWNER_REQUESTS: [u64; 3] = [F_SETOWN, F_SETSIG, F_SETOWN_EX];
/// uapi/asm-generic/fcntl.h
const F_SETOWN: u64 = 8;
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;

/// Filters the calls of this thread and of those that it starts later.
pub(super) fn restrict(extraction: bool) -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    let extracting = if extraction { EXTRACTING } else { &[] };
    for &call in ALWAYS.iter().chain(OLD).chain(extracting) {
        rules.insert(call, Vec::new());
    }
    for &(call, argument, mask, value) in SAFE_BY_ARGUMENT {
        let condition = Condition::new(argument, Len::Qword, Op::MaskedEq(mask), value)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    let requested = |op, request| Condition::new(1, Len::Dword, op, request);
    let allowed = REQUESTS.iter().map(|&request| SeccompRule::new(vec![requested(Op::Eq, request)?]));
    rules.insert(libc::SYS_ioctl, allowed.collect::<Result<_, _>>()?);
    let others = OWNER_REQUESTS.into_iter().map(|request| requested(Op::Ne, request));
    rules.insert(libc::SYS_fcntl, vec![SeccompRule::new(others.collect::<Result<_, _>>()?)?]);
    // Signals to this process: what `abort` does, and a signal that is passed on to its default.
    let own = Condition::new(0, Len::Dword, Op::Eq, std::process::id().into())?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![own])?]);
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}
