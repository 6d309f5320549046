//! Keeps writes that rewrite parts of sectors apart from every other change of the volume, on whatever thread.
//!
//! A change that covers whole sectors shares the edges: an atomic addition, unless somebody waits. A write that reads the sectors at its
//! ends and writes them back has the edges for itself. Who has to wait is called, in the order of arrival.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Set in the state while somebody waits, or has the edges for himself. Below it is the number of those who share.
const CONTENDED: u32 = 1 << 31;

/// How the edges are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Exclusive,
}

/// Is called once, by whatever thread, when the edges are held.
type Turn = Box<dyn FnOnce() + Send>;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Edges {
    state: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    exclusive: bool,
    waiting: VecDeque<(Hold, Turn)>,
}

impl Edges {
    /// Shares the edges, unless that has to wait.
    pub(super) fn try_share(&self) -> bool {
        let free = self.state.fetch_add(1, SeqCst) & CONTENDED == 0;
        if !free {
            self.release(Hold::Shared);
        }
        free
    }

    /// Has `turn` called once the edges are held so.
    pub(super) fn wait(&self, hold: Hold, turn: Turn) {
        let mut inner = self.lock();
        self.state.fetch_or(CONTENDED, SeqCst);
        inner.waiting.push_back((hold, turn));
        self.pass_on(inner);
    }

    /// Gives up what [`Self::try_share`] or [`Self::wait`] has got.
    pub(super) fn release(&self, hold: Hold) {
        match hold {
            Hold::Shared if self.state.fetch_sub(1, SeqCst) & CONTENDED == 0 => {}
            Hold::Shared => self.pass_on(self.lock()),
            Hold::Exclusive => {
                let mut inner = self.lock();
                inner.exclusive = false;
                self.pass_on(inner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, mut inner: MutexGuard<'_, Inner>) {
        let mut turns = Vec::new();
        while !inner.exclusive {
            match inner.waiting.front() {
                None => {
                    self.state.fetch_and(!CONTENDED, SeqCst);
                    break;
                }
                // The last who shares comes by here, and so does who only tried to.
                Some((Hold::Exclusive, _)) if self.state.load(SeqCst) != CONTENDED => break,
                Some((Hold::Exclusive, _)) => inner.exclusive = true,
                Some((Hold::Shared, _)) => drop(self.state.fetch_add(1, SeqCst)),
            }
            turns.extend(inner.waiting.pop_front().map(|(_, turn)| turn));
        }
        drop(inner);
        turns.into_iter().for_each(|turn| turn());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::sync::{Arc, mpsc};

    /// Waits for its turn.
    fn hold(edges: &Edges, hold: Hold) {
        let (turn, came) = mpsc::channel();
        edges.wait(hold, Box::new(move || turn.send(()).unwrap()));
        came.recv().unwrap();
    }

    #[test]
    fn turns_come_in_the_order_of_arrival() {
        let edges = Edges::default();
        let (order, came) = mpsc::channel();
        let turn = |name| {
            let order = order.clone();
            Box::new(move || order.send(name).unwrap())
        };
        assert!(edges.try_share() && edges.try_share());
        edges.wait(Hold::Exclusive, turn("exclusive"));
        assert!(!edges.try_share(), "who comes later does not overtake");
        edges.wait(Hold::Shared, turn("shared"));
        edges.wait(Hold::Shared, turn("shared, too"));
        edges.release(Hold::Shared);
        assert!(came.try_recv().is_err());
        edges.release(Hold::Shared);
        assert_eq!(came.try_iter().collect::<Vec<_>>(), ["exclusive"]);
        edges.release(Hold::Exclusive);
        assert_eq!(came.try_iter().collect::<Vec<_>>(), ["shared", "shared, too"]);
        edges.release(Hold::Shared);
        edges.release(Hold::Shared);
        assert!(edges.try_share(), "and all is as it was");
    }

    #[test]
    fn threads_that_share_and_threads_that_exclude_lose_no_turn() {
        let (edges, value) = (Arc::new(Edges::default()), Arc::new(AtomicU64::new(0)));
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (edges, value) = (edges.clone(), value.clone());
                scope.spawn(move || {
                    for round in 0..2000 {
                        let wanted = if (round + number) % 4 == 0 { Hold::Exclusive } else { Hold::Shared };
                        if wanted == Hold::Exclusive || !edges.try_share() {
                            hold(&edges, wanted);
                        }
                        if wanted == Hold::Exclusive {
                            let before = value.load(SeqCst);
                            std::hint::spin_loop();
                            value.store(before + 1, SeqCst);
                        }
                        edges.release(wanted);
                    }
                });
            }
        });
        assert_eq!(value.load(SeqCst), 2000, "no two exclude at once");
        assert!(edges.try_share());
    }
}
