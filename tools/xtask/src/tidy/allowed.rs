//! The exceptions, each with its reason.

/// Hard limit on the lines of a Rust file.
pub const FILE_LINES: usize = 450;

/// A file that may be longer than [`FILE_LINES`], and up to where.
#[derive(Debug)]
pub struct LongFile {
    /// Relative to the root.
    pub path: &'static str,
    /// Its own limit, in lines.
    pub lines: usize,
    /// Why splitting it would make it harder to read.
    pub reason: &'static str,
}

/// Files that are longer for a reason.
pub const LONG_FILES: &[LongFile] = &[];

/// Module names that say nothing about what is inside.
pub const NAMELESS_MODULES: [&str; 6] = ["common", "helper", "helpers", "misc", "util", "utils"];

/// What vm-memory hands out pointers with. Everything else of it copies, and checks.
pub const GUEST_POINTERS: [&str; 3] = ["get_host_address", "ptr_guard", "ptr_guard_mut"];

/// Crates that must forbid unsafe code in their `lib.rs`.
pub const PURE_CRATES: [&str; 1] = ["replicator/engine"];

/// Text that belongs to one machine or one network, not to the project. Split, so that this file may be checked, too.
pub const FOREIGN_TEXT: [&str; 12] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("crates", ".io"),
    concat!("proxy.gol", "ang.org"),
    concat!("py", "pi.org"),
    concat!("npm", "js.org"),
    concat!("deb.deb", "ian.org"),
    concat!("snapshot.deb", "ian.org"),
    concat!("security.deb", "ian.org"),
    concat!("docker", ".io"),
];

/// Names of files that others write: a tool, or a lawyer.
pub const GENERATED_FILES: [&str; 2] = ["Cargo.lock", "LICENSE"];

/// Marks of unfinished work. An issue or a decision says what is missing, not the code.
pub const UNFINISHED_MARKS: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("Place", "holder.")];
