//! A copy whose volume has another size than its image.

use super::*;
use crate::codec::Encoder;
use crate::pairing::tests::MemoryCatalogue;
use replicator_engine::block::{BLOCK_BYTES, BlockNumber};
use replicator_engine::generation::Id;
use replicator_engine::wire::{Against, Attach, Compare, Compared, EpochDigest};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// An image that ends where it ends, on a disk that may be full. Its file may be longer.
#[derive(Default)]
pub(super) struct Image {
    content: Mutex<Vec<u8>>,
    size_bytes: AtomicU64,
    pub full: AtomicBool,
}

impl Image {
    pub fn new(blocks: u64) -> Arc<Self> {
        let size_bytes = blocks * BLOCK;
        Arc::new(Self { content: Mutex::new(vec![0; size_bytes as usize]), size_bytes: size_bytes.into(), ..Self::default() })
    }

    /// The daemon began again: the image ends where its record says, which is older than the last growth.
    fn reopen(&self, blocks: u64) {
        self.size_bytes.store(blocks * BLOCK, SeqCst);
    }

    fn with<T>(&self, run: Run, work: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let range = run.offset() as usize..(run.offset() + run.len_bytes()) as usize;
        let mut content = self.content.lock().unwrap();
        content[..self.size_bytes.load(SeqCst) as usize].get_mut(range).map(work).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The first byte of every block.
    pub fn bytes(&self) -> Vec<u8> {
        self.content.lock().unwrap()[..self.size_bytes.load(SeqCst) as usize].iter().step_by(BLOCK_BYTES).copied().collect()
    }
}

impl BlockDevice for Image {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.with(run, |here| content.copy_from_slice(here))
    }
    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        if self.full.load(SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.with(run, |here| here.copy_from_slice(content))
    }
    fn zero(&self, run: Run) -> io::Result<()> {
        self.with(run, |here| here.fill(0))
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        Ok(Run::covering(u64::from(from) * BLOCK, self.size_bytes().saturating_sub(u64::from(from) * BLOCK)))
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(SeqCst)
    }
    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        let file_bytes = content.len().max(size_bytes as usize);
        content.resize(file_bytes, 0);
        self.size_bytes.store(size_bytes, SeqCst);
        Ok(())
    }
}

/// A primary that sends whole epochs.
pub(super) struct Primary {
    pub blocks: u64,
    pub epoch: Epoch,
}

impl Primary {
    pub fn frame(message: Message) -> Bytes {
        Envelope { generation: Lineage::first(Id([1; 16])).current(), message }.encode()
    }

    pub fn attach_frame(&self) -> Bytes {
        let attach = Attach { volume: Id([7; 16]), size_bytes: self.blocks * BLOCK, lineage: Lineage::first(Id([1; 16])) };
        Self::frame(Message::Attach(attach))
    }

    /// An epoch that fills `block` with `byte`: content and commit.
    pub fn epoch_frames(&mut self, block: BlockNumber, byte: u8) -> [Bytes; 2] {
        let blocks = Encoder::new().unwrap().encode(&[Run { start: block, len: 1 }], &[byte; BLOCK_BYTES]);
        let mut digest = EpochDigest::default();
        digest.add(&blocks);
        self.epoch += 1;
        let (count, digest) = digest.value();
        let commit = Commit {
            epoch: self.epoch,
            blocks: count,
            digest,
            size_bytes: self.blocks * BLOCK,
            cut_unix_ms: 1000 + self.epoch,
            group: None,
        };
        [Self::frame(Message::Blocks(blocks)), Self::frame(Message::Commit(commit))]
    }

    fn attach(&self, standby: &mut Standby<SegmentDir>) {
        standby.handle_frame(self.attach_frame()).unwrap();
    }

    fn send(&mut self, standby: &mut Standby<SegmentDir>, block: BlockNumber, byte: u8) {
        let answers = self.epoch_frames(block, byte).map(|frame| standby.handle_frame(frame).unwrap());
        assert_eq!(answers, [None, Some(Message::Committed(self.epoch))]);
    }
}

pub(super) struct Site {
    dir: tempfile::TempDir,
    catalogue: Arc<MemoryCatalogue>,
    place: Place,
}

impl Site {
    pub fn new(blocks: u64, base: Base) -> Self {
        let place = Place::blank(Id([7; 16]), Id([8; 16]), Lineage::first(Id([1; 16])), blocks * BLOCK);
        Self { dir: tempfile::tempdir().unwrap(), catalogue: Arc::default(), place: Place { base, ..place } }
    }

    /// Opens the copy at the place that it began with: whatever was recorded lazily since is lost.
    pub fn open(&self, image: &Arc<Image>) -> Standby<SegmentDir> {
        let files = SegmentDir::open(&self.dir.path().join("journal")).unwrap();
        Standby::open(self.place.clone(), files, 1 << 20, image.clone(), self.catalogue.clone()).unwrap()
    }
}

#[test]
fn a_volume_that_grew_is_taken_in_before_the_first_recovery_point_and_after_it() {
    for base in [Base::Blank, Base::Point] {
        let (site, image) = (Site::new(4, base), Image::new(4));
        let mut standby = site.open(&image);
        let mut primary = Primary { blocks: 8, epoch: 0 };
        primary.attach(&mut standby);
        primary.send(&mut standby, 6, 5);
        assert_eq!(standby.settle().unwrap().0, 1);
        assert_eq!(image.bytes(), [0, 0, 0, 0, 0, 0, 5, 0]);
    }
}

#[test]
fn a_volume_may_grow_while_its_stream_goes_on() {
    for base in [Base::Blank, Base::Point] {
        let (site, image) = (Site::new(4, base), Image::new(4));
        let mut standby = site.open(&image);
        let mut primary = Primary { blocks: 4, epoch: 0 };
        primary.attach(&mut standby);
        primary.blocks = 8;
        primary.send(&mut standby, 6, 5);
        assert_eq!((standby.place().size_bytes, image.size_bytes()), (8 * BLOCK, 8 * BLOCK));
        assert_eq!(standby.settle().unwrap().0, 1);
        assert_eq!(image.bytes(), [0, 0, 0, 0, 0, 0, 5, 0]);
    }
}

#[test]
fn a_volume_that_grew_is_folded_after_a_loss_of_power() {
    let (site, image) = (Site::new(4, Base::Point), Image::new(4));
    let mut standby = site.open(&image);
    let mut primary = Primary { blocks: 8, epoch: 0 };
    primary.attach(&mut standby);
    primary.send(&mut standby, 6, 5);
    // The image as the daemon's record has it, and the place as it was before: the journal knows better.
    let old = Image::new(4);
    let mut reopened = site.open(&old);
    assert_eq!(reopened.place().size_bytes, 8 * BLOCK);
    assert_eq!(reopened.settle().unwrap().0, 1);
    assert_eq!(old.bytes(), [0, 0, 0, 0, 0, 0, 5, 0]);
}

#[test]
fn a_block_that_was_found_equal_may_be_lacking_elsewhere() {
    let (site, image) = (Site::new(4, Base::Point), Image::new(4));
    let mut standby = site.open(&image);
    standby.handle_everywhere(0);
    let mut primary = Primary { blocks: 4, epoch: 0 };
    primary.attach(&mut standby);
    primary.send(&mut standby, 1, 5);
    let mut compare = Compare::new(1, Against::Epoch);
    compare.add(1, crate::codec::fingerprint(&[5; BLOCK_BYTES]));
    compare.add(2, crate::codec::fingerprint(&[6; BLOCK_BYTES]));
    standby.handle_frame(Primary::frame(Message::Compare(compare))).unwrap();
    primary.send(&mut standby, 3, 7);
    assert_eq!(standby.history().since(1), Some(RoaringBitmap::from_iter([1, 3])));
}

#[test]
fn a_copy_that_followed_an_overtaken_primary_is_known_as_that_after_a_restart() {
    let (mut site, image) = (Site::new(4, Base::PointBut(RoaringBitmap::from_iter([1]))), Image::new(4));
    let attach = |site: &Site, lineage: Lineage| {
        let generation = lineage.current();
        let message = Message::Attach(Attach { volume: Id([7; 16]), size_bytes: 4 * BLOCK, lineage });
        match site.open(&image).handle_frame(Envelope { generation, message }.encode()).unwrap() {
            Some(Message::Attached(attached)) => attached.base,
            other => panic!("{other:?}"),
        }
    };
    (site.place.committed, site.place.folded) = (5, 5);
    let first = Lineage::first(Id([1; 16])).promoted(Id([2; 16]), 5);
    let second = first.promoted(Id([3; 16]), 9);
    for (lineage, known) in
        [(&first, Base::PointBut(RoaringBitmap::from_iter([1]))), (&second, Base::Unfinished), (&second, Base::Unfinished)]
    {
        assert_eq!(attach(&site, lineage.clone()), known);
        site.place = Place::load(Id([7; 16]), &*site.catalogue).unwrap().unwrap();
    }
}

#[test]
fn blocks_that_are_asked_about_beyond_the_image_are_zeroes() {
    let (site, image) = (Site::new(4, Base::Point), Image::new(4));
    let mut standby = site.open(&image);
    Primary { blocks: 8, epoch: 0 }.attach(&mut standby);
    let mut compare = Compare::new(1, Against::Point);
    compare.add(5, crate::codec::fingerprint(&[0; BLOCK_BYTES]));
    compare.add(6, crate::codec::fingerprint(&[1; BLOCK_BYTES]));
    compare.add_zeroes(Run { start: 7, len: 1000 });
    let answer = standby.handle_frame(Primary::frame(Message::Compare(compare))).unwrap();
    assert_eq!(answer, Some(Message::Compared(Compared { ticket: 1, different: vec![Run { start: 6, len: 1 }] })));
    assert_eq!(image.size_bytes(), 4 * BLOCK, "a question makes nothing grow");
}

/// A primary sends an epoch, grows and sends another: all that is behind it is what it sent.
fn grow_from_four_blocks_to_eight(standby: &mut Standby<SegmentDir>, image: &Image) {
    let mut primary = Primary { blocks: 4, epoch: 0 };
    primary.attach(standby);
    primary.send(standby, 1, 3);
    primary.blocks = 8;
    primary.attach(standby);
    primary.send(standby, 2, 4);
    standby.settle().unwrap();
    assert_eq!(image.bytes(), [0, 3, 4, 0, 0, 0, 0, 0]);
}

#[test]
fn nothing_of_a_larger_copy_is_left_when_the_volume_grows_into_it() {
    let image = Image::new(8);
    image.write(Run { start: 6, len: 1 }, &[9; BLOCK_BYTES]).unwrap();
    let site = Site::new(8, Base::PointBut(RoaringBitmap::from_iter([1])));
    let mut standby = site.open(&image);
    grow_from_four_blocks_to_eight(&mut standby, &image);
}

#[test]
fn nothing_of_a_larger_copy_is_left_when_the_volume_grows_before_its_first_epoch() {
    let image = Image::new(8);
    image.write(Run { start: 6, len: 1 }, &[9; BLOCK_BYTES]).unwrap();
    let site = Site::new(8, Base::PointBut(RoaringBitmap::from_iter([1])));
    let mut standby = site.open(&image);
    let mut primary = Primary { blocks: 4, epoch: 0 };
    primary.attach(&mut standby);
    primary.blocks = 8;
    primary.send(&mut standby, 1, 3);
    standby.settle().unwrap();
    assert_eq!(image.bytes(), [0, 3, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn nothing_of_a_larger_attempt_is_left_after_a_restart() {
    let (mut site, image) = (Site::new(4, Base::Blank), Image::new(4));
    let mut standby = site.open(&image);
    let mut primary = Primary { blocks: 8, epoch: 0 };
    primary.attach(&mut standby);
    let [content, _] = primary.epoch_frames(6, 9);
    standby.handle_frame(content).unwrap();
    // The primary lost power, too, and its growth.
    image.reopen(4);
    site.place = Place::load(Id([7; 16]), &*site.catalogue).unwrap().unwrap();
    let mut standby = site.open(&image);
    grow_from_four_blocks_to_eight(&mut standby, &image);
}

#[test]
fn a_commit_for_which_the_journal_has_no_room_waits_for_the_fold() {
    let (site, image) = (Site::new(4, Base::Point), Image::new(4));
    let mut standby = site.open(&image);
    standby.journal.set_segment_bytes(1);
    let mut primary = Primary { blocks: 4, epoch: 0 };
    primary.attach(&mut standby);
    primary.send(&mut standby, 1, 3);
    let [content, commit] = primary.epoch_frames(2, 4);
    standby.handle_frame(content).unwrap();
    let used_bytes = standby.journal().used_bytes().0;
    standby.journal.set_quota_bytes(used_bytes);
    assert_eq!(standby.handle_frame(commit).unwrap(), Some(Message::Committed(2)));
    assert_eq!(image.bytes(), [0, 3, 0, 0], "what was committed before made room");
    standby.settle().unwrap();
    assert_eq!(image.bytes(), [0, 3, 4, 0]);
}
