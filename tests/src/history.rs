//! Writes with a number each, in the order of their acknowledgement, and whether a disk shows a prefix of them.

use crate::NbdClient;
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;

/// See the module's documentation. Number 0 is the empty disk.
pub struct History {
    blocks: Range<u32>,
    /// Which block each write went to, and when it was acknowledged; the last one may not have been.
    writes: Vec<(u32, Option<Instant>)>,
    /// How many writes each acknowledged flush covers, and when it was acknowledged.
    flushes: Vec<(usize, Instant)>,
}

impl History {
    /// No writes yet to a disk of so many blocks.
    pub fn new(blocks: u32) -> Self {
        Self::within(0..blocks)
    }

    /// No writes yet to these blocks of a disk.
    pub fn within(blocks: Range<u32>) -> Self {
        Self { blocks, writes: Vec::new(), flushes: Vec::new() }
    }

    /// Writes until something fails or the time is over.
    pub fn write_for(&mut self, client: &mut NbdClient, span: Duration) -> io::Result<()> {
        let began = Instant::now();
        self.write_while(client, || began.elapsed() < span)
    }

    /// Writes until something fails or `go_on` says no.
    pub fn write_while(&mut self, client: &mut NbdClient, go_on: impl Fn() -> bool) -> io::Result<()> {
        let mut rng = crate::dice();
        while go_on() {
            self.write(client, &mut rng)?;
        }
        Ok(())
    }

    /// Writes once.
    pub fn write(&mut self, client: &mut NbdClient, dice: &mut StdRng) -> io::Result<()> {
        let block = dice.random_range(self.blocks.clone());
        self.writes.push((block, None));
        client.write(u64::from(block) * BLOCK_BYTES as u64, &content(self.writes.len() as u64, block))?;
        self.writes.last_mut().expect("just pushed").1 = Some(Instant::now());
        Ok(())
    }

    /// Makes what was written durable.
    pub fn flush(&mut self, client: &mut NbdClient) -> io::Result<()> {
        client.flush()?;
        self.flushes.push((self.writes.len(), Instant::now()));
        Ok(())
    }

    /// After the primary came back: forgets the last write if it was neither acknowledged nor done.
    pub fn settle(&mut self, client: &mut NbdClient) {
        if let Some((block, None)) = self.writes.last().copied() {
            let mut bytes = vec![0; BLOCK_BYTES];
            client.read(u64::from(block) * BLOCK_BYTES as u64, &mut bytes).expect("a readable disk");
            if bytes != content(self.writes.len() as u64, block) {
                self.writes.pop();
            }
        }
    }

    /// How many blocks were written after so many writes.
    pub fn blocks_since(&self, writes: usize) -> usize {
        self.writes[writes..].iter().map(|(block, _)| block).collect::<BTreeSet<_>>().len()
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|(_, at)| at.is_some()).count()
    }

    /// How many writes there were, the last one acknowledged or not.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many writes there were until the last one that was acknowledged by then.
    pub fn acknowledged_by(&self, then: Instant) -> usize {
        self.writes.iter().rposition(|(_, at)| at.is_some_and(|at| at <= then)).map_or(0, |last| last + 1)
    }

    /// How many writes were made durable by flushes that were acknowledged until then.
    pub fn flushed_by(&self, then: Instant) -> usize {
        self.flushes.iter().rfind(|(_, at)| *at <= then).map_or(0, |(writes, _)| *writes)
    }

    /// The disk goes on from this prefix.
    pub fn forget_beyond(&mut self, prefix: usize) {
        self.writes.truncate(prefix);
        self.flushes.retain(|(writes, _)| *writes <= prefix);
    }

    /// Checks that the disk is a prefix of the history; returns its length.
    pub fn assert_prefix(&self, client: &mut NbdClient) -> usize {
        let shown: Vec<u64> = self
            .blocks
            .clone()
            .map(|block| {
                let mut bytes = vec![0; BLOCK_BYTES];
                client.read(u64::from(block) * BLOCK_BYTES as u64, &mut bytes).expect("a readable disk");
                let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                let expected = if number == 0 { vec![0; BLOCK_BYTES] } else { content(number, block) };
                assert_eq!(bytes, expected, "block {block} is torn, or of another place");
                number
            })
            .collect();
        let end = shown.iter().copied().max().unwrap_or(0) as usize;
        let mut last = vec![0; self.blocks.len()];
        for (number, (block, _)) in self.writes[..end].iter().enumerate() {
            last[(block - self.blocks.start) as usize] = number as u64 + 1;
        }
        assert_eq!(shown, last, "the disk is no prefix of the history: it shows write {end} and lacks an earlier one, or has a later one");
        end
    }

    /// How old the oldest acknowledged write beyond a prefix was at `then`.
    pub fn lost(&self, prefix: usize, then: Instant) -> Duration {
        let first_lost = self.writes[prefix..].iter().find_map(|(_, at)| *at);
        first_lost.map_or(Duration::ZERO, |at| then.saturating_duration_since(at))
    }
}

fn content(number: u64, block: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    for word in 0..BLOCK_BYTES as u64 / 16 {
        bytes.extend(number.to_le_bytes());
        bytes.extend((u64::from(block) << 32 | word).to_le_bytes());
    }
    bytes
}
