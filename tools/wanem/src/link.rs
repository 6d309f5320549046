//! One direction of a long link, as a pure state machine.
//!
//! ```text
//! handle_packet -> waiting (drop-tail) -> serialiser (rate) -> loss -> wire (delay) -> poll_transmit
//! ```
//!
//! Invariants: packets leave in the order in which they came; none leaves before its delay is over; the serialiser
//! works in virtual time, so a caller that looks in late delays packets but costs no bandwidth; what is held is bounded by
//! [`MAX_HELD_BYTES`]. A lost packet has occupied the link: loss happens behind the bottleneck, as on a real path.
//!
//! Time is what has passed since any fixed start and must not go backwards. Randomness is seeded. The caller moves the
//! bytes: call [`Link::poll_transmit`] until it returns `None`, then wait until [`Link::poll_timeout`].

use std::{collections::VecDeque, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    counters::{Counters, LinkReport},
    quantity::{Loss, QueueLimit, Rate},
};

/// The most bytes of packets, each with [`PACKET_OVERHEAD_BYTES`], that one direction holds.
pub const MAX_HELD_BYTES: u64 = 512 << 20;
/// What a held packet costs beside its bytes, at most about.
pub const PACKET_OVERHEAD_BYTES: u64 = 64;

const MILLION: u32 = 1_000_000;

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The rate of the serialiser.
    pub rate: Rate,
    /// The round trip; each direction delays by half of it.
    pub rtt: Duration,
    /// The share of packets lost.
    pub loss: Loss,
    /// How much may wait.
    pub queue: QueueLimit,
}

#[derive(Debug)]
struct Packet<P> {
    len_bytes: u64,
    payload: P,
}

/// One direction. `P` is the packet as the caller holds it.
#[derive(Debug)]
pub struct Link<P> {
    settings: Settings,
    cut: bool,
    /// The front is being serialised.
    waiting: VecDeque<Packet<P>>,
    waiting_bytes: u64,
    /// When the front of `waiting` is serialised; `Some` exactly while `waiting` is not empty.
    head_done: Option<Duration>,
    /// Serialised packets and when they arrive, in this order.
    wire: VecDeque<(Duration, Packet<P>)>,
    wire_bytes: u64,
    /// The arrival of the last packet put on the wire: a shorter delay must not let a later one overtake it.
    last_arrival: Duration,
    rng: StdRng,
    counters: Counters,
}

impl<P> Link<P> {
    /// An idle link. The same seed loses the same packets.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            cut: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            head_done: None,
            wire: VecDeque::new(),
            wire_bytes: 0,
            last_arrival: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            counters: Counters::default(),
        }
    }

    /// Input: a packet of `len_bytes` IP bytes was sent.
    pub fn handle_packet(&mut self, now: Duration, len_bytes: u64, payload: P) {
        self.serialise(now);
        self.counters.sent.add(len_bytes);
        if self.cut {
            self.counters.dropped_cut.add(len_bytes);
        } else if self.is_full(len_bytes) {
            self.counters.dropped_queue.add(len_bytes);
        } else {
            self.enqueue(now, Packet { len_bytes, payload });
        }
    }

    /// Output: the next packet that has arrived by `now`, if any.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<P> {
        self.serialise(now);
        let (arrives, _) = self.wire.front().filter(|(arrives, _)| *arrives <= now)?;
        let late_ns = nanos(now.saturating_sub(*arrives));
        let (_, packet) = self.wire.pop_front()?;
        self.wire_bytes -= packet.len_bytes;
        self.counters.late_max_ns = self.counters.late_max_ns.max(late_ns);
        self.counters.delivered.add(packet.len_bytes);
        Some(packet.payload)
    }

    /// Output: when to call [`Self::poll_transmit`] again. It may have nothing then, if the packet was lost.
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.wire.front() {
            Some((arrives, _)) => Some(*arrives),
            None => self.head_done.map(|done| self.arrival(done)),
        }
    }

    /// Command: change what the link is like. Packets on the wire keep their arrival; the one being serialised
    /// goes on at the new rate.
    pub fn set(&mut self, now: Duration, settings: Settings) {
        self.serialise(now);
        let old = std::mem::replace(&mut self.settings, settings);
        if let (Some(done), Some(head)) = (self.head_done, self.waiting.front()) {
            let left = done.saturating_sub(now);
            let (old_time, new_time) = (old.rate.time_for(head.len_bytes), settings.rate.time_for(head.len_bytes));
            let left_ns = left.as_nanos() * new_time.as_nanos() / old_time.as_nanos().max(1);
            self.head_done = Some(now + Duration::from_nanos(u64::try_from(left_ns).unwrap_or(u64::MAX)));
            self.serialise(now);
        }
    }

    /// Command: cut the link. Nothing that was not delivered yet will be.
    pub fn cut(&mut self, now: Duration) {
        self.serialise(now);
        self.cut = true;
        let waiting = self.waiting.drain(..);
        for packet in waiting.chain(self.wire.drain(..).map(|(_, packet)| packet)) {
            self.counters.dropped_cut.add(packet.len_bytes);
        }
        self.waiting_bytes = 0;
        self.wire_bytes = 0;
        self.head_done = None;
    }

    /// Command: the link carries packets again.
    pub fn heal(&mut self) {
        self.cut = false;
    }

    /// The counters and what is in the link now. What devices dropped is the caller's to add.
    pub fn report(&mut self, now: Duration) -> LinkReport {
        self.serialise(now);
        LinkReport {
            counters: self.counters,
            queue_bytes: self.waiting_bytes,
            queue_limit_bytes: self.queue_limit_bytes(),
            in_flight_bytes: self.wire_bytes,
            cut: self.cut,
            ..LinkReport::default()
        }
    }

    fn enqueue(&mut self, now: Duration, packet: Packet<P>) {
        let time = self.settings.rate.time_for(packet.len_bytes);
        self.waiting_bytes += packet.len_bytes;
        self.counters.queue_peak_bytes = self.counters.queue_peak_bytes.max(self.waiting_bytes);
        self.waiting.push_back(packet);
        if self.head_done.is_none() {
            self.head_done = Some(now + time);
            self.serialise(now);
        }
    }

    /// Moves every packet that is serialised by `now` to the wire, or loses it.
    fn serialise(&mut self, now: Duration) {
        while let Some(done) = self.head_done.filter(|done| *done <= now) {
            let Some(packet) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= packet.len_bytes;
            self.counters.busy_ns += nanos(self.settings.rate.time_for(packet.len_bytes));
            self.head_done = self.waiting.front().map(|next| done + self.settings.rate.time_for(next.len_bytes));
            if self.loses_one() {
                self.counters.dropped_loss.add(packet.len_bytes);
                continue;
            }
            self.last_arrival = self.arrival(done);
            self.wire_bytes += packet.len_bytes;
            self.wire.push_back((self.last_arrival, packet));
        }
    }

    fn arrival(&self, done: Duration) -> Duration {
        (done + self.settings.rtt / 2).max(self.last_arrival)
    }

    /// A packet larger than the whole queue still passes an idle link.
    fn is_full(&self, len_bytes: u64) -> bool {
        let queue_full = !self.waiting.is_empty() && self.waiting_bytes + len_bytes > self.queue_limit_bytes();
        let packets = (self.waiting.len() + self.wire.len()) as u64 + 1;
        let held_bytes = self.waiting_bytes + self.wire_bytes + len_bytes + packets * PACKET_OVERHEAD_BYTES;
        queue_full || held_bytes > MAX_HELD_BYTES
    }

    fn queue_limit_bytes(&self) -> u64 {
        self.settings.queue.bytes(self.settings.rate, self.settings.rtt)
    }

    fn loses_one(&mut self) -> bool {
        let ppm = self.settings.loss.ppm();
        ppm > 0 && self.rng.random_range(0..MILLION) < ppm
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
