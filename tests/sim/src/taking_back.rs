//! A guest that writes what was there before, between two standbys: one saw what it took back, the other one did not.
//!
//! So a block may differ in two copies although nothing of it ever came to the one that has the later epoch.

use crate::site::Crash;
use crate::storage::{SECTORS, Stamps};
use crate::world::{World, name};
use rand::RngExt;
use replicator_engine::block::BlockNumber;

/// Turns within which a standby has what was written.
const ARRIVING_TURNS: u32 = 100;
/// Turns within which a write is done.
const WRITING_TURNS: u32 = 40;
/// Blocks that are written again and again.
const HOT_BLOCKS: BlockNumber = 24;

impl World {
    /// Sometimes, and then the standby that did not see it is promoted.
    pub fn guest_takes_back(&mut self) {
        if !self.rng.random_bool(0.008) {
            return;
        }
        let Some(primary) = self.any_primary() else { return };
        let Some((late, early)) = self.two_standbys_of(primary) else { return };
        self.note(|| format!("the guest of {} takes back what {} has, and {} has not", name(primary), name(early), name(late)));
        let (block, stamp) = (self.rng.random_range(0..HOT_BLOCKS), self.stamps(SECTORS));
        let before = self.sites[primary].storage.image.view().get(&block).copied().unwrap_or_default();
        let is_back = self.bring(primary, late, block)
            && self.write_to(primary, block, std::array::from_fn(|sector| stamp + sector as u64))
            && self.bring(primary, early, block)
            && self.write_to(primary, block, before);
        if !is_back {
            return;
        }
        // What the late one has is not known exactly any more: it is asked.
        self.crash(primary, Crash::Process);
        self.sites[primary].restart();
        if self.bring(primary, late, block) {
            self.promote(late, None);
            self.follow_up(late, early);
        }
    }

    fn two_standbys_of(&mut self, primary: usize) -> Option<(usize, usize)> {
        let sites = 0..self.sites.len();
        let part = self.sites[primary].as_primary()?;
        let online: Vec<usize> = sites.filter(|site| part.to(*site).is_some_and(|replica| replica.is_online())).collect();
        let late = self.rng.random_range(0..online.len().max(1));
        let early = late + 1 + self.rng.random_range(0..online.len().max(2) - 1);
        (online.len() > 1).then(|| (online[late], online[early % online.len()]))
    }

    /// The guest writes a block; says whether that is done.
    fn write_to(&mut self, primary: usize, block: BlockNumber, content: Stamps) -> bool {
        self.sites[primary].as_primary().into_iter().for_each(|primary| primary.write_block(block, &content));
        for _ in 0..WRITING_TURNS {
            self.now_ms += 1;
            self.guest_progresses(primary);
            if self.sites[primary].as_primary().is_some_and(|primary| primary.is_done()) {
                break;
            }
        }
        self.sites[primary].storage.image.view().get(&block).copied().unwrap_or_default() == content
    }

    /// Data moves to this standby alone; says whether it has the block at last.
    fn bring(&mut self, primary: usize, standby: usize, block: BlockNumber) -> bool {
        for _ in 0..ARRIVING_TURNS {
            self.now_ms += 5;
            let Some(replica) = self.sites[primary].as_primary().and_then(|part| part.to_mut(standby)) else { return false };
            if replica.has(block) {
                return true;
            }
            replica.ask_for_cut();
            self.move_data_to(primary, standby);
        }
        false
    }
}
