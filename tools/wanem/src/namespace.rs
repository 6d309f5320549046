//! The two namespaces and the TUN device in each.
//!
//! Namespaces are those of `ip netns`. A device lives as long as its file is open, so nothing is left behind by a crash but
//! the namespaces; those that were made here are removed when [`Namespaces`] is dropped.

use std::{
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    thread,
};

use crate::{
    error::{Error, Result},
    sys,
};

/// Where `ip netns` keeps its namespaces.
const NETNS_DIR: &str = "/run/netns";
/// Packets that the kernel keeps for us to read: a burst, not a second queue in front of the link's own.
const DEVICE_QUEUE_PACKETS: u32 = 1_000;
/// The column of `/proc/net/dev` that counts what the device could not queue for us.
const TX_DROPPED_COLUMN: usize = 11;

/// The name of a network namespace: one path component that is no option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceName(String);

impl NamespaceName {
    /// Where the namespace is bound.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.0)
    }
}

impl FromStr for NamespaceName {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let fits = (1..=200).contains(&text.len()) && text.chars().all(plain) && !text.starts_with(['-', '.']);
        if fits { Ok(Self(text.into())) } else { Err("a namespace's name is letters, digits, '.', '_' and '-'") }
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address and the length of its network's prefix, such as `10.99.0.1/30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The device's own address.
    pub address: IpAddr,
    /// The length of the prefix in bits.
    pub prefix_bits: u8,
}

impl FromStr for Cidr {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        const WANTED: &str = "an address is written with its prefix, such as 10.99.0.1/30";
        let (address, prefix) = text.split_once('/').ok_or(WANTED)?;
        let address: IpAddr = address.parse().map_err(|_| WANTED)?;
        let prefix_bits: u8 = prefix.parse().map_err(|_| WANTED)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix_bits <= most { Ok(Self { address, prefix_bits }) } else { Err(WANTED) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// What to do about a namespace that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make it, and remove it in the end.
    Create,
    /// Say so and stop.
    Refuse,
}

/// The namespaces that this process made. Dropping it removes them.
#[derive(Debug, Default)]
pub struct Namespaces {
    created: Vec<NamespaceName>,
}

impl Namespaces {
    /// Sees to it that `name` exists.
    ///
    /// # Errors
    /// [`Error::NoNamespace`] if it does not and `missing` says to refuse; [`Error::Ip`].
    pub fn ensure(&mut self, name: &NamespaceName, missing: Missing) -> Result<()> {
        if name.path().exists() {
            return Ok(());
        }
        if missing == Missing::Refuse {
            return Err(Error::NoNamespace { name: name.to_string() });
        }
        ip(&["netns", "add", &name.0], "")?;
        self.created.push(name.clone());
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.created {
            if let Err(error) = ip(&["netns", "delete", &name.0], "") {
                eprintln!("wanem: {error}");
            }
        }
    }
}

/// One end of the WAN as it should be.
#[derive(Debug, Clone)]
pub struct End {
    /// Where the device lives.
    pub namespace: NamespaceName,
    /// The device's addresses.
    pub addresses: Vec<Cidr>,
    /// The device's name, the same at both ends.
    pub device: String,
    /// The largest IP packet in bytes.
    pub mtu_bytes: u32,
}

/// An open TUN device and its kernel counters.
#[derive(Debug)]
pub struct Device {
    /// Packets, one a read and one a write; non-blocking.
    pub tun: File,
    name: String,
    /// `/proc/net/dev` as the device's namespace shows it.
    statistics: File,
}

impl Device {
    /// Makes the device of `end`, gives it its addresses and brings it up, and `lo` beside it.
    ///
    /// # Errors
    /// [`Error::Io`] if the device cannot be made, [`Error::Ip`] if it cannot be set up.
    pub fn open(end: &End) -> Result<Self> {
        let (tun, statistics) = open_inside(end)?;
        let End { namespace, addresses, device, mtu_bytes } = end;
        let mut script = format!("link set dev lo up\nlink set dev {device} mtu {mtu_bytes} txqueuelen {DEVICE_QUEUE_PACKETS}\n");
        if Path::new("/proc/sys/net/ipv6").exists() {
            // No link-local address and no router solicitations: the counters show what the tests sent.
            script += &format!("link set dev {device} addrgenmode none\n");
        }
        for address in addresses {
            script += &format!("addr add {address} dev {device}\n");
        }
        script += &format!("link set dev {device} up\n");
        ip(&["-n", &namespace.0, "-batch", "-"], &script)?;
        Ok(Self { tun, name: device.clone(), statistics })
    }

    /// How many packets the kernel dropped because they were not read in time; `None` if it does not say.
    pub fn dropped_packets(&mut self) -> Option<u64> {
        let mut text = String::new();
        self.statistics.seek(SeekFrom::Start(0)).ok()?;
        self.statistics.read_to_string(&mut text).ok()?;
        let columns = text.lines().find_map(|line| line.trim_start().strip_prefix(&self.name)?.strip_prefix(':'))?;
        columns.split_ascii_whitespace().nth(TX_DROPPED_COLUMN)?.parse().ok()
    }
}

/// Runs `work` in the namespace `name`, in a thread that ends with it. Sockets made there belong to the namespace wherever
/// they are used afterwards.
///
/// # Errors
/// [`Error::Io`] if the namespace does not exist or cannot be entered.
pub fn inside<T: Send>(name: &NamespaceName, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = name.path();
    let namespace = File::open(&path).map_err(Error::io(path.display().to_string()))?;
    let entered = || {
        sys::enter_network_namespace(&namespace).map_err(Error::io(format!("entering namespace {name}")))?;
        Ok(work())
    };
    // A panic in there goes on here.
    thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens what must be opened in the device's namespace.
fn open_inside(end: &End) -> Result<(File, File)> {
    inside(&end.namespace, || {
        let tun = sys::open_tun(&end.device).map_err(Error::io(format!("TUN device {} in namespace {}", end.device, end.namespace)))?;
        let statistics = File::open("/proc/thread-self/net/dev").map_err(Error::io("/proc/thread-self/net/dev"))?;
        Ok((tun, statistics))
    })?
}

/// Runs iproute2's `ip` with `script` as its input.
fn ip(arguments: &[&str], script: &str) -> Result<()> {
    let what = || format!("ip {}", arguments.join(" "));
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("ip (package iproute2)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If `ip` ended early, its message says why; the broken pipe does not.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io(what()))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Ip { command: what(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory_or_become_options() {
        assert!("site-a.1".parse::<NamespaceName>().is_ok());
        for bad in ["", "..", ".x", "-batch", "a/b", "a b", "a\nb"] {
            assert!(bad.parse::<NamespaceName>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(200).parse::<NamespaceName>().is_ok());
        assert!("x".repeat(201).parse::<NamespaceName>().is_err());
    }

    #[test]
    fn addresses_have_a_prefix_that_fits() {
        assert_eq!("10.99.0.1/30".parse::<Cidr>().unwrap().to_string(), "10.99.0.1/30");
        assert!("fd00::1/128".parse::<Cidr>().is_ok());
        for bad in ["10.99.0.1", "10.99.0.1/33", "fd00::1/129", "10.99.0/24", "10.99.0.1/-1", "10.99.0.1/30\nlink"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }
}
