//! Landlock: which files and connections are left, enforced by the kernel as far as it can.

use super::roots::{Reading, Roots, SYSTEM};
use super::{SandboxError, failed};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::{Path, PathBuf};

/// The newest that this list of rights was made for. Later ones would close what we did not think of.
const ABI_KNOWN: ABI = ABI::V6;
/// What the C library and RocksDB look at beside the system's directories, where there is such a thing: randomness, the host's resolver.
const ALSO_READ: [&str; 4] = ["/dev/random", "/dev/urandom", "/dev/zero", "/run/systemd/resolve"];
/// Often a link to what resolvconf or NetworkManager write below /run.
const RESOLVER: &str = "/etc/resolv.conf";
/// Programs that may be executed: what imports images, found on the path, and what the kernel loads it with.
const IMPORTER: &str = "qemu-img";
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
/// Names are looked up by TCP, too, when an answer is long.
const DNS_PORT: u16 = 53;

/// Everything that is done to files of an image's, a socket's, or RocksDB's kind: no devices are made, nothing is executed.
fn file_work() -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI_KNOWN) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock)
}

/// Opens what the rules are about.
pub(super) fn ruleset(roots: &Roots) -> Result<RulesetCreated, SandboxError> {
    rules(roots).map_err(|error| failed("landlock")(&error))
}

fn rules(roots: &Roots) -> Result<RulesetCreated, landlock::RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let readable: Vec<PathBuf> = match roots.reading() {
        Reading::Everything => vec!["/".into()],
        Reading::System => SYSTEM.into_iter().chain(ALSO_READ).map(PathBuf::from).chain(resolver(Path::new(RESOLVER))).collect(),
    };
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::ConnectTcp)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(beneath(roots.writable(), file_work()))?
        .add_rules(beneath(&readable, read))?
        .add_rules(beneath(&["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rules(beneath(&executables(), AccessFs::Execute | AccessFs::ReadFile))?
        .add_rule(NetPort::new(DNS_PORT, AccessNet::ConnectTcp))
}

/// Where the file really lies: its directory, because it is replaced, not written to. Not a whole top directory.
fn resolver(file: &Path) -> Option<PathBuf> {
    let directory = file.canonicalize().ok()?.parent()?.to_owned();
    (directory.components().count() > 2).then_some(directory)
}

/// A rule for each path that is there.
fn beneath(
    paths: &[impl AsRef<Path>],
    access: impl Into<BitFlags<AccessFs>>,
) -> impl Iterator<Item = Result<PathBeneath<PathFd>, landlock::RulesetError>> {
    landlock::path_beneath_rules(paths, access)
}

fn executables() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let importer = std::env::split_paths(&path).map(|directory| directory.join(IMPORTER)).find(|program| program.is_file());
    importer.into_iter().chain(LOADERS.map(PathBuf::from)).collect()
}

/// Whether the kernel has Landlock at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enforced {
    /// As far as its version goes.
    Yes,
    /// It has none.
    No,
}

/// Closes everything else, for this thread and those that it will start.
pub(super) fn restrict(ruleset: RulesetCreated) -> Result<Enforced, SandboxError> {
    let status = ruleset.restrict_self().map_err(|error| failed("landlock")(&error))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(Enforced::Yes),
        RulesetStatus::PartiallyEnforced => {
            tracing::info!(landlock = ?status.landlock, "files: restricted as far as this kernel can; newer ones can more");
            Ok(Enforced::Yes)
        }
        RulesetStatus::NotEnforced => {
            tracing::warn!("files: not restricted, this kernel has no Landlock: the unit's own restrictions and file modes remain");
            Ok(Enforced::No)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_found_behind_its_link_and_opens_no_top_directory() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("run/manager");
        std::fs::create_dir_all(&real).unwrap();
        std::fs::write(real.join("resolv.conf"), "").unwrap();
        let link = directory.path().join("resolv.conf");
        std::os::unix::fs::symlink(real.join("resolv.conf"), &link).unwrap();
        assert_eq!(resolver(&link), Some(real));
        assert_eq!(resolver(Path::new("/etc/hosts")), None);
        assert_eq!(resolver(&directory.path().join("none")), None);
    }
}
