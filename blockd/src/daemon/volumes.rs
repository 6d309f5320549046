//! The volumes of this site: made, opened, served, deleted. One owner at a time changes them; what they are is in the catalogue first.

use super::drills::{self, RunningDrill};
use super::exports::FrontEnds;
use super::forecast;
use super::groups::Groups;
use super::lease::Grants;
use super::old;
use super::part::{Base, Lacking, Overtaken, Part, PrimaryStart, volume_id};
use super::proof;
use super::sites::Sites;
use super::state_dir::StateDir;
use crate::catalogue::{MadeBy, PeerRecord, RecordedRole, RocksCatalogue, VolumeRecord};
use crate::metrics::Metrics;
use crate::sandbox::Roots;
use crate::store::{Image, StoreError};
use crate::volume::{Clients, Gate, GateState, OriginSlot, Volume};
use blockd_api::{ApiError, ErrorCode, VolumeName};
use replicator::catalogue::{Catalogue, Persist};
use replicator::codec::BasesMemory;
use replicator::counters::Counters;
use replicator::intake::{ActivityLog, Intake, KeptLimits, extent_blocks};
use replicator::primary::memory::{self, EpochNumbers};
use replicator::site_link::request::parse_id;
use replicator::standby::{Place, ScrubBudget, ScrubPace};
use replicator::undo::Keep;
use replicator_engine::block::{BLOCK_BYTES, MAX_BLOCKS, block_count};
use replicator_engine::generation::{Id, Lineage};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// For requests under way to complete when the daemon stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(super) struct Volumes {
    pub state_dir: StateDir,
    /// Where backings and sockets may lie.
    pub roots: Roots,
    pub catalogue: Arc<RocksCatalogue>,
    pub front_ends: Arc<FrontEnds>,
    pub sites: Arc<Sites>,
    /// Told when another site has overtaken this one.
    pub overtaken: mpsc::UnboundedSender<Overtaken>,
    pub metrics: Arc<Metrics>,
    pub spill_quota_bytes: u64,
    /// Content that is kept in memory for one volume before it is spilled.
    pub spill_memory_bytes: u64,
    /// Memory for what went last of hot blocks.
    pub bases: Arc<BasesMemory>,
    pub journal_quota_bytes: u64,
    /// Which recovery points standbys keep.
    pub keep: Keep,
    /// How their images are looked through.
    pub scrub: ScrubPace,
    /// What they read together.
    pub scrub_budget: ScrubBudget,
    pub grants: Arc<Grants>,
    pub open: BTreeMap<VolumeName, OpenVolume>,
    /// Copies of recovery points that are served.
    pub drills: BTreeMap<VolumeName, RunningDrill>,
    /// Volumes of the catalogue that could not be opened.
    pub unopened: BTreeMap<VolumeName, Unopened>,
    /// Names of volumes that are being made or deleted.
    pub reserved: BTreeSet<VolumeName>,
    /// Volumes that are cut together.
    pub groups: Groups,
}

/// A volume that could not be opened: nothing of it is touched until the operator has mended it or deletes it.
pub(super) struct Unopened {
    pub record: VolumeRecord,
    pub error: ApiError,
}

/// A volume and what is remembered of it.
pub(super) struct OpenVolume {
    pub record: VolumeRecord,
    pub volume: Arc<Volume>,
    pub part: Part,
    pub grants: Arc<Grants>,
    /// Held by whoever changes its part: one at a time, and not for ever waited for.
    pub operation: Arc<Mutex<()>>,
}

impl Volumes {
    /// Opens and serves every volume of the catalogue. One that cannot be opened does not keep the others from it.
    pub async fn open_all(&mut self) -> io::Result<()> {
        for record in self.catalogue.volumes()? {
            let name = record.name.clone();
            let admitted = self.roots.admit(&record.backing).map_err(ApiError::from);
            let size_bytes = admitted.and_then(|()| self.image_bytes(&record));
            let image = size_bytes.and_then(|size_bytes| Image::open(&record.backing, Some(size_bytes)).map_err(ApiError::from));
            match image.and_then(|image| self.attach(record.clone(), image)) {
                Ok(()) => self.serve_all(&name).await,
                Err(error) => {
                    tracing::error!(volume = %name, %error, "the volume is not served");
                    self.unopened.insert(name, Unopened { record, error });
                }
            }
        }
        Ok(())
    }

    pub fn all(&self) -> impl Iterator<Item = &OpenVolume> {
        self.open.values()
    }

    /// The record of every volume, open or not.
    pub fn records(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.all().map(|open| &open.record).chain(self.unopened.values().map(|unopened| &unopened.record))
    }

    pub fn get(&self, name: &VolumeName) -> Result<&OpenVolume, ApiError> {
        self.open.get(name).ok_or_else(|| match self.unopened.get(name) {
            Some(unopened) => ApiError::new(ErrorCode::Io, format!("{name} could not be opened: {}", unopened.error))
                .with_hint("mend that, then restart blockd"),
            None => ApiError::new(ErrorCode::NotFound, format!("there is no volume {name} here"))
                .with_hint("`tern volume list` shows those there are"),
        })
    }

    /// Takes a name, until [`Self::release`]: no other volume gets it.
    pub fn reserve(&mut self, name: &VolumeName) -> Result<(), ApiError> {
        if self.groups.get(name).is_some() {
            return Err(ApiError::new(ErrorCode::AlreadyExists, format!("a group {name} exists already")));
        }
        if self.open.contains_key(name) || self.unopened.contains_key(name) || !self.reserved.insert(name.clone()) {
            return Err(ApiError::new(ErrorCode::AlreadyExists, format!("a volume {name} exists already")));
        }
        Ok(())
    }

    /// Gives up a name that was reserved.
    pub fn release(&mut self, name: &VolumeName) {
        self.reserved.remove(name);
    }

    /// Records a new volume and opens it.
    pub fn add(&mut self, record: VolumeRecord, image: Image) -> Result<(), ApiError> {
        self.catalogue.put_volume(&record).map_err(io_error)?;
        let name = record.name.clone();
        self.attach(record, image).inspect_err(|_| drop(self.catalogue.remove_volume(&name)))
    }

    /// Opens a volume and begins its part in it.
    fn attach(&mut self, record: VolumeRecord, image: Image) -> Result<(), ApiError> {
        let id = volume_id(&record)?;
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let log = ActivityLog::open(catalogue, activity_key(id)).map_err(io_error)?;
        let spill_dir = self.state_dir.spill();
        let limits = KeptLimits { memory_bytes: self.spill_memory_bytes, spill_bytes: self.spill_quota_bytes, spill_dir };
        let first = EpochNumbers::first_unused(&*self.catalogue, id).map_err(io_error)?;
        let hot = log.hot();
        let intake = Arc::new(Intake::new(first, Arc::new(image.clone()), log, limits));
        let counters = Arc::new(Counters::load(&*self.catalogue, id).map_err(io_error)?);
        let gate = Gate::new(match record.role {
            RecordedRole::Stale | RecordedRole::SplitBrain => GateState::Fenced,
            RecordedRole::Primary if record.fenced => GateState::Fenced,
            RecordedRole::Standalone | RecordedRole::Primary => GateState::Open,
            // A trial opens it.
            RecordedRole::Standby => GateState::Shut,
        });
        let volume = Arc::new(Volume {
            name: record.name.to_string(),
            image,
            gate,
            intake,
            clients: Clients::default(),
            counters,
            origin: OriginSlot::default(),
        });
        self.resume_going_back(&volume, &record)?;
        if record.trial.is_none() {
            self.forget_trial(&record)?;
        }
        let part = match record.role {
            RecordedRole::Primary => self.resume_primary(&volume, &record, &hot)?,
            RecordedRole::Standby if record.trial.is_some() => self.resume_trial(&volume, &record)?,
            RecordedRole::Standby => self.start_standby(&volume, &record)?,
            RecordedRole::Standalone | RecordedRole::Stale | RecordedRole::SplitBrain => Part::Idle,
        };
        self.open.insert(record.name.clone(), OpenVolume { record, volume, part, grants: self.grants.clone(), operation: Arc::default() });
        Ok(())
    }

    /// Goes on as primary: after a clean stop with exactly what the standby lacks, after a crash with what may differ.
    pub fn resume_primary(&self, volume: &Arc<Volume>, record: &VolumeRecord, hot: &RoaringBitmap) -> Result<Part, ApiError> {
        let id = volume_id(record)?;
        let blocks = block_count(volume.size_bytes()) as u32;
        volume.intake.start_logging();
        volume.intake.thaw_all();
        let stopped = memory::take_changed(&*self.catalogue, id).map_err(io_error)?;
        let hot: RoaringBitmap = hot.iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect();
        let base = |peer: &PeerRecord| {
            let known = memory::load_known(&*self.catalogue, &memory::known_key(id, &peer.site)).map_err(io_error)?;
            let exact = stopped.of(&peer.site);
            Ok(Base { known, marked: exact.unwrap_or(&hot).clone(), compare: exact.is_none(), ..Base::default() })
        };
        let bases = record.peers().map(base).collect::<Result<_, ApiError>>()?;
        let (not_before_ms, _) = self.grants.close(&record.id);
        self.start_primary(PrimaryStart { volume, record, bases, not_before_ms })
    }

    /// Makes an empty standby for a primary at another site.
    pub fn create_standby(&mut self, record: VolumeRecord, lineage: Lineage) -> Result<(), ApiError> {
        let image = Image::create(&record.backing, record.size_bytes)?;
        let backing = record.backing.clone();
        let place = Place::blank(volume_id(&record)?, random_id()?, lineage, record.size_bytes);
        let recorded = place.store(&*self.catalogue, Persist::Synced).map_err(io_error);
        recorded.and_then(|()| self.add(record, image)).inspect_err(|_| drop(std::fs::remove_file(backing)))
    }

    /// Grows a volume.
    pub fn resize(&mut self, name: &VolumeName, size_bytes: u64) -> Result<(), ApiError> {
        let size_bytes = size_bytes.next_multiple_of(BLOCK_BYTES as u64);
        let open = self.get(name)?;
        if size_bytes < open.record.size_bytes {
            let lost = open.record.size_bytes - size_bytes;
            let error = ApiError::new(ErrorCode::WouldLoseData, format!("shrinking {name} would cut off its last {lost} bytes"));
            return Err(error.with_hint("volumes only grow: make a smaller one and copy"));
        }
        if size_bytes / BLOCK_BYTES as u64 > MAX_BLOCKS {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "a volume has at most 16 TiB"));
        }
        if !matches!(open.record.role, RecordedRole::Standalone | RecordedRole::Primary) {
            let error = ApiError::new(ErrorCode::WrongState, format!("{name} is not primary here"));
            return Err(error.with_hint("resize it at its primary: the standby follows"));
        }
        // Recorded before anybody hears of it: what a guest writes there must be there after a crash, and a primary must not come back
        // smaller than its copy.
        let image = open.volume.image.clone();
        image.grow_once(size_bytes, || self.change(name, |record| record.size_bytes = size_bytes))?;
        if let Part::Primary(primary) = &self.get(name)?.part {
            primary.replicas.iter().for_each(|part| part.replica.resized(size_bytes));
        }
        Ok(())
    }

    /// The volume with this id.
    pub fn by_id(&self, id: &str) -> Option<&OpenVolume> {
        self.open.values().find(|open| open.record.id == id)
    }

    /// Takes what runs for a volume out, to end it.
    pub fn take_part(&mut self, name: &VolumeName) -> Part {
        self.open.get_mut(name).map_or(Part::Idle, |open| std::mem::replace(&mut open.part, Part::Idle))
    }

    /// Puts a part in place of none.
    pub fn put_part(&mut self, name: &VolumeName, part: Part) {
        if let Some(open) = self.open.get_mut(name) {
            open.part = part;
        }
    }

    /// After a change that failed half-way: begins again the part that is recorded.
    pub fn restore(&mut self, name: &VolumeName) {
        let Some(open) = self.open.get(name).filter(|open| matches!(open.part, Part::Idle)) else { return };
        let whole = self.resume_going_back(&open.volume, &open.record);
        let begun = match open.record.role {
            RecordedRole::Primary => whole.and_then(|()| self.resume_primary(&open.volume, &open.record, &open.volume.intake.log().hot())),
            RecordedRole::Standby if open.record.trial.is_some() => self.resume_trial(&open.volume, &open.record),
            RecordedRole::Standby => self.start_standby(&open.volume, &open.record),
            RecordedRole::Standalone | RecordedRole::Stale | RecordedRole::SplitBrain => return,
        };
        match begun {
            Ok(part) => {
                if matches!(part, Part::Primary(_)) {
                    open.volume.gate.reopen();
                }
                self.put_part(name, part);
            }
            Err(error) => tracing::error!(volume = %name, %error, "replication stands still until blockd is started again"),
        }
    }

    /// Ends every part: what a standby lacks is written down, once nobody can write any more.
    pub async fn stop(&mut self) {
        self.front_ends.nbd.shutdown().await;
        self.front_ends.vhost_user.shutdown().await;
        self.drills.clear();
        for (name, open) in std::mem::take(&mut self.open) {
            open.volume.gate.set(GateState::Shut);
            let drained = tokio::time::timeout(DRAIN_DEADLINE, open.volume.gate.drained()).await.is_ok();
            let catalogue = &self.catalogue;
            let stopped = tokio::task::block_in_place(|| match open.part {
                Part::Primary(primary) => match (primary.stop(), volume_id(&open.record)) {
                    (Some(changed), Ok(id)) if drained => remember_changed(&**catalogue, id, &open.volume, &changed),
                    _ => Ok(()),
                },
                Part::Standby(standby) => {
                    standby.stop();
                    Ok(())
                }
                Part::Idle => Ok(()),
            });
            if let Err(error) = stopped {
                tracing::warn!(volume = %name, %error, "what the standby lacks could not be written down: it is compared at the next start");
            }
        }
    }

    /// Forgets a volume that nothing runs for, and removes its image if the daemon made it. The record goes last: what a crash leaves can be
    /// deleted again.
    pub fn forget(&self, record: &VolumeRecord) -> Result<(), ApiError> {
        let id = volume_id(record)?;
        self.metrics.remove_volume(&record.name);
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let forgotten = memory::forget(&*catalogue, id)
            .and_then(|()| Place::forget(id, &*catalogue))
            .and_then(|()| ActivityLog::open(catalogue.clone(), activity_key(id))?.clear())
            .and_then(|()| Counters::forget(&*catalogue, id))
            .and_then(|()| if_there(std::fs::remove_dir_all(self.state_dir.journal(&record.id))))
            .and_then(|()| self.forget_points(&record.id))
            .and_then(|()| self.forget_trial(record).map_err(io::Error::other))
            .and_then(|()| drills::forget_all(&*self.catalogue, &record.id))
            .and_then(|()| proof::forget(&*self.catalogue, &record.id))
            .and_then(|()| forecast::forget(&*self.catalogue, &record.id))
            .and_then(|()| self.grants.forget(&record.id))
            .and_then(|()| match record.made_by {
                MadeBy::Daemon => if_there(std::fs::remove_file(&record.backing)),
                MadeBy::Operator => Ok(()),
            })
            .and_then(|()| self.catalogue.remove_volume(&record.name));
        forgotten.map_err(io_error)
    }

    /// Removes what leads back to older recovery points, and what the image's blocks are known by: it is written to without them from now on.
    pub fn forget_points(&self, id: &str) -> io::Result<()> {
        self.forget_digests(id)?;
        if let Some(volume) = parse_id(id) {
            old::forget(&self.state_dir.old(id), volume, &self.catalogue)?;
        }
        self.state_dir.undo(id).iter().try_for_each(|level| if_there(std::fs::remove_dir_all(level)))
    }

    /// Removes what the blocks of an image are known by.
    pub fn forget_digests(&self, id: &str) -> io::Result<()> {
        if_there(std::fs::remove_file(self.state_dir.digests(id)))
    }

    /// Changes what is recorded of a volume, durably.
    pub fn change(&mut self, name: &VolumeName, change: impl FnOnce(&mut VolumeRecord)) -> Result<(), ApiError> {
        let gone = || ApiError::new(ErrorCode::NotFound, format!("there is no volume {name} here any more"));
        let open = self.open.get_mut(name).ok_or_else(gone)?;
        let mut record = open.record.clone();
        change(&mut record);
        self.catalogue.put_volume(&record).map_err(io_error)?;
        open.record = record;
        Ok(())
    }
}

fn activity_key(id: Id) -> Vec<u8> {
    format!("al/{id}/").into_bytes()
}

/// Writes down which blocks each standby lacks, for a volume that nobody writes to any more. Only if the content is as durable: after a
/// power loss a standby might be ahead of it.
pub(super) fn remember_changed(catalogue: &dyn Catalogue, id: Id, volume: &Volume, changed: &Lacking) -> io::Result<()> {
    volume.image.sync_data()?;
    for (site, remains) in changed {
        memory::store_known(catalogue, &memory::known_key(id, site), remains.known, Persist::Eventually)?;
    }
    memory::store_changed(catalogue, id, changed.iter().map(|(site, remains)| (site.as_str(), &remains.changed)))
}

pub(super) fn if_there(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

pub(super) fn random_id() -> Result<Id, ApiError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| ApiError::new(ErrorCode::Internal, format!("no random id: {error}")))?;
    Ok(Id(id))
}

pub(super) fn io_error(error: io::Error) -> ApiError {
    let code = if error.kind() == io::ErrorKind::StorageFull { ErrorCode::NoSpace } else { ErrorCode::Io };
    ApiError::new(code, error.to_string())
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(ErrorCode::Io, error.to_string())
    }
}
