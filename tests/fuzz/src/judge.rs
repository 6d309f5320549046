//! What a standby may do, as a second opinion: drawn from the frames that it got and the answers that it gave.
//!
//! It says which messages must have been refused, what a comparison must have found, and what the recovery point holds. That something was
//! refused is never wrong: what is too careful shows elsewhere.

use crate::disk::Image;
use bytes::Bytes;
use replicator::codec::{Decoder, PayloadError, exclusive_or, fingerprint};
use replicator::standby::{Place, StandbyError};
use replicator_engine::block::{BLOCK_BYTES, BlockNumber, Run, block_count};
use replicator_engine::generation::Lineage;
use replicator_engine::wire::*;
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::LazyLock;

static ZERO: LazyLock<Fingerprint> = LazyLock::new(|| fingerprint(&[0; BLOCK_BYTES]));

/// See the module's documentation.
pub struct Judge {
    lineage: Lineage,
    is_attached: bool,
    /// The last recovery point, if there is one.
    committed: u64,
    size_bytes: u64,
    /// The content of the copy without what is staged; blocks of zeroes are not there.
    content: BTreeMap<BlockNumber, Fingerprint>,
    /// What came since the recovery point, zeroes included.
    staged: BTreeMap<BlockNumber, Fingerprint>,
    /// What came in attempts that were broken off, and was not sent or found equal since.
    owed: RoaringBitmap,
    /// A commit was refused: what is staged goes when a primary attaches.
    is_in_doubt: bool,
    digest: EpochDigest,
    decoder: Option<Decoder>,
    /// What came last for each block, if a difference may lead on from it.
    bases: BTreeMap<BlockNumber, Vec<u8>>,
}

impl Judge {
    /// Of a blank copy.
    pub fn new(lineage: Lineage, size_bytes: u64) -> Self {
        Self {
            lineage,
            is_attached: false,
            committed: 0,
            size_bytes,
            content: BTreeMap::new(),
            staged: BTreeMap::new(),
            owed: RoaringBitmap::new(),
            is_in_doubt: false,
            digest: EpochDigest::default(),
            decoder: None,
            bases: BTreeMap::new(),
        }
    }

    /// A frame was handled.
    pub fn handle_frame(&mut self, frame: Bytes, result: &Result<Option<Message>, StandbyError>) {
        let envelope = Envelope::decode(frame);
        match result {
            Ok(answer) => self.handle_taken(envelope.expect("what is no message is refused"), answer.as_ref()),
            Err(StandbyError::Disk(error)) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::StorageFull | ErrorKind::Other), "what was written cannot be read: {error}");
                self.handle_reopened();
            }
            Err(StandbyError::Payload(error)) => {
                // A piece of a stream that leads nowhere is refused before it is looked at.
                if let Ok(Envelope { message: Message::Blocks(blocks), .. }) = envelope
                    && (matches!(error, PayloadError::Digest) || !blocks.encoding.needs_history())
                {
                    insert(&mut self.owed, blocks.runs.iter().map(|(run, _)| run));
                }
                self.handle_disconnected();
            }
            Err(_) => {
                let commits =
                    |envelope: Envelope| matches!(envelope.message, Message::Commit(_)) && envelope.generation == self.lineage.current();
                self.is_in_doubt |= self.is_attached && envelope.is_ok_and(commits);
                self.handle_disconnected();
            }
        }
    }

    /// The stream broke.
    pub fn handle_disconnected(&mut self) {
        self.is_attached = false;
        self.decoder.iter_mut().for_each(Decoder::forget_history);
        self.bases.clear();
        self.restart_epoch();
    }

    /// The daemon began again: it knows of what is staged, and of nothing that failed.
    pub fn handle_reopened(&mut self) {
        self.owed.clear();
        self.is_in_doubt = false;
        self.handle_disconnected();
    }

    /// The standby says that it stands at `place`.
    pub fn check_place(&self, place: &Place) {
        assert_eq!((place.committed, &place.lineage), (self.committed, &self.lineage), "the place is not what was answered");
    }

    /// The standby is settled and has `image`.
    pub fn check_image(&self, image: &Image) {
        let mut content = image.content();
        content.retain(|_, found| *found != *ZERO);
        let wrong: Vec<_> =
            content.keys().chain(self.content.keys()).filter(|block| content.get(block) != self.content.get(block)).collect();
        assert!(wrong.is_empty(), "the copy differs from epoch {} in blocks {wrong:?}", self.committed);
    }

    fn has_point(&self) -> bool {
        self.committed > 0
    }

    fn handle_taken(&mut self, envelope: Envelope, answer: Option<&Message>) {
        if let (Message::Attach(attach), Some(Message::Attached(attached))) = (&envelope.message, answer) {
            assert_eq!(attached.committed, self.committed);
            return self.attach(attach);
        }
        assert!(self.is_attached && envelope.generation == self.lineage.current(), "a message of another generation was taken");
        match (envelope.message, answer) {
            (Message::Blocks(blocks), None) => self.stage(blocks),
            (Message::Compare(compare), Some(Message::Compared(compared))) => self.compare(&compare, compared),
            (Message::Commit(commit), Some(Message::Committed(epoch))) if commit.epoch == *epoch => self.commit(&commit),
            (Message::Abandon, None) => {
                self.bases.clear();
                self.restart_epoch();
            }
            (message, answer) => panic!("{message:?} was answered with {answer:?}"),
        }
    }

    fn attach(&mut self, attach: &Attach) {
        let (mine, theirs) = (self.lineage.current().id, attach.lineage.generations());
        if self.has_point() || !self.content.is_empty() {
            let at =
                theirs.iter().position(|generation| generation.id == mine).expect("a primary that does not continue the copy was taken");
            let branch = theirs.get(at + 1).map_or(u64::MAX, |next| next.branch_epoch);
            assert!(!self.has_point() || self.committed <= branch, "a primary was taken that never had epoch {}", self.committed);
        }
        self.bases.clear();
        assert!(!self.has_point() || attach.size_bytes >= self.size_bytes, "the copy is larger than the primary's volume");
        self.restart_epoch();
        if !self.has_point() {
            self.content.retain(|block, _| u64::from(*block) < block_count(attach.size_bytes));
        }
        let is_beyond = self.owed.max().is_some_and(|last| u64::from(last) >= block_count(attach.size_bytes));
        if is_beyond || std::mem::take(&mut self.is_in_doubt) || attach.lineage.current().id != mine {
            self.staged.clear();
            self.owed.clear();
        }
        self.lineage = attach.lineage.clone();
        self.is_attached = true;
    }

    fn stage(&mut self, blocks: Blocks) {
        self.digest.add(&blocks);
        let decoder = self.decoder.get_or_insert_with(|| Decoder::new().expect("a decoder"));
        let is_piece = blocks.encoding.needs_history();
        let blocks = decoder.detach(blocks).expect("a piece of a stream that does not decode was taken");
        let blocks = resolve(blocks, &mut self.bases, is_piece);
        let content = decoder.decode(&blocks).expect("a payload that does not decode was taken");
        assert!(blake3::hash(content) == blocks.digest, "a damaged payload was taken");
        let mut content = content.chunks_exact(BLOCK_BYTES).map(fingerprint);
        let is_point = self.committed > 0;
        for (run, kind) in &blocks.runs {
            self.owed.remove_range(run.blocks());
            for block in run.blocks() {
                let here = if *kind == Content::Zero { *ZERO } else { content.next().expect("content for each block") };
                if is_point {
                    self.staged.insert(block, here);
                } else if here == *ZERO {
                    self.content.remove(&block);
                } else {
                    self.content.insert(block, here);
                }
            }
        }
    }

    fn compare(&mut self, compare: &Compare, compared: &Compared) {
        assert_eq!(compare.ticket, compared.ticket);
        let (mut asked, mut different, mut answered) = <(RoaringBitmap, RoaringBitmap, RoaringBitmap)>::default();
        insert(&mut asked, compare.runs.iter().map(|(run, _)| run));
        let mut fingerprints = compare.fingerprints.iter();
        for (run, kind) in &compare.runs {
            if *kind == Content::Zero {
                let known = self.content.range(run.blocks()).chain(self.staged.range(run.blocks())).map(|(block, _)| *block);
                different.extend(known.filter(|block| self.at(*block, compare.against) != *ZERO));
            } else {
                different.extend(run.blocks().filter(|block| Some(&self.at(*block, compare.against)) != fingerprints.next()));
            }
        }
        insert(&mut answered, &compared.different);
        // Whoever asks twice about a block may get either answer.
        if asked.len() == compare.runs.iter().map(|(run, _)| u64::from(run.len)).sum::<u64>() {
            assert_eq!(answered, different, "a comparison found other blocks to be different");
        }
        if compare.against == Against::Epoch {
            asked.iter().for_each(|block| drop(self.bases.remove(&block)));
            self.owed -= asked - answered;
        }
    }

    /// What the standby has of a block.
    fn at(&self, block: BlockNumber, against: Against) -> Fingerprint {
        let staged = self.staged.get(&block).filter(|_| against == Against::Epoch);
        *staged.or_else(|| self.content.get(&block)).unwrap_or(&ZERO)
    }

    fn commit(&mut self, commit: &Commit) {
        let (epoch, blocks) = (commit.epoch, block_count(commit.size_bytes));
        assert!(epoch > self.committed, "epoch {epoch} became the recovery point after {}", self.committed);
        assert!((commit.blocks, commit.digest) == self.digest.value(), "epoch {epoch} was committed with another digest");
        assert!(self.owed.is_empty(), "epoch {epoch} was committed without {:?}", self.owed);
        assert!(!self.has_point() || commit.size_bytes >= self.size_bytes, "the volume shrank");
        assert!(self.staged.keys().all(|block| u64::from(*block) < blocks), "epoch {epoch} has blocks beyond its end");
        self.content.append(&mut self.staged);
        self.content.retain(|block, here| u64::from(*block) < blocks && *here != *ZERO);
        (self.committed, self.size_bytes, self.digest) = (epoch, commit.size_bytes, EpochDigest::default());
    }

    fn restart_epoch(&mut self) {
        self.digest = EpochDigest::default();
        self.owed.extend(self.staged.keys());
        if !self.has_point() {
            self.owed.clear();
        }
    }
}

/// Content in the place of differences; what it says may be a base from then on.
fn resolve(blocks: Blocks, bases: &mut BTreeMap<BlockNumber, Vec<u8>>, is_piece: bool) -> Blocks {
    let (mut payload, mut came) = (blocks.payload.to_vec(), Vec::new());
    let mut content = payload.chunks_exact_mut(BLOCK_BYTES);
    for (run, kind) in &blocks.runs {
        if *kind == Content::Zero || !is_piece {
            came.push((*run, None));
            continue;
        }
        for block in run.blocks() {
            let content = content.next().expect("content for each block");
            if *kind == Content::Delta {
                exclusive_or(bases.get(&block).expect("a difference to what did not come was taken"), content);
            }
            came.push((Run { start: block, len: 1 }, Some(content.to_vec())));
        }
    }
    for (run, content) in came {
        bases.extract_if(run.blocks(), |_, _| true).for_each(drop);
        bases.extend(content.map(|content| (run.start, content)));
    }
    Blocks { payload: payload.into(), ..blocks }
}

fn insert<'a>(blocks: &mut RoaringBitmap, runs: impl IntoIterator<Item = &'a Run>) {
    for run in runs {
        blocks.insert_range(run.blocks());
    }
}
