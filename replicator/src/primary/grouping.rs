//! A volume that is cut by itself, or with its group.

use super::group::{Asked, Made, Place, Seat};
use super::shell::Shell;
use crate::clock::unix_ms;
use replicator_engine::sender::{Action, Phase};
use replicator_engine::tracker::Epoch;
use std::io;
use std::time::Instant;

impl Shell {
    /// The volume's place in a group from now on, if it has one.
    pub(super) fn sit(&mut self, place: Option<Place>) {
        self.seat = place.map(|(cutter, member, inbox)| cutter.seat(member, (self.setup.intake.clone(), self.setup.lane), inbox));
        self.sender.request_cut();
    }

    /// What the sender wants, once the group has been asked about it.
    pub(super) fn in_step(&mut self, action: Action) -> io::Result<Action> {
        let Some(seat) = &mut self.seat else { return Ok(action) };
        // Before a recovery point is there, there is nothing to be cut with the others.
        let able = *self.sender.phase() == Phase::Online && self.sender.safe().is_some();
        if action != Action::Cut || !able {
            seat.set_busy(able);
            return Ok(action);
        }
        // Before the others wait for it.
        self.setup.epochs.lock().expect("no panic under this lock").cover(self.tracker.open_epoch() + 1)?;
        Ok(match seat.ask() {
            Asked::Alone => action,
            Asked::Wait => Action::Wait(u64::MAX),
            Asked::Cut(made) => {
                self.made = Some(made);
                action
            }
        })
    }

    /// Cuts, unless that was done with the group, or another standby's epoch is closing by now: then once more.
    pub(super) fn cut(&mut self, now_ms: u64) -> io::Result<()> {
        let made = self.made.take();
        // The size is looked at after the cut: the volume was at least so large for every write before it.
        let (epoch, size_bytes) = match made {
            Some(made) => (made.epoch, self.setup.image.size_bytes()),
            None => {
                // Held until the cut is made, and its size known: no other lane uses up the numbers, and a later epoch is not smaller.
                let mut numbers = self.setup.epochs.lock().expect("no panic under this lock");
                numbers.cover(self.tracker.open_epoch() + 1)?;
                let Some(epoch) = self.setup.intake.cut(self.setup.lane) else { return Ok(()) };
                (epoch, self.setup.image.size_bytes())
            }
        };
        self.sender.handle_resized(size_bytes);
        self.cut_times.push_back((epoch, Instant::now(), made.map_or_else(unix_ms, |made| made.unix_ms)));
        self.scheduling.dues.handle_cut(epoch);
        for snapshot in self.snapshots.iter_mut().filter(|snapshot| snapshot.epoch.is_none()) {
            snapshot.epoch = Some(epoch);
            (snapshot.on_cut)(epoch);
        }
        match made {
            Some(Made { cut, unix_ms, .. }) => self.sender.handle_group_cut(epoch, now_ms, cut, unix_ms),
            None => self.sender.handle_cut(epoch, now_ms),
        }
        Ok(())
    }

    /// The newest epoch that the standby has, with all before it; of a group, that it has of every member.
    pub(super) fn safe(&self) -> Option<Epoch> {
        let own = self.sender.safe()?;
        Some(self.seat.as_ref().map_or(own, |seat| seat.safe().min(own)))
    }

    /// Whether what is left to send fits the next epoch, of the whole group if there is one.
    pub(super) fn is_converged(&self, now_ms: u64) -> bool {
        self.sender.safe().is_some() && self.sender.is_converged(&self.tracker, now_ms) && self.seat.as_ref().is_none_or(Seat::is_together)
    }
}
