//! The standby's side: the real [`Standby`], and what its service does around it.

use crate::forgetful::Forgetful;
use crate::plant::Plant;
use crate::storage::{SimFiles, Storage};
use bytes::Bytes;
use replicator::journal::JournalError;
use replicator::standby::{Place, Standby, StandbyError};
use replicator::undo::{Keep, Thin};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::history::History;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Base, Envelope, Message, Refusal, Refused};
use roaring::RoaringBitmap;
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
    /// A primary that branched before what is committed here, since it was refused.
    rival: Option<Lineage>,
    /// Whether the volume has other standbys: then it is remembered what changes here.
    has_others: bool,
    forgetful: Forgetful,
}

/// A copy that stands still at its last recovery point.
pub struct Settled {
    pub epoch: Epoch,
    pub place: Place,
    pub damaged: RoaringBitmap,
    /// What changed of late: the volume's other standbys may lack it.
    pub history: History,
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
    pub fn start(storage: Storage, quota_bytes: u64, has_others: bool, rival: Option<Lineage>) -> Result<Self, JournalError> {
        let lineage = Lineage::first(VOLUME);
        let mut started = Self { storage, quota_bytes, standby: None, lineage, rival, has_others, forgetful: Forgetful::default() };
        started.lineage = started.reopen()?.place().lineage.clone();
        Ok(started)
    }

    /// Its primary says that every standby has this epoch.
    pub fn everywhere(&mut self, epoch: Epoch) {
        if let Some(standby) = &mut self.standby {
            standby.handle_everywhere(epoch);
            self.forgetful.history.forget_until(epoch);
        }
    }

    /// A primary that branched before what is committed here, since it was refused.
    pub fn rival(&self) -> Option<&Lineage> {
        self.rival.as_ref()
    }

    /// Whether a stream that begins with this frame takes the place of one that is attached. If not, whoever is attached may have to go, too.
    pub fn judge(&mut self, first: &Bytes) -> Result<(), (Refused, Option<Refused>)> {
        let standby = self.reopen().map_err(|error| (no_storage(&error), None))?;
        let judged = standby.judge(first).map_err(|error| (error.refusal(&standby.place().lineage), standby.outdated()));
        self.rival = standby.rival().cloned();
        judged
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
        let plant = self.storage.faults.plant();
        let standby = self.reopen().map_err(|error| no_storage(&error))?;
        let before = plant.map(|plant| (plant, standby.place().clone()));
        match standby.handle_frame(frame.clone()) {
            Ok(mut answer) => {
                let generation = standby.generation();
                (self.rival, self.lineage) = (standby.rival().cloned(), standby.place().lineage.clone());
                if let Some((plant, before)) = before {
                    self.meddle(plant, frame, before, &mut answer);
                }
                Ok(answer.map(|message| Envelope { generation, message }.encode()))
            }
            Err(error) => {
                let refused = error.refusal(&standby.place().lineage);
                self.rival = standby.rival().cloned();
                if let StandbyError::Disk(_) = error {
                    self.standby = None;
                }
                self.disconnect();
                Err(refused)
            }
        }
    }

    /// Bugs that are planted in what an answer says, and in what is known of an epoch.
    fn meddle(&mut self, plant: Plant, frame: Bytes, before: Place, answer: &mut Option<Message>) {
        match (plant, answer) {
            (Plant::KeepBase, Some(Message::Attached(attached))) if matches!(before.base, Base::PointBut(_)) => {
                (attached.base, attached.committed) = (before.base, before.committed);
            }
            (Plant::ForgetFoundEqual, Some(Message::Committed(epoch))) => self.forgetful.committed(&before.base, *epoch),
            (Plant::ForgetFoundEqual, None) => {
                if let Ok(Envelope { message: Message::Blocks(blocks), .. }) = Envelope::decode(frame) {
                    self.forgetful.came(&blocks);
                }
            }
            _ => {}
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
    pub fn settle(&mut self) -> io::Result<Settled> {
        let standby = self.reopen().map_err(io::Error::other)?;
        let (epoch, _) = standby.settle()?;
        let (place, damaged, history) = (standby.place().clone(), standby.damaged(), standby.history());
        let is_planted = self.has_others && self.storage.faults.plant() == Some(Plant::ForgetFoundEqual);
        let history = if is_planted { self.forgetful.history.clone() } else { history };
        Ok(Settled { epoch, place, damaged, history })
    }

    fn reopen(&mut self) -> Result<&mut Standby<SimFiles>, JournalError> {
        if self.standby.is_none() {
            let mut standby = open(&self.storage, self.quota_bytes)?;
            if self.has_others {
                standby.handle_everywhere(0);
            }
            self.forgetful = Forgetful::new(standby.place().committed);
            standby.set_rival(self.rival.clone());
            self.standby = Some(standby);
        }
        Ok(self.standby.as_mut().expect("just opened"))
    }
}

fn no_storage(error: &JournalError) -> Refused {
    Refused { reason: Refusal::Storage, text: error.to_string(), lineage: Lineage::first(VOLUME) }
}
