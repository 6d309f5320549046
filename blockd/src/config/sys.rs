//! Users and groups by name, wherever the host keeps them: `getpwnam_r` and `getgrnam_r` ask what nsswitch.conf says.

use std::{ffi::CString, io, mem::MaybeUninit, ptr};

/// Enough for any entry that is asked for by name; a group's members are what takes space.
const ENTRY_BYTES: usize = 256 << 10;

/// A user's number; `None` if there is no such user.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES];
    let mut found = ptr::null_mut();
    // SAFETY: the name ends with a NUL; entry, buffer and found outlive the call, and the buffer's length is its own.
    let code = unsafe { libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if found.is_null() {
        return absent(code);
    }
    // SAFETY: a result that is not null points to the entry, which the call has filled.
    Ok(Some(unsafe { entry.assume_init() }.pw_uid))
}

/// A group's number; `None` if there is no such group.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES];
    let mut found = ptr::null_mut();
    // SAFETY: the name ends with a NUL; entry, buffer and found outlive the call, and the buffer's length is its own.
    let code = unsafe { libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if found.is_null() {
        return absent(code);
    }
    // SAFETY: a result that is not null points to the entry, which the call has filled.
    Ok(Some(unsafe { entry.assume_init() }.gr_gid))
}

/// No entry: an error, or there is none. Some systems report the latter as one of these errors (getpwnam_r(3), "ERRORS").
fn absent(code: libc::c_int) -> io::Result<Option<u32>> {
    match code {
        0 | libc::ENOENT | libc::ESRCH => Ok(None),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nobody_else_is_made_up() {
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(user_id("no such user").unwrap(), None);
        assert_eq!(group_id("no such group").unwrap(), None);
        assert!(user_id("a\0b").is_err());
    }
}
