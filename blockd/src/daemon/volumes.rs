//! The volumes of this site: made, opened, served, deleted. One owner at a time changes them; what they are is in the catalogue first.

use super::part::{Overtaken, Part, PrimaryStart, volume_id};
use super::sites::Sites;
use super::state_dir::StateDir;
use crate::catalogue::{MadeBy, RecordedRole, RocksCatalogue, VolumeRecord};
use crate::metrics::Metrics;
use crate::nbd::NbdService;
use crate::request::Access;
use crate::store::Image;
use crate::store::import::{ImportFormat, Source};
use crate::vhost_user::VhostUserService;
use crate::volume::{Clients, Gate, GateState, Volume};
use blockd_api::{ApiError, CreateVolume, ErrorCode, Export, Progress, Unit, VolumeName};
use replicator::catalogue::{Catalogue, Persist};
use replicator::counters::Counters;
use replicator::intake::{ActivityLog, Intake, KeptLimits, extent_blocks};
use replicator::primary::memory::{self, EpochNumbers};
use replicator::standby::Place;
use replicator_engine::block::{BLOCK_BYTES, MAX_BLOCKS, block_count};
use replicator_engine::generation::{Id, Lineage};
use roaring::RoaringBitmap;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};

/// For requests under way to complete when the daemon stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Content that is kept in memory for one volume before it is spilled.
const KEPT_MEMORY_BYTES: u64 = 64 << 20;
/// Steps that an import's progress is told in.
const PROGRESS_STEPS: u64 = 1000;

/// See the module's documentation.
pub(super) struct Volumes {
    pub state_dir: StateDir,
    pub catalogue: Arc<RocksCatalogue>,
    pub front_ends: FrontEnds,
    pub sites: Arc<Sites>,
    /// Told when another site has overtaken this one.
    pub overtaken: mpsc::UnboundedSender<Overtaken>,
    pub metrics: Arc<Metrics>,
    pub spill_quota_bytes: u64,
    pub journal_quota_bytes: u64,
    pub open: BTreeMap<VolumeName, OpenVolume>,
}

/// By which protocols volumes are served.
pub(super) struct FrontEnds {
    pub nbd: NbdService,
    pub vhost_user: VhostUserService,
}

/// A volume and what is remembered of it.
pub(super) struct OpenVolume {
    pub record: VolumeRecord,
    pub volume: Arc<Volume>,
    pub part: Part,
    /// Held by whoever changes its part: one at a time, and not for ever waited for.
    pub operation: Arc<Mutex<()>>,
}

impl Volumes {
    /// Opens and serves every volume of the catalogue. One that cannot be opened does not keep the others from it.
    pub async fn open_all(&mut self) -> io::Result<()> {
        for record in self.catalogue.volumes()? {
            let name = record.name.clone();
            let opened =
                Image::open(&record.backing, Some(record.size_bytes)).map_err(image_error).and_then(|image| self.attach(record, image));
            match opened {
                Ok(()) => self.serve_all(&name).await,
                Err(error) => tracing::error!(volume = %name, %error, "the volume is not served"),
            }
        }
        Ok(())
    }

    pub fn all(&self) -> impl Iterator<Item = &OpenVolume> {
        self.open.values()
    }

    pub fn get(&self, name: &VolumeName) -> Result<&OpenVolume, ApiError> {
        self.open.get(name).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("no volume {name} is open here"))
                .with_hint("`tern volume list` shows those there are")
        })
    }

    /// Makes a volume. Blocks while content is imported.
    pub fn create(&mut self, request: &CreateVolume, progress: &dyn Fn(Progress)) -> Result<(), ApiError> {
        if self.open.contains_key(&request.name) {
            return Err(ApiError::new(ErrorCode::AlreadyExists, format!("a volume {} exists already", request.name)));
        }
        let id = random_id()?.to_string();
        let source = request.import.as_deref().map(|path| Source::open(path, ImportFormat::of(path)?)).transpose();
        let source = source.map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        let wanted = request.size_bytes.or(source.as_ref().map(Source::size_bytes)).map(|size| size.next_multiple_of(BLOCK_BYTES as u64));
        let (image, made_by) = self.backing(request, &id, wanted)?;
        let backing = image.path().to_path_buf();
        let imported = source.map_or(Ok(()), |source| {
            let told = |share: f64| {
                progress(Progress {
                    phase: "import".into(),
                    done: (share * PROGRESS_STEPS as f64) as u64,
                    total: Some(PROGRESS_STEPS),
                    unit: Unit::Steps,
                });
                ControlFlow::Continue(())
            };
            source.import(&image, told).map_err(|error| ApiError::new(ErrorCode::Io, error.to_string()))
        });
        let record = VolumeRecord::new(request.name.clone(), id, image.size_bytes(), backing, made_by);
        let done =
            imported.and_then(|()| self.catalogue.put_volume(&record).map_err(io_error)).and_then(|()| self.attach(record.clone(), image));
        if done.is_err() && made_by == MadeBy::Daemon {
            // Nothing refers to it yet.
            let _ = std::fs::remove_file(&record.backing);
        }
        done
    }

    fn backing(&self, request: &CreateVolume, id: &str, wanted: Option<u64>) -> Result<(Image, MadeBy), ApiError> {
        if let Some(size) = wanted.filter(|size| *size == 0 || size / BLOCK_BYTES as u64 > MAX_BLOCKS) {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("a volume cannot have {size} bytes"));
            return Err(error.with_hint("give a size between 4K and 16T"));
        }
        let sized = || {
            wanted.ok_or_else(|| {
                ApiError::new(ErrorCode::InvalidRequest, "the volume has no size").with_hint("give --size, for instance --size 10G")
            })
        };
        match &request.backing {
            Some(path) if path.exists() => Ok((Image::open(path, wanted).map_err(image_error)?, MadeBy::Operator)),
            Some(path) => Ok((Image::create(path, sized()?).map_err(image_error)?, MadeBy::Daemon)),
            None => Ok((Image::create(&self.state_dir.image(id), sized()?).map_err(image_error)?, MadeBy::Daemon)),
        }
    }

    /// Opens a volume and begins its part in it.
    fn attach(&mut self, record: VolumeRecord, image: Image) -> Result<(), ApiError> {
        let id = volume_id(&record)?;
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let log = ActivityLog::open(catalogue, format!("al/{id}/").into_bytes()).map_err(io_error)?;
        let spill_dir = self.state_dir.spill();
        let limits = KeptLimits { memory_bytes: KEPT_MEMORY_BYTES, spill_bytes: self.spill_quota_bytes, spill_dir };
        let first = EpochNumbers::first_unused(&*self.catalogue, id).map_err(io_error)?;
        let hot = log.hot();
        let intake = Arc::new(Intake::new(first, Arc::new(image.clone()), log, limits));
        let counters = Arc::new(Counters::load(&*self.catalogue, id).map_err(io_error)?);
        let gate = Gate::new(match record.role {
            RecordedRole::Standalone | RecordedRole::Primary => GateState::Open,
            RecordedRole::Standby => GateState::Shut,
            RecordedRole::Stale | RecordedRole::SplitBrain => GateState::Fenced,
        });
        let volume = Arc::new(Volume { name: record.name.to_string(), image, gate, intake, clients: Clients::default(), counters });
        let part = match record.role {
            RecordedRole::Primary => self.resume_primary(&volume, &record, &hot)?,
            RecordedRole::Standby => self.start_standby(&volume, &record)?,
            RecordedRole::Standalone | RecordedRole::Stale | RecordedRole::SplitBrain => Part::Idle,
        };
        self.open.insert(record.name.clone(), OpenVolume { record, volume, part, operation: Arc::default() });
        Ok(())
    }

    /// Goes on as primary: after a clean stop with exactly what the standby lacks, after a crash with what may differ.
    pub fn resume_primary(&self, volume: &Arc<Volume>, record: &VolumeRecord, hot: &RoaringBitmap) -> Result<Part, ApiError> {
        let id = volume_id(record)?;
        let blocks = block_count(volume.size_bytes()) as u32;
        volume.intake.start_logging();
        let exact = memory::take_changed(&*self.catalogue, id).map_err(io_error)?;
        let compare_first = match &exact {
            Some(_) => RoaringBitmap::new(),
            None => hot.iter().flat_map(|extent| extent_blocks(extent).blocks()).filter(|block| *block < blocks).collect(),
        };
        volume.intake.tracker().mark(exact.as_ref().unwrap_or(&compare_first), Some(1));
        let site = record.peer.as_ref().map_or("", |peer| &peer.site);
        let known = memory::load_known(&*self.catalogue, &memory::known_key(id, site)).map_err(io_error)?;
        self.start_primary(PrimaryStart { volume, record, known, compare_first })
    }

    /// Makes an empty standby for a primary at another site.
    pub async fn create_standby(&mut self, record: VolumeRecord, lineage: Lineage) -> Result<(), ApiError> {
        let image = Image::create(&record.backing, record.size_bytes).map_err(image_error)?;
        let place = Place::blank(volume_id(&record)?, random_id()?, lineage, record.size_bytes);
        let name = record.name.clone();
        let recorded = place.store(&*self.catalogue, Persist::Synced).and_then(|()| self.catalogue.put_volume(&record));
        recorded.map_err(io_error)?;
        self.attach(record, image)?;
        self.serve_all(&name).await;
        Ok(())
    }

    async fn serve_all(&self, name: &VolumeName) {
        let Some(open) = self.open.get(name) else { return };
        for export in &open.record.exports {
            if let Err(error) = self.serve(open, export).await {
                tracing::error!(volume = %name, ?export, %error, "the volume is not served there");
            }
        }
    }

    async fn serve(&self, open: &OpenVolume, export: &Export) -> Result<(), ApiError> {
        let metrics = self.metrics.volume(&open.record.name);
        let volume = open.volume.clone();
        let failed = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Io, error.to_string());
        match export {
            Export::Nbd { address } => self.front_ends.nbd.export(volume, metrics, address).await.map(drop).map_err(|error| failed(&error)),
            Export::VhostUser { path } => {
                let served = self.front_ends.vhost_user.export(volume, metrics, path.as_path(), Access::ReadWrite);
                served.map_err(|error| failed(&error))
            }
        }
    }

    /// Serves a volume at one more place, from now on.
    pub async fn export(&mut self, name: &VolumeName, export: Export) -> Result<(), ApiError> {
        let open = self.get(name)?;
        if open.record.exports.contains(&export) {
            return Ok(());
        }
        self.serve(open, &export).await?;
        self.change(name, |record| record.exports.push(export))
    }

    /// Ends one export, or all.
    pub async fn unexport(&mut self, name: &VolumeName, export: Option<Export>) -> Result<(), ApiError> {
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.get(name)?.record.exports.iter().cloned().partition(|has| export.as_ref().is_none_or(|e| e == has));
        if gone.is_empty() && export.is_some() {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not served there")));
        }
        self.change(name, |record| record.exports = kept)?;
        for export in gone {
            match export {
                Export::Nbd { address } => drop(self.front_ends.nbd.unexport(name.as_str(), &address).await),
                Export::VhostUser { path } => drop(self.front_ends.vhost_user.unexport(name.as_str(), path.as_path()).await),
            }
        }
        Ok(())
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
        if matches!(open.part, Part::Standby(_)) {
            let error = ApiError::new(ErrorCode::WrongState, format!("{name} is a standby here"));
            return Err(error.with_hint("resize it at its primary: the standby follows"));
        }
        open.volume.image.grow(size_bytes).map_err(image_error)?;
        if let Part::Primary(primary) = &open.part {
            primary.replica.resized(size_bytes);
        }
        self.change(name, |record| record.size_bytes = size_bytes)
    }

    /// The volume with this id.
    pub fn by_id(&self, id: &str) -> Option<&OpenVolume> {
        self.open.values().find(|open| open.record.id == id)
    }

    /// Takes what runs for a volume out, to end it.
    pub fn take_part(&mut self, name: &VolumeName) -> Part {
        self.open.get_mut(name).map_or(Part::Idle, |open| std::mem::replace(&mut open.part, Part::Idle))
    }

    /// Puts another part in place of the one that is there, and the record first.
    pub fn turn(&mut self, record: VolumeRecord, part: Part) -> Result<(), ApiError> {
        self.catalogue.put_volume(&record).map_err(io_error)?;
        let open = self.open.get_mut(&record.name).expect("nobody deletes a volume whose part is being changed");
        open.part = part;
        open.record = record;
        Ok(())
    }

    /// Ends every part: what a standby lacks is written down, once nobody can write any more.
    pub async fn stop(&mut self) {
        self.front_ends.nbd.shutdown().await;
        self.front_ends.vhost_user.shutdown().await;
        for (name, open) in std::mem::take(&mut self.open) {
            open.volume.gate.set(GateState::Shut);
            let drained = tokio::time::timeout(DRAIN_DEADLINE, open.volume.gate.drained()).await.is_ok();
            let catalogue = &self.catalogue;
            let stopped = tokio::task::block_in_place(|| match open.part {
                Part::Primary(primary) => match (primary.stop(), volume_id(&open.record)) {
                    (Some(changed), Ok(id)) if drained => memory::store_changed(&**catalogue, id, &changed),
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

    /// Forgets a volume, and removes its image if the daemon made it.
    pub async fn delete(&mut self, name: &VolumeName) -> Result<(), ApiError> {
        let open = self.get(name)?;
        if matches!(open.part, Part::Primary(_)) {
            let error = ApiError::new(ErrorCode::WrongState, format!("{name} is being replicated"));
            return Err(error.with_hint(format!("`tern replicate {name} --stop` ends that")));
        }
        let id = volume_id(&open.record)?;
        open.volume.gate.set(GateState::Shut);
        self.front_ends.nbd.unexport_everywhere(name.as_str()).await;
        self.front_ends.vhost_user.unexport_everywhere(name.as_str()).await;
        self.catalogue.remove_volume(name).map_err(io_error)?;
        let Some(open) = self.open.remove(name) else { return Ok(()) };
        self.metrics.remove_volume(name);
        if let Part::Standby(standby) = &open.part {
            tokio::task::block_in_place(|| standby.stop());
        }
        let forgotten = memory::forget(&*self.catalogue, id)
            .and_then(|()| Place::forget(id, &*self.catalogue))
            .and_then(|()| open.volume.intake.log().clear())
            .and_then(|()| Counters::forget(&*self.catalogue, id));
        forgotten.map_err(io_error)?;
        let journal = self.state_dir.journal(&open.record.id);
        if journal.exists() {
            std::fs::remove_dir_all(&journal).map_err(io_error)?;
        }
        if open.record.made_by == MadeBy::Daemon {
            std::fs::remove_file(&open.record.backing).map_err(io_error)?;
        }
        Ok(())
    }

    pub fn change(&mut self, name: &VolumeName, change: impl FnOnce(&mut VolumeRecord)) -> Result<(), ApiError> {
        let open = self.open.get_mut(name).expect("looked up before");
        let mut record = open.record.clone();
        change(&mut record);
        self.catalogue.put_volume(&record).map_err(io_error)?;
        open.record = record;
        Ok(())
    }
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

fn image_error(error: crate::store::StoreError) -> ApiError {
    ApiError::new(ErrorCode::Io, error.to_string())
}
