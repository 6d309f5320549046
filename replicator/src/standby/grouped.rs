//! What the standbys of a group's members tell each other: which cuts of the group they have committed.
//!
//! Until a newer cut is complete, every member keeps its part of the newest complete one, whatever its own points are thinned to. To have
//! little to keep beside that, folding waits a moment for the other members' parts.

use super::service::{Input, MAX_UNFOLDED_BYTES, Shell};
use super::{Standby, StandbyService};
use crate::disk::SegmentFiles;
use crate::undo::Point;
use replicator_engine::generation::Id;
use replicator_engine::group::GroupCut;
use replicator_engine::tracker::Epoch;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Cuts of a member that are remembered: more than can be under way.
const MAX_REMEMBERED: usize = 64;

/// For how long, and how often looked at, folding waits for the other members of a group.
const GROUP_PATIENCE: Duration = Duration::from_millis(500);
const GROUP_POLL: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub struct Board {
    group: Id,
    /// How many want every part kept that there is.
    kept_by: AtomicUsize,
    inner: Mutex<Inner>,
}

/// Until it is dropped, no member's part of any cut is thinned: what was listed can be opened at every member.
pub struct AllKept(Arc<Board>);

impl Drop for AllKept {
    fn drop(&mut self) {
        self.0.kept_by.fetch_sub(1, SeqCst);
    }
}

struct Inner {
    /// The newest cuts of each member, and when they were made; `None`: nobody knows yet.
    members: Vec<Option<VecDeque<Made>>>,
    complete: Option<Made>,
}

/// The number of a cut, and when it was made, by the primary's clock, in milliseconds since 1970.
type Made = (u64, u64);

impl Board {
    /// For a group of so many members.
    pub fn new(group: Id, members: usize) -> Self {
        Self { group, kept_by: AtomicUsize::new(0), inner: Mutex::new(Inner { members: vec![None; members], complete: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps every part of every cut for a moment.
    pub fn keep_all(self: &Arc<Self>) -> AllKept {
        self.kept_by.fetch_add(1, SeqCst);
        AllKept(self.clone())
    }

    /// The newest cut that every member has: its number, and when it was made, by the primary's clock, in milliseconds since 1970.
    pub fn complete(&self) -> Option<(u64, u64)> {
        self.lock().complete
    }
}

impl Inner {
    /// The newest cut that every member is known to have.
    fn common(&self) -> Option<Made> {
        let known = self.members.iter().map(Option::as_ref).collect::<Option<Vec<_>>>()?;
        let (first, others) = known.split_first()?;
        first.iter().rev().copied().find(|(cut, _)| others.iter().all(|other| other.iter().any(|(of, _)| of == cut)))
    }
}

/// On which board, and which member; `None`: in no group.
type Place = Option<(Arc<Board>, usize)>;

/// A member's place in a group, if it has one: it may change while the standby runs.
#[derive(Clone, Default)]
pub struct GroupPlace(Arc<Mutex<Place>>);

impl GroupPlace {
    /// The place with which a standby begins.
    pub fn new(place: Place) -> Self {
        Self(Arc::new(Mutex::new(place)))
    }

    /// From now on. Only for the thread that owns the standby.
    pub(crate) fn set(&self, place: Place) {
        *self.lock() = place;
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a group.
    pub(crate) fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether the part of this cut has to stay: it is of the newest complete one, or of one that may become that.
    pub(crate) fn holds(&self, cut: Option<GroupCut>) -> bool {
        let (Some(cut), Some((board, _))) = (cut, &*self.lock()) else { return false };
        let is_wanted = || board.kept_by.load(SeqCst) > 0 || board.complete().is_none_or(|(complete, _)| cut.number >= complete);
        cut.group == board.group && is_wanted()
    }

    /// Whether other members' parts of this cut are still to come.
    pub(crate) fn awaits(&self, cut: Option<GroupCut>) -> bool {
        let (Some(cut), Some((board, _))) = (cut, &*self.lock()) else { return false };
        cut.group == board.group && board.complete().is_some_and(|(complete, _)| cut.number > complete)
    }

    /// The member has committed an epoch.
    pub(crate) fn committed(&self, point: Point) {
        let Some((board, member)) = self.lock().clone() else { return };
        let Some(cut) = point.group.filter(|cut| cut.group == board.group) else { return };
        let mut inner = board.lock();
        let known = inner.members[member].get_or_insert_default();
        known.push_back((cut.number, point.cut_unix_ms));
        if known.len() > MAX_REMEMBERED {
            known.pop_front();
        }
        inner.complete = inner.common().max(inner.complete);
    }

    /// The member has these points, the oldest first.
    pub(crate) fn has(&self, points: impl DoubleEndedIterator<Item = Point>) {
        let Some((board, member)) = self.lock().clone() else { return };
        let made = |point: Point| point.group.filter(|cut| cut.group == board.group).map(|cut| (cut.number, point.cut_unix_ms));
        let mut newest: VecDeque<Made> = points.rev().filter_map(made).take(MAX_REMEMBERED).collect();
        newest.make_contiguous().reverse();
        let mut inner = board.lock();
        inner.members[member] = Some(newest);
        // What was complete before may belong to another time as a standby.
        inner.complete = inner.common();
    }
}

/// How long folding waits for the other members' parts of an epoch.
#[derive(Default)]
pub(super) struct Patience {
    awaited: Option<(Epoch, Option<Instant>)>,
}

impl Patience {
    /// Whether to wait for this epoch, if for any.
    pub fn waits_for(&mut self, epoch: Option<Epoch>) -> bool {
        let Some(epoch) = epoch else { return false };
        let since = match self.awaited {
            Some((of, since)) if of == epoch => since,
            _ => Some(Instant::now()),
        };
        let since = since.filter(|since| since.elapsed() < GROUP_PATIENCE);
        self.awaited = Some((epoch, since));
        since.is_some()
    }
}

impl StandbyService {
    /// Its points belong to a group from now on; `None`: to none.
    pub fn regroup(&self, place: Place) {
        self.tell(Input::Regroup(place));
    }
}

impl<F: SegmentFiles + 'static> Shell<F> {
    pub(super) fn regroup(&mut self, place: Place) {
        match &mut self.standby {
            Some(standby) => standby.regroup(place),
            None => self.place.set(place),
        }
    }

    /// Whether folding had better wait: other members of the group are about to commit their parts.
    pub(super) fn awaits_group(&mut self) -> bool {
        let few = self.unfolded_bytes() <= MAX_UNFOLDED_BYTES;
        self.patience.waits_for(self.standby.as_ref().filter(|_| few).and_then(Standby::awaits_group))
    }

    /// When to look again whether it still had.
    pub(super) fn group_wait(&mut self) -> Duration {
        if self.awaits_group() { GROUP_POLL } else { Duration::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(number: u64) -> Option<GroupCut> {
        Some(GroupCut { group: Id([1; 16]), number })
    }

    fn point(group: Option<GroupCut>) -> Point {
        Point { epoch: 1, size_bytes: 4096, cut_unix_ms: 7, group }
    }

    #[test]
    fn the_newest_cut_that_all_have_is_held_until_there_is_a_newer_one() {
        let board = Arc::new(Board::new(Id([1; 16]), 2));
        let [first, second] = [0, 1].map(|member| GroupPlace::new(Some((board.clone(), member))));
        first.has([None, cut(3), cut(5)].map(point).into_iter());
        assert!(board.complete().is_none() && first.holds(cut(3)) && !first.awaits(cut(5)), "nobody knows what the other has");
        second.has([cut(3), None].map(point).into_iter());
        assert_eq!(board.complete(), Some((3, 7)));
        assert!(first.holds(cut(3)) && first.holds(cut(5)) && first.awaits(cut(5)) && !first.holds(cut(2)) && !first.holds(None));
        second.committed(point(cut(5)));
        assert_eq!(board.complete(), Some((5, 7)));
        assert!(!first.holds(cut(3)) && first.holds(cut(5)) && !first.awaits(cut(5)));
        let kept = board.keep_all();
        assert!(first.holds(cut(3)) && second.holds(cut(1)) && !first.holds(None), "for as long as somebody opens an older one");
        drop(kept);
        assert!(!first.holds(cut(3)) && !first.holds(Some(GroupCut { group: Id([2; 16]), number: 9 })));
        second.has([cut(3)].map(point).into_iter());
        assert_eq!(board.complete(), Some((3, 7)), "it was opened again, and had lost it");
    }

    #[test]
    fn an_epoch_is_waited_for_once_and_not_for_ever() {
        let mut patience = Patience::default();
        assert!(!patience.waits_for(None) && patience.waits_for(Some(3)) && patience.waits_for(Some(3)));
        patience.awaited = Some((3, None));
        assert!(!patience.waits_for(Some(3)) && patience.waits_for(Some(4)));
    }
}
