//! Comparing both sites while both work.
//!
//! A block is compared only while everything written to it is acknowledged: its content here is then that of the recovery point there.
//! Blocks in doubt come again in a later pass, after a cut. The question travels on the stream ahead of any later change of the block, so
//! an answer about it cannot be out of date. A block that was found different is looked at once more, in the next pass, before it counts.

use super::shell::Shell;
use super::{OnProgress, ReplicaError, read};
use crate::disk::BlockDevice;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count, runs};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Against, Compare, Compared, MAX_COMPARE_ZEROES, MAX_RUNS, Message};
use roaring::RoaringBitmap;
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Marks the tickets of a verification: the sender's count from 0.
pub(super) const TICKET_BIT: u64 = 1 << 63;
/// Blocks that are read for one question.
const CHUNK_BLOCKS: u32 = 1024;
/// Runs of one question: a hole beside each run of data, or zeroes among each two of its blocks, doubles them.
const CHUNK_RUNS: usize = MAX_RUNS / 2 - CHUNK_BLOCKS as usize;
/// Questions under way.
const MAX_OPEN_QUESTIONS: usize = 4;
/// A connection that is away for longer ends the verification.
const PATIENCE: Duration = Duration::from_secs(10);
/// Passes over blocks that were in doubt. Those that are written all the time are left out then, and told.
const MAX_PASSES: u32 = 50;

/// What a verification found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that were compared.
    pub blocks_compared: u64,
    /// Blocks that differ.
    pub blocks_different: u64,
    /// Blocks that were not compared: they were written each time that they were looked at.
    pub blocks_unsettled: u64,
    /// The recovery point at its end.
    pub at_epoch: Epoch,
}

/// A verification under way.
pub(super) struct Verification {
    blocks: BlockNumber,
    /// Where this pass is; at the end, what was in doubt is looked at again.
    at: BlockNumber,
    /// `None` in the first pass: all blocks.
    again: Option<RoaringBitmap>,
    in_doubt: RoaringBitmap,
    /// Found different once.
    suspects: RoaringBitmap,
    passes: u32,
    next_ticket: u64,
    /// Answers to questions before it are for others.
    first_ticket: u64,
    /// By ticket, the blocks whose answer counts.
    open: HashMap<u64, RoaringBitmap>,
    compared: u64,
    different: u64,
    /// The recovery point that the next pass waits for to be overtaken.
    wait_beyond: Option<Epoch>,
    /// Since when there is no connection.
    offline: Option<Instant>,
    /// Most that is read in a second.
    bytes_per_second: Option<u64>,
    /// Nothing is read before.
    not_before: Instant,
    progress: OnProgress,
    reply: oneshot::Sender<Result<Verified, ReplicaError>>,
}

impl Verification {
    pub(super) fn new(size_bytes: u64, progress: OnProgress, reply: oneshot::Sender<Result<Verified, ReplicaError>>) -> Self {
        Self {
            blocks: block_count(size_bytes) as BlockNumber,
            at: 0,
            again: None,
            in_doubt: RoaringBitmap::new(),
            suspects: RoaringBitmap::new(),
            passes: 0,
            first_ticket: TICKET_BIT,
            next_ticket: TICKET_BIT,
            open: HashMap::new(),
            compared: 0,
            different: 0,
            wait_beyond: None,
            offline: None,
            bytes_per_second: None,
            not_before: Instant::now(),
            progress,
            reply,
        }
    }

    /// Instead of one before it, of which answers may be under way.
    fn after(self, tickets: u64) -> Self {
        Self { first_ticket: tickets, next_ticket: tickets, ..self }
    }

    pub(super) fn is_ticket(ticket: u64) -> bool {
        ticket & TICKET_BIT != 0
    }

    /// The connection broke: what was asked is asked again.
    pub(super) fn handle_disconnected(&mut self) {
        self.in_doubt |= self.open.drain().fold(RoaringBitmap::new(), |all, (_, asked)| all | asked);
    }

    /// An answer came. One to what an earlier verification asked says nothing here.
    fn handle_compared(&mut self, compared: &Compared) -> Result<(), &'static str> {
        if compared.ticket < self.first_ticket {
            return Ok(());
        }
        let asked = self.open.remove(&compared.ticket).ok_or("an answer to a question that was not asked")?;
        self.handle_answer(&asked, compared);
        (self.progress)(self.compared, u64::from(self.blocks));
        Ok(())
    }

    /// The answer about `asked` came.
    fn handle_answer(&mut self, asked: &RoaringBitmap, compared: &Compared) {
        let mut different = RoaringBitmap::new();
        for run in &compared.different {
            different.insert_range(run.blocks());
        }
        different &= asked;
        let again = &different - &self.suspects;
        self.compared += asked.len() - again.len();
        self.different += different.len() - again.len();
        self.suspects -= asked;
        self.suspects |= &again;
        self.in_doubt |= again;
    }

    fn fail(self, error: ReplicaError) {
        let _ = self.reply.send(Err(error));
    }

    /// The next blocks of this pass.
    fn take_chunk(&mut self, image: &dyn BlockDevice) -> io::Result<RoaringBitmap> {
        let mut chunk = RoaringBitmap::new();
        match &self.again {
            None => {
                let end = chunk_end(image, self.at, self.blocks)?;
                chunk.insert_range(self.at..end);
                self.at = end;
            }
            Some(again) => {
                chunk = again.range(self.at..).take(CHUNK_BLOCKS as usize).collect();
                self.at = chunk.max().map_or(self.blocks, |last| last + 1);
            }
        }
        Ok(chunk)
    }
}

/// Where a question from block `at` ends, so that no more than a chunk of it has to be read.
fn chunk_end(image: &dyn BlockDevice, at: BlockNumber, blocks: BlockNumber) -> io::Result<BlockNumber> {
    let end = at.saturating_add(MAX_COMPARE_ZEROES).min(blocks);
    let (mut from, mut to_read) = (at, CHUNK_BLOCKS);
    while let Some(data) = image.allocated(from)?.filter(|data| data.start < end) {
        let start = data.start.max(from);
        if data.end() - start >= to_read {
            return Ok((start + to_read).min(end));
        }
        to_read -= data.end() - start;
        from = data.end();
    }
    Ok(end)
}

impl Shell {
    /// Somebody wants to know. One that has a rate gives way to one that is under way.
    pub(super) fn begin_verify(&mut self, progress: OnProgress, rate: Option<u64>, reply: oneshot::Sender<Result<Verified, ReplicaError>>) {
        let is_under_way = self.verification.as_ref().is_some_and(|verification| !verification.reply.is_closed());
        if rate.is_none() || !is_under_way {
            let verification = Verification::new(self.setup.image.size_bytes(), progress, reply).after(self.verify_tickets);
            self.verification = Some(Verification { bytes_per_second: rate, ..verification });
        }
    }

    /// Asks about some blocks; says whether there was something to do.
    pub(super) fn verify_some(&mut self) -> bool {
        let Some(mut verification) = self.verification.take() else { return false };
        if verification.reply.is_closed() {
            return false;
        }
        if *self.sender.phase() != Phase::Online {
            if verification.offline.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                verification.fail(ReplicaError::Disconnected);
            } else {
                self.verification = Some(verification);
            }
            return false;
        }
        verification.offline = None;
        let worked = match self.verify_chunk(&mut verification) {
            Ok(worked) => worked,
            Err(error) => {
                verification.fail(error);
                return false;
            }
        };
        let acked = self.sender.known().map_or(0, |known| known.acked);
        let finished = verification.at >= verification.blocks && verification.open.is_empty();
        if finished && (verification.in_doubt.is_empty() || verification.passes == MAX_PASSES) {
            let (blocks_compared, blocks_different) = (verification.compared, verification.different);
            let blocks_unsettled = verification.in_doubt.len();
            let _ = verification.reply.send(Ok(Verified { blocks_compared, blocks_different, blocks_unsettled, at_epoch: acked }));
            return true;
        }
        if finished {
            verification.passes += 1;
            verification.at = 0;
            verification.again = Some(std::mem::take(&mut verification.in_doubt));
            verification.wait_beyond = Some(acked);
            self.sender.request_cut();
        }
        self.verification = Some(verification);
        worked
    }

    fn verify_chunk(&mut self, verification: &mut Verification) -> Result<bool, ReplicaError> {
        let acked = self.sender.known().map(|known| known.acked);
        let waits = acked.is_none() || verification.wait_beyond.is_some_and(|epoch| acked <= Some(epoch));
        if waits || verification.at >= verification.blocks || verification.open.len() >= MAX_OPEN_QUESTIONS {
            return Ok(false);
        }
        if verification.not_before > Instant::now() {
            return Ok(false);
        }
        verification.wait_beyond = None;
        let image = &*self.setup.image;
        let mut chunk = verification.take_chunk(image)?;
        let unacknowledged = self.sender.unacknowledged();
        let tracker = &self.tracker;
        let in_doubt =
            |block: &BlockNumber| tracker.open().contains(*block) || tracker.frozen().contains(*block) || unacknowledged.contains(*block);
        let doubtful: RoaringBitmap = chunk.iter().filter(in_doubt).collect();
        chunk -= &doubtful;
        verification.in_doubt |= doubtful;
        let wanted: Vec<Run> = runs(&chunk).take(CHUNK_RUNS).collect();
        let Some(last) = wanted.last() else { return Ok(true) };
        verification.in_doubt |= RoaringBitmap::from_sorted_iter(chunk.range(last.end()..)).expect("ascending");
        chunk.remove_range(last.end()..);
        let mut question = Compare::new(verification.next_ticket, Against::Point);
        read::ask(image, &mut question, &wanted)?;
        if let Some(rate) = verification.bytes_per_second {
            let read_bytes = (question.fingerprints.len() * BLOCK_BYTES) as u64;
            verification.not_before = Instant::now() + Duration::from_millis(read_bytes * 1000 / rate.max(1));
        }
        // A write that began meanwhile has left its mark: of such a block the answer will not count.
        let doubtful: RoaringBitmap = chunk.iter().filter(in_doubt).collect();
        chunk -= &doubtful;
        verification.in_doubt |= doubtful;
        verification.open.insert(question.ticket, chunk);
        verification.next_ticket += 1;
        self.verify_tickets = verification.next_ticket;
        self.send(Message::Compare(question), 0);
        Ok(true)
    }

    pub(super) fn handle_verified(&mut self, compared: &Compared) -> Result<(), &'static str> {
        // A verification that nobody waits for any more is gone.
        let Some(verification) = &mut self.verification else { return Ok(()) };
        verification.handle_compared(compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_a_verification_that_gave_way_says_nothing_and_breaks_nothing() {
        let (reply, _) = oneshot::channel();
        let mut verification = Verification::new(100 * 4096, Box::new(|_, _| {}), reply).after(TICKET_BIT + 5);
        let answer = |ticket| Compared { ticket, different: Run::new(0, 4).into_iter().collect() };
        verification.open.insert(TICKET_BIT + 5, RoaringBitmap::from_iter(0..9));
        assert_eq!(verification.handle_compared(&answer(TICKET_BIT)), Ok(()));
        assert_eq!((verification.compared, verification.suspects.len()), (0, 0));
        assert!(verification.handle_compared(&answer(TICKET_BIT + 6)).is_err());
        assert_eq!(verification.handle_compared(&answer(TICKET_BIT + 5)), Ok(()));
        assert_eq!((verification.compared, verification.suspects.len()), (5, 4));
    }

    /// Lesson: verify looks again before it reports (drbd#68).
    #[test]
    fn a_block_counts_as_different_once_it_was_found_so_twice() {
        let (reply, _) = oneshot::channel();
        let mut verification = Verification::new(100 * 4096, Box::new(|_, _| {}), reply);
        let answer = |start, len| Compared { ticket: TICKET_BIT, different: Run::new(start, len).into_iter().collect() };
        verification.handle_answer(&RoaringBitmap::from_iter(0..50), &answer(48, 4));
        verification.handle_answer(&RoaringBitmap::from_iter(50..100), &answer(0, 0));
        assert_eq!((verification.compared, verification.different), (98, 0));
        let again = std::mem::take(&mut verification.in_doubt);
        assert_eq!(again, RoaringBitmap::from_iter([48, 49]));
        verification.handle_answer(&again, &answer(49, 1));
        assert_eq!((verification.compared, verification.different), (100, 1));
        assert!(verification.in_doubt.is_empty());
    }
}
