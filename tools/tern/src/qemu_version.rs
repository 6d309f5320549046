//! Which QEMU its arguments are for: one of them changed its spelling.

use std::process::Command;
use std::str::FromStr;

/// What QEMU is called: by most, by architecture, and by Red Hat.
const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "qemu-system-aarch64", "/usr/libexec/qemu-kvm"];

/// A version of QEMU; what follows the first two numbers never mattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    major: u32,
    minor: u32,
}

impl QemuVersion {
    /// The oldest one that does all that is needed.
    pub const OLDEST: Self = Self { major: 4, minor: 2 };
    /// Knows `reconnect-ms` of a socket chardev; `reconnect` in seconds is gone some versions later.
    pub const RECONNECT_MS: Self = Self { major: 9, minor: 2 };

    /// That of the QEMU on this host, if there is one.
    pub fn installed() -> Option<Self> {
        PROGRAMS.iter().find_map(|program| {
            let output = Command::new(program).arg("--version").output().ok()?;
            let said = String::from_utf8(output.stdout).ok()?;
            said.split_once("version ")?.1.split_whitespace().next()?.parse().ok()
        })
    }
}

impl FromStr for QemuVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut numbers = text.split('.').map(str::parse);
        match (numbers.next(), numbers.next().unwrap_or(Ok(0))) {
            (Some(Ok(major)), Ok(minor)) => Ok(Self { major, minor }),
            _ => Err("give a version such as 9.2".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text: &str| text.parse::<QemuVersion>().unwrap();
        assert!(version("7.2.22") < version("9.2") && version("10.0.0") > version("9.2.1"));
        assert_eq!(version("10"), version("10.0"));
        for wrong in ["", "x", "9.x", "-1"] {
            wrong.parse::<QemuVersion>().unwrap_err();
        }
    }
}
