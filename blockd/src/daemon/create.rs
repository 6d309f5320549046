//! Making a volume: its backing, its first content, its record.

use super::volumes::{Volumes, random_id};
use crate::catalogue::{MadeBy, VolumeRecord};
use crate::store::Image;
use crate::store::import::{ImportError, ImportFormat, Source};
use blockd_api::{ApiError, CreateVolume, ErrorCode, Progress, Unit};
use replicator_engine::block::{BLOCK_BYTES, MAX_BLOCKS};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// Steps that an import's progress is told in.
const PROGRESS_STEPS: u64 = 1000;

/// Is told how far it is; breaks it off.
type Told<'a> = &'a dyn Fn(Progress) -> ControlFlow<()>;

/// Makes a volume. Blocks while content is imported; other volumes can be reached meanwhile.
pub(super) fn create(volumes: &Mutex<Volumes>, request: &CreateVolume, progress: Told<'_>) -> Result<(), ApiError> {
    let id = random_id()?.to_string();
    let default_path = {
        let mut volumes = volumes.blocking_lock();
        request.backing.as_deref().map_or(Ok(()), |path| volumes.roots.admit(path))?;
        request.import.as_deref().map_or(Ok(()), |path| volumes.roots.admit_reading(path))?;
        volumes.reserve(&request.name)?;
        volumes.state_dir.image(&id)
    };
    let made = make(request, &id, default_path, progress);
    let mut volumes = volumes.blocking_lock();
    volumes.release(&request.name);
    let (record, image) = made?;
    volumes.add(record.clone(), image).inspect_err(|_| remove(&record.backing, record.made_by))
}

fn make(request: &CreateVolume, id: &str, default_path: PathBuf, progress: Told<'_>) -> Result<(VolumeRecord, Image), ApiError> {
    let source = request.import.as_deref().map(|path| Source::open(path, ImportFormat::of(path)?)).transpose();
    let source = source.map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
    let wanted = request.size_bytes.or(source.as_ref().map(Source::size_bytes)).map(|size| size.next_multiple_of(BLOCK_BYTES as u64));
    let (image, made_by) = backing(request, default_path, wanted)?;
    let backing = image.path().to_path_buf();
    if let Some(source) = source {
        let told = |share: f64| {
            progress(Progress {
                phase: "import".into(),
                done: (share * PROGRESS_STEPS as f64) as u64,
                total: Some(PROGRESS_STEPS),
                unit: Unit::Steps,
            })
        };
        let imported = source.import(&image, told).map_err(|error| match error {
            ImportError::Cancelled => ApiError::new(ErrorCode::Unavailable, "blockd is stopping, and the import was broken off")
                .with_hint("repeat the command once it runs again"),
            error => ApiError::new(ErrorCode::Io, error.to_string()),
        });
        imported.inspect_err(|_| remove(&backing, made_by))?;
    }
    Ok((VolumeRecord::new(request.name.clone(), id.to_owned(), image.size_bytes(), backing, made_by), image))
}

/// Nothing refers to it yet.
fn remove(backing: &Path, made_by: MadeBy) {
    if made_by == MadeBy::Daemon {
        let _ = std::fs::remove_file(backing);
    }
}

fn backing(request: &CreateVolume, default_path: PathBuf, wanted: Option<u64>) -> Result<(Image, MadeBy), ApiError> {
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
        Some(path) if path.exists() => Ok((Image::open(path, wanted)?, MadeBy::Operator)),
        Some(path) => Ok((Image::create(path, sized()?)?, MadeBy::Daemon)),
        None => Ok((Image::create(&default_path, sized()?)?, MadeBy::Daemon)),
    }
}
