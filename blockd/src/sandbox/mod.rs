//! What the daemon gives up before it looks at anything that others wrote: guests, clients and peers are hostile until shown otherwise.
//!
//! | layer | what is left |
//! | --- | --- |
//! | user | the one of the key `user`; without it, whoever started the daemon |
//! | capabilities | of root's, those for files of other owners and for ports below 1024; of another user's, none |
//! | files (Landlock) | [`Roots`]: the state directory, sockets and backings; the system for reading; nothing to execute but `qemu-img` |
//! | network (Landlock) | no outgoing TCP but DNS; signals to this process only |
//! | system calls (seccomp) | what a storage daemon needs; an answer of "no such call" or death for the rest |
//!
//! Invariants: [`enter`] runs before the process has a second thread, because every layer is inherited, and none reaches back: if there is one
//! all the same, a library's, the daemon does not start, for that thread would stay root. What a
//! kernel does not have is left out with one line in the log; what fails though the kernel has it ends the start.
//!
//! io_uring's operations pass by seccomp, not by the other layers. See `docs/decisions/0012-sandbox.md`.

mod files;
mod privileges;
mod roots;
mod sys;
mod syscalls;
#[cfg(test)]
mod tests;

pub use privileges::RunAs;
pub use roots::{OutsideRoots, Roots};

use crate::config::Config;
use crate::daemon::state_dir::{StateDir, StateDirError};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Only root may become somebody else.
    #[error("user {0}: only root can become another user: start blockd as root, or as {0} and without this key")]
    NotRoot(String),
    /// A directory of the list is not there.
    #[error("sandbox.paths: {path}: {source}: make it, or take it from the list", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is none and it cannot be made.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// A layer that this kernel has refused to work.
    #[error("sandbox: {layer}: {why}: [danger_zone] no_sandbox = true starts blockd without one")]
    Layer {
        /// Which.
        layer: &'static str,
        /// What the system said.
        why: String,
    },
}

fn failed(layer: &'static str) -> impl Fn(&dyn std::fmt::Display) -> SandboxError {
    move |why| SandboxError::Layer { layer, why: why.to_string() }
}

/// Fails if the process has a second thread.
fn alone() -> Result<(), SandboxError> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => Ok(()),
        Ok(count) => Err(failed("threads")(&format_args!("there are {count} already, perhaps of this host's user database"))),
        Err(error) => Err(failed("threads")(&format_args!("/proc/self/task: {error}"))),
    }
}

/// Gives everything up, and says what can still be reached.
pub fn enter(config: &Config) -> Result<Roots, SandboxError> {
    let admin_dir = config.admin.parent().unwrap_or(Path::new("/"));
    if StateDir::make(&config.state_dir)?
        && let Some(user) = &config.user
    {
        chown(&config.state_dir, Some(user.uid), Some(user.gid)).map_err(|error| failed("user")(&error))?;
    }
    if config.danger_zone.no_sandbox {
        tracing::warn!("no sandbox: [danger_zone] no_sandbox is set");
        privileges::become_user(config.user.as_ref())?;
        return Ok(Roots::everything());
    }
    alone()?;
    let roots = Roots::find(config.sandbox_paths.as_deref(), &[&config.state_dir, admin_dir])?;
    // Looked up with the rights of the old user, enforced on the new one.
    let ruleset = files::ruleset(&roots)?;
    privileges::become_user(config.user.as_ref())?;
    privileges::drop_capabilities()?;
    files::restrict(ruleset)?;
    syscalls::restrict()?;
    Ok(roots)
}
