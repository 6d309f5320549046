//! What nobody tells a worker: a client that stops in the middle, takes no farewell, or leaves while nothing is received from it.
//!
//! Looked at once a second, and only while there is somebody to be watched: no request costs a look at a deadline.

use super::Worker;
use super::connection::Reading;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_secs(1);
/// How long the answers that are due may take to be sent once the client sends no more, in ticks.
const FAREWELL_TICKS: u32 = 10;

/// Whether there is somebody to be watched.
#[derive(Default)]
pub(super) struct Watch {
    on: bool,
    /// When it was looked last.
    looked: Option<Instant>,
}

impl Watch {
    /// There is.
    pub(super) fn begin(&mut self) {
        self.on = true;
    }

    /// How long to wait for something else.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.on.then_some(TICK)
    }
}

impl Worker {
    pub(super) fn watch(&mut self) {
        if !self.watch.on || self.watch.looked.is_some_and(|looked| self.now.duration_since(looked) < TICK) {
            return;
        }
        self.watch = Watch { on: false, looked: Some(self.now) };
        let keys: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.look_after(key));
    }

    fn look_after(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let amid = connection.receiving && connection.is_amid();
        match connection.reading {
            // Nothing is received meanwhile that would tell that it has left.
            Reading::Room(..) => {
                let mut socket = [PollFd::new(&connection.socket, PollFlags::RDHUP)];
                if rustix::event::poll(&mut socket, Some(&Timespec::default())) != Ok(0) {
                    self.end(key, Ok(()));
                }
            }
            Reading::Over => {
                connection.idle_ticks += 1;
                if connection.idle_ticks >= FAREWELL_TICKS {
                    connection.broken = true;
                    connection.hang_up();
                }
            }
            _ if amid => {
                connection.idle_ticks += 1;
                connection.stalled = TICK * connection.idle_ticks >= connection.stall_timeout;
                if connection.stalled {
                    connection.hang_up();
                }
            }
            _ => return,
        }
        self.watch.begin();
    }
}
