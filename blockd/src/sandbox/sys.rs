//! Installing a filter, and the signal by which the kernel asks what to answer a refused call with.

use seccompiler::BpfProgramRef;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Not slower than without a filter on kernels that would otherwise switch a mitigation on for filtered processes (before 5.16).
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
/// What `si_code` is when a filter sent the signal, and no process.
const SYS_SECCOMP: libc::c_int = 1;
/// Where `si_syscall` lies in a `siginfo_t` of SIGSYS: after three numbers, padding, and the address of the call.
const SI_SYSCALL_OFFSET: usize = 24;
/// Numbers of calls that were told, one bit each. Larger ones share the last word's bits.
static TOLD: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

#[repr(C)]
struct Program {
    len: u16,
    instructions: *const seccompiler::sock_filter,
}

/// Puts a filter onto this thread; `no_new_privs` is set.
pub(super) fn install(program: BpfProgramRef<'_>) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = Program { len, instructions: program.as_ptr() };
    // SAFETY: the kernel copies `len` instructions, laid out as it defines them, from a slice that outlives the call.
    let code = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, &raw const program) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a call without arguments that matter.
#[cfg(test)]
pub(super) fn call(number: libc::c_long) -> io::Result<libc::c_long> {
    call_with(number, [0; 3])
}

/// Makes a call whose arguments are numbers.
#[cfg(test)]
pub(super) fn call_with(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    let [first, second, third] = arguments;
    // SAFETY: nothing is passed that the kernel could write to.
    let code = unsafe { libc::syscall(number, first, second, third) };
    if code == -1 { Err(io::Error::last_os_error()) } else { Ok(code) }
}

/// From now on a refused call returns ENOSYS, and the first one of its number is told on standard error.
pub(super) fn answer_refused_calls() -> io::Result<()> {
    // SAFETY: all zeroes are a valid action without a handler; the handler is then set together with the flag that gives it its arguments.
    let code = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = answer as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs as a signal handler in the thread that made the call: no allocation, no lock, errno left as it was.
/// Another process's signal of that number interrupts anything at all: there is no call to answer, and no register to change.
extern "C" fn answer(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t.
    if unsafe { (*info).si_code } != SYS_SECCOMP {
        return;
    }
    // SAFETY: the kernel passes a siginfo_t of SIGSYS, which is longer than this offset and has the call's number there.
    let call = unsafe { info.cast::<u8>().add(SI_SYSCALL_OFFSET).cast::<i32>().read() };
    let (word, bit) = ((call.unsigned_abs() as usize / 64).min(TOLD.len() - 1), 1 << (call.unsigned_abs() % 64));
    if TOLD[word].fetch_or(bit, Relaxed) & bit == 0 {
        tell(call);
    }
    // SAFETY: the kernel passes the interrupted thread's registers, and restores them from here: this is the call's return value.
    unsafe { set_result(&mut *context.cast::<libc::ucontext_t>(), -i64::from(libc::ENOSYS)) }
}

#[cfg(target_arch = "x86_64")]
fn set_result(context: &mut libc::ucontext_t, result: i64) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = result;
}

#[cfg(target_arch = "aarch64")]
fn set_result(context: &mut libc::ucontext_t, result: i64) {
    context.uc_mcontext.regs[0] = result.cast_unsigned();
}

/// In one piece: other threads write, too.
fn tell(call: i32) {
    const LINE: &[u8] = b"blockd: the sandbox refused system call        ; please report it, blockd goes on\n";
    const LAST_DIGIT: usize = 45;
    let mut line = [0; LINE.len()];
    line.copy_from_slice(LINE);
    let mut rest = call.unsigned_abs();
    for at in (LAST_DIGIT - 5..=LAST_DIGIT).rev() {
        line[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    // SAFETY: the line is readable as a whole; write(2) may be called in a signal handler, and errno is put back.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        *libc::__errno_location() = errno;
    }
}
