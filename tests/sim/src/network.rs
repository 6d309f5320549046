//! The streams between sites: frames in order, each after its delay, through directions that may be cut.

use crate::wiretap::Wiretap;
use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator_engine::wire::{Content, Envelope, Message};
use std::collections::{BTreeSet, VecDeque};

/// Frames on their way in one direction.
#[derive(Default)]
pub struct Direction(VecDeque<(u64, Bytes)>);

/// A replication stream.
pub struct Session {
    pub down: Direction,
    pub up: Direction,
    delay_ms: u64,
    /// The standby listens to this one.
    pub is_attached: bool,
    /// An epoch is committed that came by it.
    pub has_committed: bool,
    /// The standby has refused: nothing that comes is looked at.
    pub is_refused: bool,
    /// A frame was lost or damaged: either side may find that the other breaks the protocol.
    pub is_tampered: bool,
    pub wiretap: Wiretap,
}

/// Which directions are cut.
#[derive(Default)]
pub struct Network(BTreeSet<(usize, usize)>);

impl Network {
    /// Whether frames get from one site to the other.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.0.contains(&(from, to))
    }

    /// Whether a stream can begin.
    pub fn connects(&self, one: usize, other: usize) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// Cuts a direction, or mends it; says whether it passes now.
    pub fn toggle(&mut self, from: usize, to: usize) -> bool {
        let mended = self.0.remove(&(from, to));
        if !mended {
            self.0.insert((from, to));
        }
        mended
    }

    /// Everything passes.
    pub fn mend(&mut self) {
        self.0.clear();
    }
}

impl Session {
    /// A stream over a link with a delay of its own.
    pub fn new(rng: &mut StdRng) -> Self {
        let delay_ms = [0, 1, 10, 40][rng.random_range(0..4)];
        let (down, up, wiretap) = Default::default();
        Self { down, up, delay_ms, is_attached: false, has_committed: false, is_refused: false, is_tampered: false, wiretap }
    }

    /// When a frame that is sent now arrives.
    pub fn due_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.delay_ms
    }
}

impl Direction {
    /// A frame sets out.
    pub fn send(&mut self, due_ms: u64, frame: Bytes) {
        self.0.push_back((due_ms, frame));
    }

    /// The next frame that has arrived.
    pub fn receive(&mut self, now_ms: u64) -> Option<Bytes> {
        self.0.pop_front_if(|(due_ms, _)| *due_ms <= now_ms).map(|(_, frame)| frame)
    }

    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A message with content is lost, or damaged: what the digests are for. Says whether there was one.
    pub fn tamper(&mut self, rng: &mut StdRng) -> bool {
        let content = |frame: &Bytes| match Envelope::decode(frame.clone()) {
            Ok(Envelope { generation, message: Message::Blocks(blocks) }) => Some((generation, blocks)),
            _ => None,
        };
        let found = self.0.iter().enumerate().find_map(|(at, (_, frame))| Some((at, content(frame)?)));
        let Some((at, (generation, mut blocks))) = found else { return false };
        let zeroes = blocks.runs.iter().rposition(|(_, content)| *content == Content::Zero);
        match (rng.random_range(0..3), zeroes) {
            (0, _) if !blocks.payload.is_empty() => blocks.payload = flipped(&blocks.payload, rng),
            // What follows in its stream is understood all the same.
            (1, Some(zeroes)) => _ = blocks.runs.remove(zeroes),
            _ => {
                self.0.remove(at);
                return true;
            }
        }
        self.0[at].1 = Envelope { generation, message: Message::Blocks(blocks) }.encode();
        true
    }
}

fn flipped(payload: &[u8], rng: &mut StdRng) -> Bytes {
    let mut payload = payload.to_vec();
    let byte = rng.random_range(0..payload.len());
    payload[byte] ^= 1 << rng.random_range(0..8);
    payload.into()
}
