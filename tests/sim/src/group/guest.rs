//! Clients that write to any member, one write after the other, and what they were told.

use super::BLOCKS;
use super::member::{Admitted, Member};
use super::standby::Point;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator_engine::block::{BlockNumber, Run};
use replicator_engine::tracker::Write;

/// Counts what happens in the world: whatever has the greater number happened later.
pub type Moment = u64;

/// A write that has reached the image.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Its content: no other write has it.
    pub content: u64,
    pub began: Moment,
    /// When the client was told; `None`: it never was.
    pub told: Option<Moment>,
}

enum Under {
    Nothing,
    /// It waits to join an epoch.
    Begun(usize, BlockNumber, Moment),
    /// It waits for what it would overwrite to be kept.
    Parked(usize, Write, Moment),
    /// It is on its way to the image.
    Submitted(usize, Write, Moment),
}

/// See the module's documentation.
pub struct Client {
    under: Under,
}

impl Default for Client {
    fn default() -> Self {
        Self { under: Under::Nothing }
    }
}

impl Client {
    /// Does the next thing to its write, if it can.
    pub fn step(&mut self, members: &mut [Member], dice: &mut StdRng, now_ms: u64, moment: &mut Moment) {
        *moment += 1;
        self.under = match std::mem::replace(&mut self.under, Under::Nothing) {
            Under::Nothing => Under::Begun(dice.random_range(0..members.len()), dice.random_range(0..BLOCKS), *moment),
            Under::Begun(at, block, began) => {
                members[at].tracker.set_now(now_ms);
                match members[at].admit(Run { start: block, len: 1 }) {
                    Some(Admitted::Ready(write)) => Under::Submitted(at, write, began),
                    Some(Admitted::Parked(write)) => Under::Parked(at, write, began),
                    // It is held.
                    None => Under::Begun(at, block, began),
                }
            }
            Under::Parked(at, write, began) => match members[at].keep_frozen(write) {
                Ok(write) => Under::Submitted(at, write, began),
                Err(write) => Under::Parked(at, write, began),
            },
            Under::Submitted(at, write, began) => {
                members[at].written(write.run().start, Written { content: *moment, began, told: Some(*moment) });
                members[at].tracker.finish_write(write);
                Under::Nothing
            }
        };
    }

    /// Nobody is told of what was under way, which may have reached the image.
    pub fn handle_crash(&mut self, members: &mut [Member], dice: &mut StdRng, moment: &mut Moment) {
        *moment += 1;
        if let Under::Submitted(at, write, began) = std::mem::replace(&mut self.under, Under::Nothing)
            && dice.random()
        {
            members[at].written(write.run().start, Written { content: *moment, began, told: None });
        }
    }
}

/// Panics if a write is in these states of all members, and one is not that was acknowledged before that one began.
pub fn check_order(members: &[Member], points: &[&Point]) {
    let (mut newest_began, mut first_missing) = (0, Moment::MAX);
    for (member, point) in members.iter().zip(points) {
        for (shown, history) in point.content.iter().zip(&member.history) {
            let place = history.iter().position(|written| written.content == *shown);
            assert!(place.is_some() || *shown == 0, "content {shown} was never written there");
            newest_began = newest_began.max(place.map_or(0, |place| history[place].began));
            let missing = &history[place.map_or(0, |place| place + 1)..];
            first_missing = first_missing.min(missing.iter().filter_map(|written| written.told).min().unwrap_or(Moment::MAX));
        }
    }
    let epochs: Vec<_> = points.iter().map(|point| (point.epoch, point.group.map(|cut| cut.number))).collect();
    assert!(
        newest_began < first_missing,
        "a write that began at {newest_began} is there without one that was told at {first_missing}: {epochs:?}"
    );
}
