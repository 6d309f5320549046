//! Two real daemons on this host, and a client that remembers what it wrote.
//!
//! The programs come from `$TERN_BIN_DIR`, where the gate and `make` put it, else from beside the test's own directory.

mod history;
mod nbd_client;
mod site;

pub use history::History;
pub use nbd_client::NbdClient;
pub use site::{Pair, Site};

use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::{SystemTime, UNIX_EPOCH};

/// Another dice each time; its seed is in the test's output. What the programs do at that moment no seed repeats.
pub fn dice() -> StdRng {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}
