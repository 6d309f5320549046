//! Users and groups by name, wherever the host keeps them: `getpwnam_r` and `getgrnam_r` ask what nsswitch.conf says.

use std::{ffi::CString, io, mem::MaybeUninit, ptr};

/// Enough for any entry that is asked for by name; a group's members are what takes space.
const ENTRY_BYTES: usize = 256 << 10;

/// Most groups of one user.
const MAX_GROUPS: usize = 65_536;

/// A user's number and that of its first group; `None` if there is no such user.
pub fn user(name: &str) -> io::Result<Option<(u32, u32)>> {
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
    let entry = unsafe { entry.assume_init() };
    Ok(Some((entry.pw_uid, entry.pw_gid)))
}

/// All groups of a user, its first one among them.
pub fn groups(name: &str, first: u32) -> io::Result<Vec<u32>> {
    let name = CString::new(name)?;
    let mut groups = vec![0; MAX_GROUPS];
    let mut count = MAX_GROUPS as libc::c_int;
    // SAFETY: the name ends with a NUL; the buffer holds as many groups as the count says, and the call writes no more than that.
    let code = unsafe { libc::getgrouplist(name.as_ptr(), first, groups.as_mut_ptr(), &mut count) };
    if code < 0 {
        return Err(io::Error::other("it is in too many groups"));
    }
    groups.truncate(usize::try_from(count).unwrap_or(0));
    Ok(groups)
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
fn absent<T>(code: libc::c_int) -> io::Result<Option<T>> {
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
        assert_eq!(user("root").unwrap(), Some((0, 0)));
        assert!(groups("root", 0).unwrap().contains(&0));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(user("no such user").unwrap(), None);
        assert_eq!(group_id("no such group").unwrap(), None);
        assert!(user("a\0b").is_err());
    }
}
