//! Seccomp: which system calls are left.
//!
//! Three filters, the strictest answer counts:
//! - what only an attacker would call ends the process;
//! - what is not listed is refused as though the kernel did not have it, and said once in the log: a C library that tries something new
//!   falls back, and a release that forgot to list a call limps instead of dying under its guests;
//! - new namespaces and unusual kinds of sockets are refused silently: libraries ask for them and go on without.
//!
//! No filter looks at the arguments of a call on the hot path, so that the kernel keeps its answer in a bitmap and runs no filter at all.

use super::{SandboxError, failed, sys};
use libc::*;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
use std::collections::BTreeMap;

/// What the daemon, the libraries below it, and `qemu-img` as its child call.
#[rustfmt::skip]
const ALLOWED: &[c_long] = &[
    // Data.
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2,
    SYS_lseek, SYS_fsync, SYS_fdatasync, SYS_sync_file_range, SYS_syncfs, SYS_fallocate, SYS_ftruncate, SYS_truncate,
    SYS_copy_file_range, SYS_sendfile, SYS_splice, SYS_tee, SYS_vmsplice, SYS_fadvise64, SYS_readahead,
    // Rings.
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_io_setup, SYS_io_submit, SYS_io_getevents, SYS_io_cancel, SYS_io_destroy,
    // Files.
    SYS_openat, SYS_openat2, SYS_close, SYS_close_range, SYS_dup, SYS_dup3, SYS_fcntl, SYS_flock, SYS_ioctl,
    SYS_newfstatat, SYS_fstat, SYS_statx, SYS_statfs, SYS_fstatfs, SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_getdents64,
    SYS_getcwd, SYS_renameat, SYS_renameat2, SYS_unlinkat, SYS_mkdirat, SYS_linkat, SYS_symlinkat, SYS_utimensat, SYS_umask,
    SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_memfd_create, SYS_fgetxattr, SYS_getxattr,
    // Memory.
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_msync, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_munlock,
    SYS_mlockall, SYS_munlockall, SYS_mseal, SYS_membarrier, SYS_mbind, SYS_get_mempolicy, SYS_set_mempolicy, SYS_move_pages,
    // Threads, and the child that imports.
    SYS_clone, SYS_clone3, SYS_execve, SYS_wait4, SYS_waitid, SYS_exit, SYS_exit_group, SYS_futex, SYS_futex_waitv, SYS_set_robust_list,
    SYS_get_robust_list, SYS_rseq, SYS_set_tid_address, SYS_gettid, SYS_getpid, SYS_getppid, SYS_getpgid, SYS_getsid, SYS_tgkill, SYS_tkill,
    SYS_kill, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam,
    SYS_sched_setparam, SYS_sched_getscheduler, SYS_sched_setscheduler, SYS_sched_getattr, SYS_sched_setattr,
    SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_getpriority, SYS_setpriority, SYS_ioprio_get, SYS_ioprio_set, SYS_getcpu,
    SYS_prctl, SYS_prlimit64, SYS_getrlimit, SYS_setrlimit, SYS_getrusage, SYS_sysinfo, SYS_uname, SYS_getrandom,
    SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getgroups, SYS_getresuid, SYS_getresgid, SYS_capget,
    // Signals.
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait, SYS_rt_sigsuspend,
    SYS_rt_tgsigqueueinfo, SYS_sigaltstack, SYS_signalfd4, SYS_restart_syscall,
    // Time.
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_times,
    SYS_timer_create, SYS_timer_settime, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete,
    SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime,
    // Waiting.
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_ppoll, SYS_pselect6, SYS_eventfd2, SYS_pipe2,
    SYS_inotify_init1, SYS_inotify_add_watch, SYS_inotify_rm_watch,
    // Network.
    SYS_socket, SYS_socketpair, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_connect, SYS_getsockname, SYS_getpeername,
    SYS_getsockopt, SYS_setsockopt, SYS_sendto, SYS_sendmsg, SYS_sendmmsg, SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg, SYS_shutdown,
];

/// Older names of the same, which x86-64 still has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_OLD: &[c_long] = &[
    SYS_open, SYS_creat, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_rename, SYS_unlink, SYS_mkdir, SYS_rmdir, SYS_link, SYS_symlink,
    SYS_chmod, SYS_chown, SYS_lchown, SYS_getdents, SYS_dup2, SYS_pipe, SYS_poll, SYS_select, SYS_epoll_create, SYS_epoll_wait, SYS_eventfd,
    SYS_signalfd, SYS_vfork, SYS_fork, SYS_time, SYS_alarm, SYS_arch_prctl, SYS_getpgrp, SYS_utimes, SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[];

/// What nothing here ever calls, and whoever breaks in might.
#[rustfmt::skip]
const DEADLY: &[c_long] = &[
    // Other processes, the kernel itself.
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_pidfd_getfd, SYS_kcmp, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_syslog, SYS_acct, SYS_swapon, SYS_swapoff,
    SYS_add_key, SYS_request_key, SYS_keyctl, SYS_quotactl, SYS_open_by_handle_at,
    // Another view of the system.
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_unshare, SYS_setns, SYS_move_mount, SYS_open_tree, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_sethostname, SYS_setdomainname, SYS_settimeofday, SYS_clock_settime, SYS_adjtimex, SYS_clock_adjtime,
    // More rights.
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_setgroups, SYS_capset,
    SYS_mknodat, SYS_execveat,
];

const NAMESPACES: [c_int; 7] = [CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP];
const SOCKETS: [c_int; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];

/// From now on, for this thread and those that it will start.
pub(super) fn restrict() -> Result<(), SandboxError> {
    let programs = filters().map_err(|error| failed("seccomp")(&error))?;
    sys::answer_refused_calls().map_err(|error| failed("seccomp")(&error))?;
    for program in &programs {
        match sys::install(program) {
            Err(error) if matches!(error.raw_os_error(), Some(ENOSYS | EINVAL)) => {
                tracing::warn!("system calls: not restricted, this kernel has no seccomp filters");
                return Ok(());
            }
            installed => installed.map_err(|error| failed("seccomp")(&error))?,
        }
    }
    Ok(())
}

/// Each is installed on top of those before it.
fn filters() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let plain = |calls: &[c_long]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let allowed = [ALLOWED, ALLOWED_OLD].concat();
    Ok([
        compile(plain(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        compile(refused_silently()?, SeccompAction::Allow, SeccompAction::Errno(ENOSYS as u32))?,
        compile(plain(&[&allowed, DEADLY].concat()), SeccompAction::Trap, SeccompAction::Allow)?,
    ])
}

fn compile(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, otherwise, listed, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// clone3 hides its flags behind a pointer: the C library falls back to clone, whose flags can be seen.
fn refused_silently() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let condition = |operator, value: c_int| SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value as u64 & 0xffff_ffff);
    let namespace = |flag| SeccompRule::new(vec![condition(SeccompCmpOp::MaskedEq(flag as u64 & 0xffff_ffff), flag)?]);
    let namespaces = NAMESPACES.into_iter().map(namespace).collect::<Result<Vec<_>, _>>()?;
    let unusual = SOCKETS.into_iter().map(|family| condition(SeccompCmpOp::Ne, family)).collect::<Result<Vec<_>, _>>()?;
    Ok(BTreeMap::from([(SYS_clone3, Vec::new()), (SYS_clone, namespaces), (SYS_socket, vec![SeccompRule::new(unusual)?])]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_allowed_or_deadly_and_listed_once() {
        let all = [ALLOWED, ALLOWED_OLD, DEADLY].concat();
        let once: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(once.len(), all.len());
    }

    #[test]
    fn the_filters_fit_into_the_kernel() {
        for program in filters().unwrap() {
            assert!((1..4096).contains(&program.len()), "{}", program.len());
        }
    }
}
