//! The faults of one site's disk: a fuse that blows after so many operations, errors, no room.

use crate::plant::Plant;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io;
use std::sync::Mutex;

/// What is done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Sync,
}

/// See the module's documentation.
pub struct Faults {
    plant: Option<Plant>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// Writes and syncs until the power goes.
    fuse: Option<u32>,
    errors_per_thousand: u32,
    full: bool,
    slow: bool,
    /// The next sync fails, and no other.
    fails_to_sync: bool,
    injected: u64,
}

impl Faults {
    /// None yet.
    pub fn new(seed: u64, plant: Option<Plant>) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            fuse: None,
            errors_per_thousand: 0,
            full: false,
            slow: false,
            fails_to_sync: false,
            injected: 0,
        };
        Self { plant, state: Mutex::new(state) }
    }

    /// The bug that is planted.
    pub fn plant(&self) -> Option<Plant> {
        self.plant
    }

    /// The disk is used: whether that works.
    pub fn meet(&self, access: Access) -> io::Result<()> {
        let state = &mut *self.state.lock().unwrap();
        if let Some(left) = &mut state.fuse {
            if *left == 0 {
                return Err(io::Error::other("the power is gone"));
            }
            *left -= u32::from(access != Access::Read);
        }
        if state.full && access == Access::Write {
            state.injected += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if access == Access::Sync && std::mem::take(&mut state.fails_to_sync) {
            state.injected += 1;
            return Err(io::Error::other("the disk fails to sync"));
        }
        if state.errors_per_thousand > 0 && state.rng.random_range(0..1000) < state.errors_per_thousand {
            state.injected += 1;
            return Err(io::Error::other("the disk fails"));
        }
        Ok(())
    }

    /// How much of something is done before a fault: less than all of it.
    pub fn part_of(&self, all: usize) -> usize {
        self.state.lock().unwrap().rng.random_range(0..all.max(1))
    }

    /// The power goes after so many writes and syncs.
    pub fn light_fuse(&self, operations: u32) {
        self.state.lock().unwrap().fuse = Some(operations);
    }

    /// Whether the power is gone.
    pub fn is_out(&self) -> bool {
        self.state.lock().unwrap().fuse == Some(0)
    }

    /// The power is back.
    pub fn replace_fuse(&self) {
        self.state.lock().unwrap().fuse = None;
    }

    /// Of a thousand operations so many fail from now on.
    pub fn set_errors(&self, per_thousand: u32) {
        self.state.lock().unwrap().errors_per_thousand = per_thousand;
    }

    /// The next sync fails, and no other.
    pub fn fail_next_sync(&self) {
        self.state.lock().unwrap().fails_to_sync = true;
    }

    /// There is no room, or there is again.
    pub fn toggle_full(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        state.full = !state.full;
        state.full
    }

    /// Each operation takes long, or it does not any more.
    pub fn toggle_slow(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        state.slow = !state.slow;
        state.slow
    }

    /// Whether nothing comes back from the disk yet.
    pub fn stalls(&self) -> bool {
        let state = &mut *self.state.lock().unwrap();
        state.slow && state.rng.random_bool(0.9)
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        let mut state = self.state.lock().unwrap();
        (state.fuse, state.errors_per_thousand, state.full, state.slow, state.fails_to_sync) = (None, 0, false, false, false);
    }

    /// Operations that failed.
    pub fn injected(&self) -> u64 {
        self.state.lock().unwrap().injected
    }
}
