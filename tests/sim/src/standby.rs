//! The standby's side: the real [`Standby`], and what its service does around it.

use crate::storage::{SimFiles, Storage};
use bytes::Bytes;
use replicator::journal::JournalError;
use replicator::standby::{Place, Standby, StandbyError};
use replicator::undo::{Keep, Thin};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Envelope, Message, Refusal, Refused};
use std::io;

/// The one volume's id.
pub const VOLUME: Id = Id([7; 16]);

/// So little that points are thinned, and go, within a run.
const KEEP: Keep = Keep {
    span_ms: 5_000,
    max_bytes: 256 << 10,
    thin: [Thin { after_ms: 500, every_ms: 100 }, Thin { after_ms: 2_000, every_ms: 500 }],
    crowd: 100,
};

/// See the module's documentation.
pub struct StandbyPart {
    storage: Storage,
    quota_bytes: u64,
    /// `None` after its disk failed, until it is opened again.
    standby: Option<Standby<SimFiles>>,
    lineage: Lineage,
}

/// Opens the copy that is stored.
pub fn open(storage: &Storage, quota_bytes: u64) -> Result<Standby<SimFiles>, JournalError> {
    let place = Place::load(VOLUME, &*storage.catalogue)?.expect("the catalogue says where the copy stands");
    storage.files.reopen();
    let mut standby = Standby::open(place, storage.files.clone(), quota_bytes, storage.image.clone(), storage.catalogue.clone())?;
    standby.check_digests(Box::new(storage.digests.clone()))?;
    storage.undo.iter().for_each(SimFiles::reopen);
    standby.keep_points(storage.undo.clone(), KEEP)?;
    Ok(standby)
}

impl StandbyPart {
    /// Starts receiving.
    pub fn start(storage: Storage, quota_bytes: u64) -> Result<Self, JournalError> {
        let standby = open(&storage, quota_bytes)?;
        let lineage = standby.place().lineage.clone();
        Ok(Self { storage, quota_bytes, standby: Some(standby), lineage })
    }

    /// Where the copy stands, if its disk works.
    pub fn place(&self) -> Option<&Place> {
        self.standby.as_ref().map(Standby::place)
    }

    /// The lineage that was last adopted.
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Whether it could be promoted.
    pub fn has_point(&self) -> bool {
        self.place().is_some_and(|place| place.base == Base::Point)
    }

    /// Bytes of journal, and the quota.
    pub fn journal_bytes(&self) -> (u64, u64) {
        self.standby.as_ref().map_or((0, self.quota_bytes), |standby| standby.journal().used_bytes())
    }

    /// A frame came; what to answer.
    pub fn handle_frame(&mut self, frame: Bytes) -> Result<Option<Bytes>, Refused> {
        let standby = self.reopen().map_err(|error| Refused {
            reason: Refusal::Storage,
            text: error.to_string(),
            lineage: Lineage::first(VOLUME),
        })?;
        match standby.handle_frame(frame) {
            Ok(answer) => {
                let generation = standby.generation();
                self.lineage = standby.place().lineage.clone();
                Ok(answer.map(|message| Envelope { generation, message }.encode()))
            }
            Err(error) => {
                let refused = error.refusal(&standby.place().lineage);
                if let StandbyError::Disk(_) = error {
                    self.standby = None;
                }
                self.disconnect();
                Err(refused)
            }
        }
    }

    /// The frame that tells the primary why its stream ends.
    pub fn refusal(&self, refused: Refused) -> Bytes {
        Envelope { generation: self.lineage.current(), message: Message::Refused(refused) }.encode()
    }

    /// The stream ended.
    pub fn disconnect(&mut self) {
        if let Some(standby) = &mut self.standby {
            standby.handle_disconnected();
        }
    }

    /// Folds one message, or does a little for older recovery points, as the service does while nothing comes. Says whether more is left.
    pub fn fold(&mut self, unix_ms: u64) -> io::Result<bool> {
        self.standby.as_mut().map_or(Ok(false), |standby| Ok(standby.fold_one()? || standby.tidy_points(unix_ms)))
    }

    /// The image becomes the last recovery point.
    pub fn settle(&mut self) -> io::Result<(Epoch, Place)> {
        let standby = self.reopen().map_err(io::Error::other)?;
        let (epoch, _) = standby.settle()?;
        Ok((epoch, standby.place().clone()))
    }

    fn reopen(&mut self) -> Result<&mut Standby<SimFiles>, JournalError> {
        if self.standby.is_none() {
            self.standby = Some(open(&self.storage, self.quota_bytes)?);
        }
        Ok(self.standby.as_mut().expect("just opened"))
    }
}
