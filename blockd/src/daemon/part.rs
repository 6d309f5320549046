//! This site's part in a volume, alive: what runs for it.

use super::lease::Keeper;
use super::limit::Limit;
use super::old;
use super::settings::{Teller, schedule_of, told_to};
use super::volumes::{Volumes, io_error};
use crate::catalogue::{PeerRecord, VolumeRecord};
use crate::store::Image;
use crate::volume::{Content, GateState, Suspension, Volume};
use blockd_api::{ApiError, ErrorCode, Mode, VolumeName};
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::identity::SiteId;
use replicator::primary::connection::Route;
use replicator::primary::memory::{self, EpochNumbers};
use replicator::primary::{OnStanding, Orders, Remains, Replica, Setup, Told};
use replicator::site_link::request::{SettingsRecord, lineage_of, parse_id};
use replicator::standby::{DigestsOnDisk, GroupPlace, Place, SegmentDir, Standby, StandbyService, UndoDisk};
use replicator_engine::acknowledgement::{OnDisconnect, Promise, Rules, Standing};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::history::History;
use replicator_engine::sender::{Cuts, Known, Settings};
use replicator_engine::tracker::{Epoch, LaneId, MAX_LANES};
use roaring::RoaringBitmap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a request waits for the standby unless told otherwise: guests give a disk 30 s.
const DEFAULT_ACK_TIMEOUT_MS: u64 = 5_000;

/// See the module's documentation.
pub(super) enum Part {
    /// Nothing: no other site has the volume, or this one was overtaken.
    Idle,
    Primary(PrimaryPart),
    Standby(Arc<StandbyService>),
}

/// A primary: what sends the volume to its standbys.
pub(super) struct PrimaryPart {
    /// One a standby, never none; the first is the record's first.
    pub replicas: Vec<ReplicaPart>,
    /// Who keeps its lease, if it needs one.
    pub lease: Option<Keeper>,
    epochs: Arc<Mutex<EpochNumbers>>,
    suspended: Arc<Suspended>,
}

/// What sends to one standby.
pub(super) struct ReplicaPart {
    /// The standby's site, by its id.
    pub site: String,
    pub lane: LaneId,
    pub replica: Arc<Replica>,
    /// Most that may be sent to it.
    pub limit: Arc<Limit>,
    /// Nothing had to be guessed after a crash: what is marked did change.
    pub marks_exactly: bool,
    /// What the standby is to be told.
    pub settings: watch::Sender<SettingsRecord>,
    /// What it has heard.
    pub heard: watch::Receiver<Option<SettingsRecord>>,
    /// What the witness is to know.
    pub told: Arc<Told>,
    keeper: JoinHandle<()>,
}

impl PrimaryPart {
    /// From now on writes are marked for this lane, once the epoch that is returned has closed; `None` while another one is closing.
    pub fn begin_lane(&self, volume: &Volume, lane: LaneId) -> Result<Option<Epoch>, ApiError> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.cover(volume.intake.tracker().open_epoch() + 1).map_err(io_error)?;
        Ok(volume.intake.begin_lane(lane))
    }

    /// A lane that no standby has.
    pub fn free_lane(&self) -> Option<LaneId> {
        LaneId::all().find(|lane| self.replicas.iter().all(|part| part.lane != *lane))
    }

    /// What sends to the first standby.
    pub fn first(&self) -> &ReplicaPart {
        &self.replicas[0]
    }

    /// What sends to this site.
    pub fn to(&self, site: &str) -> Option<&ReplicaPart> {
        self.replicas.iter().find(|replica| replica.site == site)
    }

    /// Ends the threads; says what each standby lacks. Blocks, perhaps on the disk: never with the volumes locked.
    pub fn stop(&self) -> Option<Lacking> {
        let stopped: Vec<_> = self.replicas.iter().map(|part| Some((part.site.clone(), part.replica.stop()?))).collect();
        stopped.into_iter().collect()
    }
}

/// Which blocks the standby at each site lacks, and what it acknowledged.
pub(super) type Lacking = Vec<(String, Remains)>;

impl Part {
    /// Ends what runs. Blocks, perhaps on the disk: never with the volumes locked.
    pub fn stop(self) {
        match self {
            Self::Idle => {}
            Self::Primary(primary) => drop(primary.stop()),
            Self::Standby(standby) => standby.stop(),
        }
    }
}

impl Drop for ReplicaPart {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Another site has overtaken this one: the volume's gate is fenced already.
pub(super) struct Overtaken {
    pub name: VolumeName,
    /// The other site's lineage.
    pub lineage: Lineage,
}

pub(super) fn volume_id(record: &VolumeRecord) -> Result<Id, ApiError> {
    parse_id(&record.id).ok_or_else(|| ApiError::new(ErrorCode::Internal, format!("catalogue: {} has no proper id", record.name)))
}

pub(super) fn peer_site(peer: &PeerRecord) -> Result<SiteId, ApiError> {
    peer.site.parse().map_err(|_| ApiError::new(ErrorCode::Internal, format!("catalogue: {} has no proper site id", peer.name)))
}

/// What the operator wants of a replica.
pub(super) fn orders(peer: &PeerRecord) -> Orders {
    let is_snapshot = peer.mode == Mode::Snapshot;
    let cuts = if is_snapshot { Cuts::Asked } else { Cuts::InTime };
    // It was checked before it was recorded.
    let schedule = peer.schedule.as_deref().filter(|_| is_snapshot).and_then(|text| schedule_of(text).ok());
    Orders { settings: Settings { cuts, rpo_ms: peer.rpo_ms, ..Settings::default() }, rules: rules(peer), schedule }
}

/// When requests complete.
pub(super) fn rules(peer: &PeerRecord) -> Rules {
    let wanted = match peer.mode {
        Mode::Async | Mode::Snapshot => Promise::Local,
        Mode::Barrier => Promise::Barrier,
        Mode::Sync => Promise::Sync,
    };
    let on_disconnect = match peer.on_disconnect.unwrap_or(peer.mode.on_disconnect()) {
        blockd_api::OnDisconnect::Continue => OnDisconnect::Continue,
        blockd_api::OnDisconnect::Degrade => OnDisconnect::Degrade,
        blockd_api::OnDisconnect::Suspend => OnDisconnect::Suspend,
    };
    Rules { wanted, on_disconnect, ack_timeout_ms: peer.ack_timeout_ms.unwrap_or(DEFAULT_ACK_TIMEOUT_MS) }
}

/// What starting a primary needs beside its record.
pub(super) struct PrimaryStart<'a> {
    pub volume: &'a Arc<Volume>,
    pub record: &'a VolumeRecord,
    /// What each standby has, in the order of the record.
    pub bases: Vec<Base>,
    /// Nothing is acknowledged before, on the clock of leases: what this site granted itself may be valid until then.
    pub not_before_ms: u64,
}

/// What is known of a standby when its replica starts.
#[derive(Default)]
pub(super) struct Base {
    pub known: Option<Known>,
    /// What changed since, beside what is marked already.
    pub marked: RoaringBitmap,
    /// Whether that is a guess: the standby may have some of it.
    pub compare: bool,
    /// What changed here before this site was promoted, and the standby may lack.
    pub owed: History,
}

/// Which of a volume's replicas have requests wait for a standby that is gone. While one does, none of a client's is begun.
struct Suspended {
    volume: Arc<Volume>,
    by: Mutex<[bool; MAX_LANES]>,
}

impl Suspended {
    fn of(self: &Arc<Self>, lane: LaneId) -> OnStanding {
        let suspended = self.clone();
        Arc::new(move |standing| {
            let mut by = suspended.by.lock().unwrap_or_else(PoisonError::into_inner);
            by[lane.index()] = standing == Standing::Suspended;
            let gate = &suspended.volume.gate;
            if by.contains(&true) { gate.suspend(Suspension::Promise) } else { gate.resume(Suspension::Promise) }
        })
    }
}

impl Volumes {
    /// Starts sending to the volume's standbys. What changed since each base is marked, and the activity log is written, from before.
    pub fn start_primary(&self, start: PrimaryStart<'_>) -> Result<Part, ApiError> {
        let PrimaryStart { volume, record, bases, not_before_ms } = start;
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        let epochs = EpochNumbers::open(catalogue, volume_id(record)?, volume.intake.tracker().open_epoch()).map_err(io_error)?;
        let suspended = Arc::new(Suspended { volume: volume.clone(), by: Mutex::default() });
        let mut part = PrimaryPart { replicas: Vec::new(), lease: None, epochs: Arc::new(Mutex::new(epochs)), suspended };
        if record.peers().any(|peer| peer.lease.is_some()) {
            volume.intake.held().lease().set_until(0);
        }
        let lanes: Vec<LaneId> = LaneId::all().take(bases.len()).collect();
        // All of them before the first of them cuts.
        for lane in &lanes {
            if !volume.intake.tracker_of(*lane).is_marked() {
                let busy = || ApiError::new(ErrorCode::Busy, "a write does not complete");
                part.begin_lane(volume, *lane)?.ok_or_else(busy)?;
            }
        }
        for ((peer, base), lane) in record.peers().zip(bases).zip(lanes) {
            let replica = self.start_replica(&part, volume, record, (peer, lane), base)?;
            part.replicas.push(replica);
        }
        // One that was begun when there were more standbys: nobody would ship its marks, or keep its promise.
        volume.intake.end_lanes_after(part.replicas.len());
        if part.replicas.is_empty() {
            return Err(ApiError::new(ErrorCode::Internal, "a primary without a peer"));
        }
        self.keep_lease(volume, record, &mut part, not_before_ms)?;
        Ok(Part::Primary(part))
    }

    /// Starts sending to one standby.
    pub fn start_replica(
        &self,
        part: &PrimaryPart,
        volume: &Arc<Volume>,
        record: &VolumeRecord,
        (peer, lane): (&PeerRecord, LaneId),
        base: Base,
    ) -> Result<ReplicaPart, ApiError> {
        let Base { known, marked, compare, owed } = base;
        let (id, site) = (volume_id(record)?, peer_site(peer)?);
        let lineage = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        volume.intake.tracker_of(lane).mark(&marked, Some(1).filter(|_| !marked.is_empty()));
        let metrics = self.metrics.volume(&record.name);
        let (marks_exactly, told) = (!compare || marked.is_empty(), Arc::<Told>::default());
        let limit = Arc::new(Limit::new(peer.bandwidth.clone(), unix_ms));
        let setup = Setup {
            volume: id,
            lineage,
            orders: orders(peer),
            intake: volume.intake.clone(),
            lane,
            image: Arc::new(Content(volume.clone())),
            catalogue: self.catalogue.clone(),
            epochs: part.epochs.clone(),
            known,
            known_key: memory::known_key(id, &peer.site),
            promise_key: memory::promise_key(id, &peer.site),
            point_key: memory::point_key(id, &peer.site),
            told: told.clone(),
            owed,
            compare_first: if compare { marked } else { RoaringBitmap::new() },
            counters: volume.counters.clone(),
            bases: self.bases.clone(),
            limit: limit.watch(),
            on_commit: Box::new(move |elapsed| metrics.epoch_commit.observe(elapsed)),
            on_standing: part.suspended.of(lane),
        };
        let replica = Arc::new(Replica::start(setup).map_err(io_error)?);
        // A volume of a group has one standby.
        let place = self.groups.place_of(&record.id).filter(|_| record.others.is_empty());
        replica.join(place.map(|(group, member)| (&group.cutter, member)));
        let route =
            Route { links: self.sites.links.clone(), site, volume: id, bandwidth: limit.watch(), counters: volume.counters.clone() };
        let ((settings, teller_settings), (hear, heard)) = (watch::channel(told_to(record, peer)), watch::channel(None));
        let (name, volume_id) = (peer.name.clone(), record.id.clone());
        let teller = Teller { sites: self.sites.clone(), site, name, volume: volume_id, settings: teller_settings, heard: hear };
        let keeper =
            tokio::spawn(keep(replica.clone(), route, limit.clone(), teller, volume.clone(), record.name.clone(), self.overtaken.clone()));
        Ok(ReplicaPart { site: peer.site.clone(), lane, replica, limit, marks_exactly, settings, heard, told, keeper })
    }

    /// Starts receiving. The place of the copy is recorded before.
    pub fn start_standby(&self, volume: &Arc<Volume>, record: &VolumeRecord) -> Result<Part, ApiError> {
        let id = volume_id(record)?;
        let (recorded, image) = (self.catalogue.clone(), volume.image.clone());
        let (dir, quota_bytes) = (self.state_dir.journal(&record.id), self.journal_quota_bytes);
        let (undo, keep, digests) = (self.state_dir.undo(&record.id), self.keep, self.state_dir.digests(&record.id));
        let (has_others, rival) = (!record.others.is_empty(), lineage_of(&record.successor));
        let (old_dir, bases) = (self.state_dir.old(&record.id), self.bases.clone());
        let of_group = GroupPlace::new(self.groups.place_of(&record.id).map(|(group, member)| (group.board.clone(), member)));
        let open = move || {
            let catalogue: Arc<dyn Catalogue> = recorded.clone();
            let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "the catalogue does not say where the copy stands");
            let place = Place::load(id, &*catalogue)?.ok_or_else(missing)?;
            let disk = undo_disk(&image, &undo[0]);
            let (device, kept) = old::open(&old_dir, &place, &recorded, &image)?;
            let mut standby = Standby::open(place, SegmentDir::open(&dir)?, quota_bytes, device, catalogue)?;
            standby.set_old_state(kept);
            standby.remember_bases(bases.clone());
            standby.check_digests(Box::new(DigestsOnDisk::open(&digests)?))?;
            standby.set_group_place(of_group.clone());
            let [all, fewer, fewest] = &undo;
            standby.keep_points([SegmentDir::open(all)?, SegmentDir::open(fewer)?, SegmentDir::open(fewest)?], keep)?;
            standby.set_undo_disk(disk);
            if has_others {
                standby.handle_everywhere(0);
            }
            standby.set_rival(rival.clone());
            Ok(standby)
        };
        let service = StandbyService::start(Box::new(open), self.scrub, self.scrub_budget.clone());
        let service = service.map_err(|error| ApiError::new(ErrorCode::Io, error.to_string()))?;
        Ok(Part::Standby(Arc::new(service)))
    }
}

/// Whether older recovery points take room from the image. Where that cannot be seen they do not: then none goes in vain.
fn undo_disk(image: &Image, undo: &Path) -> UndoDisk {
    let parent = undo.ancestors().find(|path| path.exists());
    let of_undo = parent.and_then(|path| path.metadata().ok()).map(|of| of.dev());
    let of_image = image.try_clone_file().and_then(|file| file.metadata()).ok().map(|of| of.dev());
    if of_image.is_some() && of_image == of_undo { UndoDisk::WithImage } else { UndoDisk::Apart }
}

/// Keeps a replica connected, and tells when another site has overtaken this one.
async fn keep(
    replica: Arc<Replica>,
    route: Route,
    limit: Arc<Limit>,
    teller: Teller,
    volume: Arc<Volume>,
    name: VolumeName,
    overtaken: mpsc::UnboundedSender<Overtaken>,
) {
    let mut status = replica.status();
    let told = async {
        loop {
            let refused = status.borrow_and_update().clone();
            if let (true, Some(refused)) = (refused.superseded, refused.refused) {
                // Before anything that may take time.
                volume.gate.set(GateState::Fenced);
                let _ = overtaken.send(Overtaken { name, lineage: refused.lineage });
                return;
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(replica.keep_connected(route), teller.run(replica.status())) } => {}
        () = limit.follow() => {}
        () = told => {}
    }
}
