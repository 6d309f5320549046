//! Drills: a copy of a recovery point that can be written to, while replication goes on.
//!
//! ```text
//!   client ──► the copy: a scratch file without a name ──(what is not there yet)──► the standby's view of the point
//! ```
//!
//! What is written goes to the scratch file, which is gone with the drill, or with the daemon. A volume has one drill at a time. What an
//! auditor asks for is in the catalogue, under `drill/`.

use super::Daemon;
use super::handover::wrong_state;
use super::part::Part;
use super::points::{past_error, point_time};
use super::trial::not_on_trial;
use super::volumes::{Volumes, io_error};
use crate::admin::Outcome;
use crate::catalogue::{RocksCatalogue, VolumeRecord};
use crate::metrics::VolumeMetrics;
use crate::store::Image;
use crate::volume::{Clients, Gate, GateState, Origin, OriginSlot, Source, Unfilled, Volume, Wanted};
use blockd_api::{ApiError, BeginDrill, Drill, DrillList, DrillState, ErrorCode, UtcTime, VolumeName};
use replicator::catalogue::{Catalogue, Persist};
use replicator::counters::Counters;
use replicator::intake::{ActivityLog, Intake, KeptLimits};
use replicator::standby::{OpenView, StandbyService};
use replicator_engine::block::{BLOCK_BYTES, Run};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Drills of a volume that are remembered.
const MAX_REMEMBERED: usize = 100;
/// What scratch files leave free, unless a 20th of the file system is less: replication needs room, too.
const RESERVE_BYTES: u64 = 1 << 30;

/// A drill that runs.
pub(super) struct RunningDrill {
    volume: Arc<Volume>,
    log: Arc<DrillLog>,
}

/// What is written down of a drill.
struct DrillLog {
    catalogue: Arc<RocksCatalogue>,
    key: Vec<u8>,
    began: Instant,
    drill: Mutex<Drill>,
}

impl DrillLog {
    fn lock(&self) -> MutexGuard<'_, Drill> {
        self.drill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Drill)) -> io::Result<Drill> {
        let mut drill = self.lock();
        change(&mut drill);
        let value = serde_json::to_vec(&*drill).map_err(io::Error::other)?;
        self.catalogue.apply(&[(self.key.clone(), Some(value))], Persist::Synced)?;
        Ok(drill.clone())
    }
}

/// A recovery point as what a scratch file is filled from.
struct Past {
    view: OpenView,
    scratch_dir: PathBuf,
    log: Arc<DrillLog>,
}

impl Source for Past {
    fn fill(&mut self, image: &Image, run: Run) -> Result<(), Unfilled> {
        leave_room(&self.scratch_dir, "the drill")?;
        let content = self.view.read(run).map_err(|error| Unfilled::Lost(io::Error::other(error)))?;
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        for (block, bytes) in run.blocks().zip(content.chunks_exact(BLOCK_BYTES)).filter(|(_, bytes)| !is_zero(bytes)) {
            image.write_at(bytes, u64::from(block) * BLOCK_BYTES as u64)?;
        }
        if self.log.lock().first_read_seconds.is_none() {
            let seconds = self.log.began.elapsed().as_secs_f64();
            self.log.change(|drill| drill.first_read_seconds = Some(seconds))?;
        }
        Ok(())
    }
}

/// Refuses to take more of the state directory's file system for `whom` when it is nearly full.
pub(super) fn leave_room(dir: &Path, whom: &str) -> io::Result<()> {
    let space = rustix::fs::statvfs(dir)?;
    let reserve_bytes = RESERVE_BYTES.min(space.f_blocks * space.f_frsize / 20);
    if space.f_bavail * space.f_frsize < reserve_bytes {
        let text = format!("the state directory's file system is nearly full: {whom} gets no more of it");
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    Ok(())
}

impl Daemon {
    pub(super) async fn begin_drill(&self, name: &VolumeName, request: BeginDrill) -> Outcome<Drill> {
        let (began, (record, _operation)) = (Instant::now(), self.begin(name).await?);
        not_on_trial(&record)?;
        let standby = {
            let volumes = self.volumes.lock().await;
            if let Some(running) = volumes.drills.get(name) {
                let message = format!("a drill of {name} is under way, at recovery point {}", running.log.lock().point);
                return Err(ApiError::new(ErrorCode::AlreadyExists, message).with_hint(format!("`tern drill {name} --end` ends it")));
            }
            match &volumes.get(name)?.part {
                Part::Standby(standby) => standby.clone(),
                _ => return Err(wrong_state(format!("{name} is no standby here"), "drill at the site that has its standby")),
            }
        };
        if !request.kept && !standby.status().borrow().has_point {
            let cure = "at the primary, `tern wait --for in-sync`";
            return Err(wrong_state(format!("{name} has no recovery point here: its first sync has not ended"), cure));
        }
        let view = if request.kept { standby.open_old().await.map_err(past_error)? } else { open(&standby, request.at).await? };
        let mut volumes = self.volumes.lock().await;
        let running = self.prepare(&volumes, &record, &request, view, began)?;
        volumes.serve_at(running.volume.clone(), Arc::<VolumeMetrics>::default(), &request.export).await?;
        let seconds = began.elapsed().as_secs_f64();
        let drill = running.log.change(|drill| drill.ready_seconds = seconds).map_err(io_error);
        volumes.drills.insert(name.clone(), running);
        drop(volumes);
        match drill {
            Ok(drill) => {
                tracing::info!(volume = %name, point = drill.point, export = %drill.export, "a drill has begun");
                Ok(drill)
            }
            Err(error) => {
                self.end_any_drill(name).await;
                Err(error)
            }
        }
    }

    /// A volume that is filled from the view.
    fn prepare(
        &self,
        volumes: &Volumes,
        record: &VolumeRecord,
        request: &BeginDrill,
        view: OpenView,
        began: Instant,
    ) -> Outcome<RunningDrill> {
        let (point, scratch_dir) = (view.point(), volumes.state_dir.spill());
        let (image, now) = (Image::scratch(&scratch_dir, point.size_bytes)?, UtcTime::now());
        let drill = Drill {
            volume: record.name.clone(),
            site: self.site.clone(),
            point: point.epoch,
            point_time: point_time(point),
            size_bytes: point.size_bytes,
            export: request.export.clone(),
            began: now,
            ready_seconds: 0.0,
            first_read_seconds: None,
            state: DrillState::Running,
            ended: None,
            changed_bytes: 0,
            members: Vec::new(),
        };
        let catalogue = volumes.catalogue.clone();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        forget_oldest(&*catalogue, &record.id).map_err(io_error)?;
        let key = [prefix(&record.id), format!("{:016}", since_1970.as_millis()).into_bytes()].concat();
        let name = record.name.to_string();
        let log = Arc::new(DrillLog { catalogue: catalogue.clone(), key, began, drill: Mutex::new(drill) });
        // Nothing of it outlives the daemon: no activity is logged, and no old content is kept.
        let activity = ActivityLog::open(catalogue, b"drill-al/".to_vec()).map_err(io_error)?;
        let limits = KeptLimits { memory_bytes: 0, spill_bytes: 0, spill_dir: scratch_dir.clone() };
        let intake = Arc::new(Intake::new(1, Arc::new(image.clone()), activity, limits));
        let past = Past { view, scratch_dir, log: log.clone() };
        let origin = Origin::start(image.clone(), point.epoch, past, Wanted::All).map_err(io_error)?;
        let gate = Gate::new(GateState::Open);
        let (clients, counters) = (Clients::default(), Arc::<Counters>::default());
        let volume = Arc::new(Volume { name, image, gate, intake, clients, counters, origin: OriginSlot::of(origin) });
        Ok(RunningDrill { volume, log })
    }

    pub(super) async fn end_drill(&self, name: &VolumeName) -> Outcome<Drill> {
        self.volumes.lock().await.get(name)?;
        let none = || ApiError::new(ErrorCode::NotFound, format!("no drill of {name} is under way here"));
        self.end_any_drill(name).await.ok_or_else(none)?
    }

    /// Ends the volume's drill, if there is one. Never with the volumes locked.
    pub(super) async fn end_any_drill(&self, name: &VolumeName) -> Option<Outcome<Drill>> {
        let (running, front_ends) = {
            let mut volumes = self.volumes.lock().await;
            (volumes.drills.remove(name)?, volumes.front_ends.clone())
        };
        let export = running.log.lock().export.clone();
        front_ends.end(name, &export).await;
        let changed_bytes = running.volume.counters.changed_bytes.load(Ordering::Relaxed);
        let ended = running.log.change(|drill| {
            (drill.state, drill.ended) = (DrillState::Ended, Some(UtcTime::now()));
            drill.changed_bytes = changed_bytes;
        });
        tracing::info!(volume = %name, changed_bytes, "the drill is over, and what it wrote is gone");
        Some(ended.map_err(io_error))
    }

    pub(super) async fn list_drills(&self, name: &VolumeName) -> Outcome<DrillList> {
        let volumes = self.volumes.lock().await;
        let id = &volumes.get(name)?.record.id;
        let running = volumes.drills.get(name).map(|running| (&running.log.key, &running.volume));
        let listed = |(key, value): (Vec<u8>, Vec<u8>)| {
            let mut drill: Drill = serde_json::from_slice(&value).ok()?;
            match running.filter(|(running, _)| **running == key) {
                Some((_, volume)) => drill.changed_bytes = volume.counters.changed_bytes.load(Ordering::Relaxed),
                None if drill.state == DrillState::Running => drill.state = DrillState::BrokenOff,
                None => {}
            }
            Some(drill)
        };
        let drills = volumes.catalogue.scan(&prefix(id)).map_err(io_error)?;
        Ok(DrillList { drills: drills.into_iter().filter_map(listed).collect() })
    }
}

async fn open(standby: &StandbyService, at: Option<u64>) -> Outcome<OpenView> {
    standby.open_view(at).await.map_err(past_error)
}

fn prefix(id: &str) -> Vec<u8> {
    format!("drill/{id}/").into_bytes()
}

/// Makes room for one more that is remembered.
fn forget_oldest(catalogue: &dyn Catalogue, id: &str) -> io::Result<()> {
    let drills = catalogue.scan(&prefix(id))?;
    let surplus = (drills.len() + 1).saturating_sub(MAX_REMEMBERED);
    let gone: Vec<_> = drills.into_iter().take(surplus).map(|(key, _)| (key, None)).collect();
    if gone.is_empty() { Ok(()) } else { catalogue.apply(&gone, Persist::Eventually) }
}

/// Forgets the drills of a volume that is deleted.
pub(super) fn forget_all(catalogue: &dyn Catalogue, id: &str) -> io::Result<()> {
    let gone: Vec<_> = catalogue.scan(&prefix(id))?.into_iter().map(|(key, _)| (key, None)).collect();
    catalogue.apply(&gone, Persist::Synced)
}
