//! An old primary's last state, kept while its image becomes another site's standby: the image, with what is overwritten put aside before.
//!
//! It is nobody's recovery point: its epoch means nothing to the new primary, and only the operator ends it. Invariants:
//! - What is overwritten is in the log, durably, or recorded as lost before. What is lost is never shown.
//! - A log that ends before the place up to which it was sealed shows nothing at all: what is behind would be taken from the image, as it is now.
//! - What cannot be kept is told, and does not stop replication; a full disk does, as long as the operator has not let the old state go.

mod marks;

pub use marks::{Lost, OldMarks};

use super::{PastError, Standby};
use crate::catalogue::Persist;
use crate::disk::{BlockDevice, Pages, SegmentFiles};
use crate::journal::Position;
use crate::undo::{Aside, Point};
pub(super) use marks::KEYS;
use replicator_engine::block::{BlockNumber, Run, block_count};
use roaring::RoaringBitmap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module's documentation.
pub struct OldState<F> {
    image: Arc<dyn BlockDevice>,
    marks: OldMarks,
    /// `None` once the operator has let it go.
    kept: Mutex<Option<Kept<F>>>,
}

struct Kept<F> {
    point: Point,
    /// `None` if it cannot be read: everything is lost then.
    aside: Option<Aside<F>>,
    /// What the log takes then.
    damaged_bytes: u64,
    lost: Lost,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptOld {
    /// When it was, and how large.
    pub point: Point,
    /// What it takes on disk.
    pub used_bytes: u64,
    /// Blocks of it that are lost.
    pub lost_blocks: u64,
    /// Why.
    pub why_lost: Option<String>,
}

impl<F: SegmentFiles> Kept<F> {
    fn describe(&self) -> KeptOld {
        let blocks = block_count(self.point.size_bytes);
        KeptOld {
            point: self.point,
            used_bytes: self.aside.as_ref().map_or(self.damaged_bytes, Aside::used_bytes),
            lost_blocks: if self.lost.all { blocks } else { self.lost.blocks.len() },
            why_lost: Some(&self.lost.why).filter(|why| !why.is_empty()).cloned(),
        }
    }

    /// Saves what is about to be overwritten. What the disk does not give any more is recorded as lost.
    fn save(&mut self, marks: &OldMarks, image: &dyn BlockDevice, run: Run) -> io::Result<()> {
        let Some(aside) = &mut self.aside else { return Ok(()) };
        let before = aside.until();
        let unreadable = aside.save(image, run, &self.lost.blocks)?;
        if aside.until() > before {
            marks.store_sealed(self.point, aside.until(), Persist::Eventually)?;
        }
        self.lose(marks, &unreadable, "the disk could not read them when they were to be overwritten")
    }

    fn lose(&mut self, marks: &OldMarks, blocks: &RoaringBitmap, why: &str) -> io::Result<()> {
        let fresh = blocks - &self.lost.blocks;
        let Some(first) = fresh.min().filter(|_| !self.lost.all) else { return Ok(()) };
        tracing::error!(blocks = fresh.len(), first, why, "blocks of the old state that is kept here are lost");
        let lost = Lost { blocks: &self.lost.blocks | &fresh, why: why.to_owned(), ..self.lost };
        marks.store_lost(&lost)?;
        self.lost = lost;
        Ok(())
    }

    fn read(&mut self, image: &dyn BlockDevice, run: Run) -> io::Result<Pages> {
        let lost = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{what} is lost: {}", self.lost.why));
        let Some(aside) = &mut self.aside else { return Err(lost("the old state".into())) };
        if let Some(block) = run.blocks().find(|block| self.lost.blocks.contains(*block)) {
            return Err(lost(format!("block {block} of the old state")));
        }
        let mut content = Pages::new(run.len);
        let end = block_count(image.size_bytes()) as BlockNumber;
        if let Some(inside) = Run::new(run.start, run.end().min(end).saturating_sub(run.start)) {
            image.read(inside, &mut content[..inside.len_bytes() as usize])?;
        }
        aside.read(run, &mut content)?;
        Ok(content)
    }
}

impl<F: SegmentFiles> OldState<F> {
    /// Begins to keep a volume as it is now, but for what is `lost` of it already, and forgets what was kept before. Durable on return.
    pub fn begin(files: F, marks: &OldMarks, point: Point, lost: &Lost) -> io::Result<()> {
        marks.clear()?;
        if !lost.why.is_empty() {
            marks.store_lost(lost)?;
        }
        let until = Aside::begin(files, marks.generation(), point)?;
        marks.store_sealed(point, until, Persist::Synced)
    }

    /// Opens what is kept beside `image` in `files`; `None` if nothing is. Where that cannot be read the old state is given up, which is recorded, and
    /// the files stay as they are until the operator lets them go.
    pub fn open(files: F, marks: OldMarks, image: Arc<dyn BlockDevice>) -> io::Result<Option<Arc<Self>>> {
        let (sealed, mut lost) = (marks.sealed()?, marks.lost()?);
        let damaged_bytes = files.list()?.into_iter().filter_map(|segment| files.len_bytes(segment).ok()).sum();
        let opened = if lost.all { Ok(None) } else { Aside::open(files, marks.generation(), sealed.map(|(_, until)| until)) };
        let (aside, point) = match (opened, sealed) {
            (Ok(Some(aside)), _) => {
                marks.store_sealed(aside.point(), aside.until(), Persist::Eventually)?;
                let point = aside.point();
                (Some(aside), point)
            }
            (Ok(None), Some((point, _))) => {
                tracing::warn!(why = lost.why, "the old state that is kept here is lost");
                (None, point)
            }
            (Ok(None), None) => return Ok(None),
            (Err(error), Some((point, _))) if is_of_content(&error) => {
                tracing::error!(%error, "the old state that is kept here cannot be read: it is given up, and its files stay for whoever can");
                lost = Lost::all(format!("its log is damaged: {error}"));
                marks.store_lost(&lost)?;
                (None, point)
            }
            (Err(error), _) => return Err(error),
        };
        Ok(Some(Arc::new(Self { image, marks, kept: Mutex::new(Some(Kept { point, aside, damaged_bytes, lost })) })))
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept<F>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, kept: &mut Option<Kept<F>>, run: Run) -> io::Result<()> {
        kept.as_mut().map_or(Ok(()), |kept| kept.save(&self.marks, &*self.image, run))
    }
}

/// Whether it is the log that is damaged, and not this process that lacks something.
fn is_of_content(error: &io::Error) -> bool {
    let is_io = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    is_io || matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

impl<F: SegmentFiles> BlockDevice for OldState<F> {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.image.read(run, content)
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        let mut kept = self.kept();
        self.save(&mut kept, run)?;
        self.image.write(run, content)
    }

    /// Where there is a hole, zeroes overwrite nothing.
    fn zero(&self, run: Run) -> io::Result<()> {
        let mut kept = self.kept();
        let mut from = run.start;
        while let Some(data) = self.image.allocated(from)?.filter(|data| data.start < run.end()) {
            let (start, end) = (data.start.max(from), data.end().min(run.end()));
            self.save(&mut kept, Run { start, len: end - start })?;
            from = end;
        }
        self.image.zero(run)
    }

    fn sync(&self) -> io::Result<()> {
        self.image.sync()
    }

    fn allocated(&self, from: BlockNumber) -> io::Result<Option<Run>> {
        self.image.allocated(from)
    }

    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn grow(&self, size_bytes: u64) -> io::Result<()> {
        self.image.grow(size_bytes)
    }
}

impl<F: SegmentFiles> Standby<F> {
    /// The image that this was opened with keeps an old state.
    pub fn set_old_state(&mut self, old: Option<Arc<OldState<F>>>) {
        self.old = old;
    }

    /// What is kept of an old primary's last state.
    pub fn kept_old(&self) -> Option<KeptOld> {
        self.old.as_ref()?.kept().as_ref().map(Kept::describe)
    }

    /// The same, for somebody who wants to read it.
    pub(super) fn old_that_can_be_read(&self) -> io::Result<KeptOld> {
        let kept = self.kept_old().ok_or_else(|| io::Error::other("no old state is kept here"))?;
        match &kept.why_lost {
            Some(why) if kept.lost_blocks == block_count(kept.point.size_bytes) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("the old state that is kept here is lost: {why}")))
            }
            _ => Ok(kept),
        }
    }

    /// Lets it go, for good. Of one that is damaged, its files are still to be removed, before they are [forgotten](OldMarks::forget).
    pub fn forget_old(&mut self) -> io::Result<()> {
        let Some(old) = &self.old else { return Ok(()) };
        let Some(mut kept) = old.kept().take() else { return Ok(()) };
        let Some(aside) = &mut kept.aside else { return Ok(()) };
        aside.clear()?;
        old.marks.clear()
    }

    /// Reads `run`, which lies in it.
    pub(super) fn read_old(&self, run: Run) -> Result<Pages, PastError> {
        let gone = || PastError::Disk(io::Error::new(io::ErrorKind::NotFound, "no old state is kept here"));
        let old = self.old.as_ref().ok_or_else(gone)?;
        let mut kept = old.kept();
        Ok(kept.as_mut().ok_or_else(gone)?.read(&*old.image, run)?)
    }

    /// The record of it behind this one, or the first.
    pub(super) fn old_piece_after(&self, after: Option<Position>) -> Option<Position> {
        self.old.as_ref()?.kept().as_ref()?.aside.as_ref()?.piece_after(after)
    }

    /// Reads a record of it against its checksums; says how much was read.
    pub(super) fn check_old_piece(&self, at: Position) -> io::Result<u64> {
        let Some(old) = &self.old else { return Ok(0) };
        old.kept().as_mut().and_then(|kept| kept.aside.as_mut()).map_or(Ok(0), |aside| aside.check_piece(at))
    }

    /// A record of it cannot be read: what it has is lost.
    pub(super) fn lose_old_piece(&self, at: Position, why: &io::Error) {
        let Some(old) = &self.old else { return };
        let mut kept = old.kept();
        let Some(kept) = kept.as_mut() else { return };
        let blocks = kept.aside.as_ref().map_or_else(RoaringBitmap::new, |aside| aside.blocks_of(at));
        if let Err(error) = kept.lose(&old.marks, &blocks, &format!("what was kept of them cannot be read: {why}")) {
            tracing::error!(%error, "what is lost of the old state could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests;
