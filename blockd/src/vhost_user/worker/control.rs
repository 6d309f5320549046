//! Messages: queues that start, change and stop, and answers that operations wait for.

use super::super::mailbox::{Control, Message};
use super::super::queue::{Broken, Change, Setup, VirtQueue};
use super::{BELL, MAX_UNWATCHED, PLACES, Worker};
use replicator::intake::DRAIN_LIMIT;
use std::io;
use std::os::fd::AsFd;

impl Worker {
    pub(super) fn handle(&mut self, message: Message) {
        match message {
            Message::Admitted(key, Ok(pass)) => self.admitted(key, pass),
            Message::Admitted(key, Err(error)) => {
                self.device.volume.abandon();
                self.complete(key, Err(error));
            }
            Message::Released(key, result) => self.released(key, result),
            Message::Zeroed(key, result) => self.stage_done(key, result),
            Message::Control(control) => self.control(control),
        }
    }

    /// Whoever does not wait for its answer any more has gone.
    fn control(&mut self, control: Control) {
        match control {
            Control::Start(setup, done) => drop(done.send(self.start(*setup))),
            Control::Change(place, change, done) => {
                self.change(place, change);
                let _ = done.send(());
            }
            Control::Stop(place, done) => match self.queues.get_mut(place).and_then(Option::as_mut) {
                Some(queue) => {
                    queue.enabled = false;
                    self.device.volume.intake.held().set_deadline(self.owners[place], DRAIN_LIMIT);
                    self.stopping.push((place, Some(done)));
                }
                None => drop(done.send(None)),
            },
            Control::Memory(memory, done) => {
                self.memory = memory;
                let _ = done.send(());
            }
            Control::Close => self.close(),
        }
    }

    fn start(&mut self, setup: Setup) -> io::Result<()> {
        let place = setup.place;
        if !matches!(self.queues.get(place), Some(None)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let queue = VirtQueue::start(setup, &self.memory).map_err(io::Error::other)?;
        if queue.inherited() > 0 {
            let (volume, queue, requests) = (&self.device.volume.name, queue.number, queue.inherited());
            tracing::info!(%volume, queue, requests, "vhost-user: taking over what another daemon left in flight");
        }
        self.device.start(queue.number);
        self.queues[place] = Some(queue);
        self.unwatched[place] = 0;
        self.watch(place)
    }

    fn change(&mut self, place: usize, change: Change) {
        let Some(queue) = self.queues.get_mut(place).and_then(Option::as_mut) else { return };
        let rewatch = matches!(change, Change::Kick(_));
        queue.change(change);
        if rewatch {
            self.unwatch(place);
            self.unwatched[place] = 0;
            if let Err(error) = self.watch(place) {
                tracing::warn!(volume = self.device.volume.name, %error, "vhost-user: a kick cannot be waited for");
            }
        }
    }

    fn close(&mut self) {
        self.closing = true;
        for (place, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue {
                queue.enabled = false;
                self.device.volume.intake.held().set_deadline(self.owners[place], DRAIN_LIMIT);
                self.stopping.push((place, None));
            }
        }
    }

    /// Ends what has given back all that it took.
    pub(super) fn finish_stops(&mut self) {
        for (place, done) in std::mem::take(&mut self.stopping) {
            self.give_up_waiting(place);
            let Some(queue) = self.queues[place].take_if(|queue| queue.taken == 0) else {
                self.stopping.push((place, done));
                continue;
            };
            // Its last batch may be from just now.
            self.publish_last(queue, place, done);
        }
    }

    fn publish_last(&mut self, mut queue: VirtQueue, place: usize, done: Option<std::sync::mpsc::Sender<Option<u16>>>) {
        if queue.has_batch()
            && let Ok(rings) = queue.layout.rings(&self.memory)
        {
            queue.publish(&rings);
        }
        self.unwatch(place);
        self.device.volume.intake.held().forget_deadline(self.owners[place]);
        self.device.stop(queue.number);
        if let Some(done) = done {
            let _ = done.send(Some(queue.base()));
        }
    }

    fn watch(&mut self, place: usize) -> io::Result<()> {
        let Some(queue) = &self.queues[place] else { return Ok(()) };
        self.last_token += PLACES;
        self.tokens[place] = self.last_token | place as u64;
        self.ring.watch(self.tokens[place], queue.kick())
    }

    fn unwatch(&mut self, place: usize) {
        if let Err(error) = self.ring.unwatch(self.tokens[place]) {
            tracing::debug!(%error, "vhost-user: a kick goes on being watched");
        }
        self.tokens[place] = 0;
    }

    /// The queue whose kick is watched under the token.
    fn watched(&self, token: u64) -> Option<usize> {
        let place = (token % PLACES) as usize;
        (self.tokens.get(place) == Some(&token)).then_some(place)
    }

    pub(super) fn kicked(&mut self, token: u64) {
        if let Some(place) = self.watched(token) {
            self.unwatched[place] = 0;
            self.acknowledge(place);
        }
    }

    fn acknowledge(&self, place: usize) {
        self.queues[place].iter().for_each(VirtQueue::acknowledge_kick);
    }

    pub(super) fn watch_again(&mut self, token: u64) {
        let watched = match self.watched(token) {
            _ if token == BELL => self.ring.watch(BELL, self.mailbox.as_fd()),
            Some(place) => self.watch_kick_again(place),
            None => return,
        };
        if let Err(error) = watched {
            tracing::warn!(volume = self.device.volume.name, %error, "vhost-user: a descriptor cannot be waited for");
        }
    }

    fn watch_kick_again(&mut self, place: usize) -> io::Result<()> {
        self.acknowledge(place);
        if self.unwatched[place] == MAX_UNWATCHED {
            self.queues[place].iter_mut().for_each(|queue| queue.fail(Broken::Unwatchable));
            return Ok(());
        }
        self.unwatched[place] += 1;
        self.watch(place)
    }
}
