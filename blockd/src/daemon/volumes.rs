//! The volumes of this site: made, opened, served, deleted. One owner at a time changes them; what they are is in the catalogue first.

use super::state_dir::StateDir;
use crate::catalogue::{MadeBy, RocksCatalogue, VolumeRecord};
use crate::metrics::Metrics;
use crate::nbd::NbdService;
use crate::store::Image;
use crate::store::import::{ImportFormat, Source};
use crate::volume::{Clients, Gate, GateState, Volume};
use blockd_api::{ApiError, CreateVolume, ErrorCode, Export, Progress, Unit, VolumeName};
use replicator::intake::{ActivityLog, Intake, KeptLimits};
use replicator_engine::block::{BLOCK_BYTES, MAX_BLOCKS};
use replicator_engine::generation::Id;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Content that is kept in memory for one volume before it is spilled.
const KEPT_MEMORY_BYTES: u64 = 64 << 20;
/// Steps that an import's progress is told in.
const PROGRESS_STEPS: u64 = 1000;

/// See the module's documentation.
pub(super) struct Volumes {
    pub state_dir: StateDir,
    pub catalogue: Arc<RocksCatalogue>,
    pub nbd: NbdService,
    pub metrics: Arc<Metrics>,
    pub spill_quota_bytes: u64,
    open: BTreeMap<VolumeName, OpenVolume>,
}

/// A volume and what is remembered of it.
pub(super) struct OpenVolume {
    pub record: VolumeRecord,
    pub volume: Arc<Volume>,
}

impl Volumes {
    pub fn new(
        state_dir: StateDir,
        catalogue: Arc<RocksCatalogue>,
        nbd: NbdService,
        metrics: Arc<Metrics>,
        spill_quota_bytes: u64,
    ) -> Self {
        Self { state_dir, catalogue, nbd, metrics, spill_quota_bytes, open: BTreeMap::new() }
    }

    /// Opens and serves every volume of the catalogue. One that cannot be opened does not keep the others from it.
    pub async fn open_all(&mut self) -> io::Result<()> {
        for record in self.catalogue.volumes()? {
            let name = record.name.clone();
            let opened =
                Image::open(&record.backing, Some(record.size_bytes)).map_err(image_error).and_then(|image| self.attach(record, image));
            match opened {
                Ok(()) => self.export_all(&name).await,
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
        let record = VolumeRecord { name: request.name.clone(), id, size_bytes: image.size_bytes(), backing, made_by, exports: Vec::new() };
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

    fn attach(&mut self, record: VolumeRecord, image: Image) -> Result<(), ApiError> {
        let log = ActivityLog::open(self.catalogue.clone(), format!("al/{}/", record.id).into_bytes()).map_err(io_error)?;
        let spill_dir = self.state_dir.spill();
        let limits = KeptLimits { memory_bytes: KEPT_MEMORY_BYTES, spill_bytes: self.spill_quota_bytes, spill_dir };
        let intake = Arc::new(Intake::new(1, Arc::new(image.clone()), log, limits));
        let gate = Gate::new(GateState::Open);
        let volume = Arc::new(Volume { name: record.name.to_string(), image, gate, intake, clients: Clients::default() });
        self.open.insert(record.name.clone(), OpenVolume { record, volume });
        Ok(())
    }

    async fn export_all(&self, name: &VolumeName) {
        let Some(open) = self.open.get(name) else { return };
        for export in &open.record.exports {
            if let Err(error) = self.serve(open, export).await {
                tracing::error!(volume = %name, ?export, %error, "the volume is not served there");
            }
        }
    }

    async fn serve(&self, open: &OpenVolume, export: &Export) -> Result<(), ApiError> {
        let Export::Nbd { address } = export else {
            return Err(ApiError::new(ErrorCode::NotSupported, "this version does not serve vhost-user").with_hint("export over --nbd"));
        };
        let metrics = self.metrics.volume(&open.record.name);
        let served = self.nbd.export(open.volume.clone(), metrics, address).await;
        served.map(drop).map_err(|error| ApiError::new(ErrorCode::Io, error.to_string()))
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
            if let Export::Nbd { address } = export {
                self.nbd.unexport(name.as_str(), &address).await;
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
        open.volume.image.grow(size_bytes).map_err(image_error)?;
        self.change(name, |record| record.size_bytes = size_bytes)
    }

    /// Forgets a volume, and removes its image if the daemon made it.
    pub async fn delete(&mut self, name: &VolumeName) -> Result<(), ApiError> {
        let open = self.get(name)?;
        open.volume.gate.set(GateState::Shut);
        self.nbd.unexport_everywhere(name.as_str()).await;
        self.catalogue.remove_volume(name).map_err(io_error)?;
        let Some(open) = self.open.remove(name) else { return Ok(()) };
        self.metrics.remove_volume(name);
        if open.record.made_by == MadeBy::Daemon {
            std::fs::remove_file(&open.record.backing).map_err(io_error)?;
        }
        Ok(())
    }

    fn change(&mut self, name: &VolumeName, change: impl FnOnce(&mut VolumeRecord)) -> Result<(), ApiError> {
        let open = self.open.get_mut(name).expect("looked up before");
        let mut record = open.record.clone();
        change(&mut record);
        self.catalogue.put_volume(&record).map_err(io_error)?;
        open.record = record;
        Ok(())
    }
}

fn random_id() -> Result<Id, ApiError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| ApiError::new(ErrorCode::Internal, format!("no random id: {error}")))?;
    Ok(Id(id))
}

fn io_error(error: io::Error) -> ApiError {
    let code = if error.kind() == io::ErrorKind::StorageFull { ErrorCode::NoSpace } else { ErrorCode::Io };
    ApiError::new(code, error.to_string())
}

fn image_error(error: crate::store::StoreError) -> ApiError {
    ApiError::new(ErrorCode::Io, error.to_string())
}
