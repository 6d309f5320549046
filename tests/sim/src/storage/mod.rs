//! What a site has stored, with everything that can go wrong with it.

mod catalogue;
#[cfg(test)]
mod conformance;
mod digests;
mod faults;
mod image;
mod segments;

pub use catalogue::SimCatalogue;
#[cfg(test)]
pub use conformance::conforms;
pub use digests::SimDigests;
pub use faults::{Access, Faults};
pub use image::{NOISE, SECTORS, SimImage, Stamps, View, view_of};
pub use segments::SimFiles;

use crate::plant::Plant;
use rand::RngExt;
use rand::rngs::StdRng;
use replicator::undo::LEVELS;
use std::io;
use std::sync::Arc;

/// The image, the journal, what leads back from the image and checks it, and the catalogue of one site. Clones share them, as a restarted daemon does.
#[derive(Clone)]
pub struct Storage {
    pub image: Arc<SimImage>,
    pub files: SimFiles,
    pub undo: [SimFiles; LEVELS],
    pub digests: SimDigests,
    pub catalogue: Arc<SimCatalogue>,
    pub faults: Arc<Faults>,
}

impl Storage {
    /// Empty, for a volume of this size.
    pub fn new(size_bytes: u64, rng: &mut StdRng, plant: Option<Plant>) -> Self {
        let faults = Arc::new(Faults::new(rng.random(), plant));
        Self {
            image: Arc::new(SimImage::new(size_bytes, faults.clone())),
            files: SimFiles::new(faults.clone()),
            undo: std::array::from_fn(|_| SimFiles::new(faults.clone())),
            digests: SimDigests::new(faults.clone()),
            catalogue: Arc::new(SimCatalogue::new(faults.clone())),
            faults,
        }
    }

    /// A copy that goes its own way, and works without faults.
    pub fn fork(&self, rng: &mut StdRng) -> Self {
        let faults = Arc::new(Faults::new(rng.random(), self.faults.plant()));
        Self {
            image: Arc::new(self.image.fork(faults.clone())),
            files: self.files.fork(faults.clone()),
            undo: self.undo.each_ref().map(|files| files.fork(faults.clone())),
            digests: self.digests.fork(faults.clone()),
            catalogue: Arc::new(self.catalogue.fork(faults.clone())),
            faults,
        }
    }

    /// The power goes: of what was not synced, some is lost, some is torn.
    pub fn lose_power(&self, rng: &mut StdRng) {
        self.image.lose_power(rng);
        self.files.lose_power(rng);
        self.undo.iter().for_each(|files| files.lose_power(rng));
        self.digests.lose_power(rng);
        self.catalogue.lose_power(rng);
    }

    /// What led back from the image, and what its blocks are known by, is removed: it is written to without them from now on.
    pub fn forget_past(&self) -> io::Result<()> {
        self.digests.remove()?;
        self.undo.iter().try_for_each(SimFiles::remove_all)
    }
}
