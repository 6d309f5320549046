//! User, groups and capabilities. All of it is this thread's: the process has no other yet.

use super::{SandboxError, failed};
use rustix::fs::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// What root goes on with: backings and sockets of other owners, locked memory for rings, ports below 1024.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::NET_BIND_SERVICE);
/// Room for capabilities that later kernels will have.
const CAPABILITIES: u32 = 64;

/// The user that the daemon becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// As given.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

/// Becomes the user, for good. Capabilities go with root.
pub(super) fn become_user(user: Option<&RunAs>) -> Result<(), SandboxError> {
    let Some(user) = user else { return Ok(()) };
    let now = rustix::process::geteuid();
    if now.as_raw() == user.uid {
        return Ok(());
    }
    if !now.is_root() {
        return Err(SandboxError::NotRoot(user.name.clone()));
    }
    let failed = |error: rustix::io::Errno| failed("user")(&error);
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)
}

/// Keeps what was there of [`KEPT`]; nothing that is executed later gets more.
pub(super) fn drop_capabilities() -> Result<(), SandboxError> {
    let failed = |error: rustix::io::Errno| failed("capabilities")(&error);
    let had = capabilities(None).map_err(failed)?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        let beyond = |bit: &CapabilitySet| !KEPT.contains(*bit);
        for bit in (0..CAPABILITIES).map(|number| CapabilitySet::from_bits_retain(1 << number)).filter(beyond) {
            match remove_capability_from_bounding_set(bit) {
                // The kernel knows no such capability, nor any after it.
                Err(rustix::io::Errno::INVAL) => break,
                removed => removed.map_err(failed)?,
            }
        }
    }
    clear_ambient_capability_set().map_err(failed)?;
    let left = had.permitted & KEPT;
    set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() }).map_err(failed)?;
    set_no_new_privs(true).map_err(failed)
}
