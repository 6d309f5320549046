//! Two real daemons on this host, and a client that remembers what it wrote.
//!
//! The programs come from `$TERN_BIN_DIR`, where the gate and `make` put it, else from beside the test's own directory.

mod client;
mod disk;
mod guest;
mod history;
mod in_flight;
mod nbd_client;
mod postgres;
mod qmp;
mod relay;
mod shop;
mod site;
mod three;

pub use client::{client, is_installed, try_client};
pub use disk::Disk;
pub use guest::{Guest, guest_parts, guest_script};
pub use history::History;
pub use in_flight::InFlight;
pub use nbd_client::NbdClient;
pub use postgres::{Postgres, postgres_programs};
pub use qmp::Qmp;
pub use relay::{Linked, Relay};
pub use shop::{Flush, Shop, count, while_counting};
pub use site::{Pair, Site, program};
pub use three::{Three, in_sync, replica};

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// For anything that should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns when the condition holds; panics if that takes too long.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How often a test does its worst: `KILLS=1000 cargo test --release -p tern-tests --test kills` is a long run.
pub fn rounds(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|count| count.parse().ok()).unwrap_or(default)
}

/// Another dice each time; its seed is in the test's output. What the programs do at that moment no seed repeats.
pub fn dice() -> StdRng {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}
