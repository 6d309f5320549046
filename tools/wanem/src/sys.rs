//! The system calls that no safe wrapper at hand covers: entering a namespace, making a TUN device, real-time priority, signals as
//! a descriptor.

use std::{
    fs::{File, OpenOptions},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
};

/// Moves the calling thread into the network namespace that `namespace` refers to. Run it in a thread of its own.
pub fn enter_network_namespace(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: `setns` takes a descriptor that is open for the length of the call and touches no memory of ours.
    let done = unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a TUN device (bare IP packets) in the calling thread's namespace. It goes when the file is closed.
///
/// # Errors
/// `InvalidInput` for a name that is empty or does not fit; `ResourceBusy` if the device exists and is in use.
pub fn open_tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/net/tun")?;
    let mut request = tun_request(name)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, exclusively borrowed for the length of the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, std::ptr::from_mut(&mut request)) };
    if done == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

fn tun_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // One byte is left for the terminating zero.
    let fits = !name.is_empty() && name.len() < request.ifr_name.len() && !name.contains(['%', '/', '\0']);
    if !fits {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no device name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    Ok(request)
}

/// Puts the calling thread into the lowest real-time class; processes it starts are ordinary again.
pub fn set_round_robin() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one `sched_param` for the calling thread (0) and keeps nothing.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, std::ptr::from_ref(&parameters)) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks SIGINT and SIGTERM for this thread and those it starts later; they are read from the descriptor instead.
pub fn termination_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set it is given; the other calls read it after that. Both signals are valid.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `signalfd` just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
