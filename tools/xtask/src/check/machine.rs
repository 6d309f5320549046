//! What this machine can do: looked at once, before anything runs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cargo_tools;
use crate::workspace::Workspace;

/// Programs that the end-to-end tests drive, with the Debian package of each.
const CLIENTS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("fio", "fio"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Directories of programs that an ordinary user's path may lack.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The findings.
#[derive(Debug)]
pub struct Machine {
    /// cargo-nextest, if it is installed.
    pub nextest: bool,
    /// Why tests that make network namespaces cannot run, if they cannot.
    pub no_namespaces: Option<String>,
    /// Debian packages whose programs the end-to-end tests miss.
    pub missing_packages: Vec<&'static str>,
}

impl Machine {
    /// Looks around.
    pub fn probe(workspace: &Workspace) -> Self {
        let in_system_dir = |program: &str| SYSTEM_DIRS.iter().any(|dir| PathBuf::from(dir).join(program).is_file());
        let there = |program: &str| cargo_tools::find(workspace, program).is_some() || in_system_dir(program);
        Self {
            nextest: there("cargo-nextest"),
            no_namespaces: no_namespaces(),
            missing_packages: CLIENTS.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect(),
        }
    }
}

fn no_namespaces() -> Option<String> {
    if !succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]) {
        Some("not root".to_owned())
    } else if !succeeds("unshare", &["--net", "true"]) {
        Some("this kernel or container does not allow network namespaces".to_owned())
    } else {
        None
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
