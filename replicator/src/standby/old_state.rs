//! An old primary's last state, kept while its image becomes another site's standby: the image, with what is overwritten put aside before.
//!
//! It is nobody's recovery point: its epoch means nothing to the new primary, and only the operator ends it.

use super::{PastError, Standby};
use crate::disk::{BlockDevice, Pages, SegmentFiles};
use crate::undo::{Aside, Point};
use replicator_engine::block::{BlockNumber, Run, block_count};
use replicator_engine::generation::Generation;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module's documentation.
pub struct OldState<F> {
    image: Arc<dyn BlockDevice>,
    /// `None` once the operator has let it go.
    aside: Mutex<Option<Aside<F>>>,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOld {
    /// When it was, and how large.
    pub point: Point,
    /// What it takes on disk.
    pub used_bytes: u64,
}

impl<F: SegmentFiles> OldState<F> {
    /// Opens what is kept beside `image` in `files`; `None` if nothing is.
    pub fn open(files: F, generation: Generation, image: Arc<dyn BlockDevice>) -> io::Result<Option<Arc<Self>>> {
        let aside = Aside::open(files, generation)?;
        Ok(aside.map(|aside| Arc::new(Self { image, aside: Mutex::new(Some(aside)) })))
    }

    fn aside(&self) -> MutexGuard<'_, Option<Aside<F>>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> Option<KeptOld> {
        self.aside().as_ref().map(|aside| KeptOld { point: aside.point(), used_bytes: aside.used_bytes() })
    }

    fn read_old(&self, run: Run) -> Result<Pages, PastError> {
        let mut aside = self.aside();
        let aside = aside.as_mut().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the old state is not kept any more"))?;
        let mut content = Pages::new(run.len);
        let end = block_count(self.image.size_bytes()) as BlockNumber;
        if let Some(inside) = Run::new(run.start, run.end().min(end).saturating_sub(run.start)) {
            self.image.read(inside, &mut content[..inside.len_bytes() as usize])?;
        }
        aside.read(run, &mut content)?;
        Ok(content)
    }

    fn save(&self, aside: &mut Option<Aside<F>>, run: Run) -> io::Result<()> {
        aside.as_mut().map_or(Ok(()), |aside| aside.save(&*self.image, run))
    }
}

impl<F: SegmentFiles> BlockDevice for OldState<F> {
    fn read(&self, run: Run, content: &mut [u8]) -> io::Result<()> {
        self.image.read(run, content)
    }

    fn write(&self, run: Run, content: &[u8]) -> io::Result<()> {
        let mut aside = self.aside();
        self.save(&mut aside, run)?;
        self.image.write(run, content)
    }

    /// Where there is a hole, zeroes overwrite nothing.
    fn zero(&self, run: Run) -> io::Result<()> {
        let mut aside = self.aside();
        let mut from = run.start;
        while let Some(data) = self.image.allocated(from)?.filter(|data| data.start < run.end()) {
            let (start, end) = (data.start.max(from), data.end().min(run.end()));
            self.save(&mut aside, Run { start, len: end - start })?;
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
        self.old.as_ref()?.kept()
    }

    /// Lets it go, for good.
    pub fn forget_old(&mut self) -> io::Result<()> {
        let Some(old) = &self.old else { return Ok(()) };
        old.aside().take().map_or(Ok(()), |mut aside| aside.clear())
    }

    /// Reads `run`, which lies in it.
    pub(super) fn read_old(&self, run: Run) -> Result<Pages, PastError> {
        let gone = || PastError::Disk(io::Error::new(io::ErrorKind::NotFound, "no old state is kept here"));
        self.old.as_ref().ok_or_else(gone)?.read_old(run)
    }
}

#[cfg(test)]
mod tests;
