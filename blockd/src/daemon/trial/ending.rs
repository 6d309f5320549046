//! How a trial ends: it is final, or taken back.

use super::{goes_on_from, void};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{RecordedRole, TrialRecord, VolumeRecord};
use crate::daemon::Daemon;
use crate::daemon::handover::{DRAIN_DEADLINE, client_active, wrong_state};
use crate::daemon::part::{Base, PrimaryStart, volume_id};
use crate::daemon::status;
use crate::daemon::volumes::{Volumes, io_error};
use crate::volume::Volume;
use blockd_api::*;
use replicator::primary::memory;
use replicator::site_link::request::lineage_records;
use replicator::standby::{Rollback, note_damaged};
use replicator_engine::block::BLOCK_BYTES;
use roaring::RoaringBitmap;
use std::sync::Arc;
use std::time::Instant;

fn no_trial(name: &VolumeName) -> ApiError {
    wrong_state(format!("{name} is not on trial here"), "`tern promote NAME --force --trial 10m` begins one")
}

fn trial_of(record: &VolumeRecord) -> Outcome<TrialRecord> {
    record.trial.clone().ok_or_else(|| no_trial(&record.name))
}

fn kept_is_damaged(name: &VolumeName, damaged: &RoaringBitmap) -> ApiError {
    let (blocks, first) = (damaged.len(), damaged.min().unwrap_or(0));
    let message = format!("{blocks} blocks that were kept for {name} when its trial changed them are damaged, the first of them {first}");
    let cure = format!(
        "`tern commit {name}` makes the trial final if it is not being taken back; `tern rollback {name} --force` goes on without them: the standby asks the primary for them"
    );
    ApiError::new(ErrorCode::WouldLoseData, message).with_hint(cure)
}

/// A trial that is being taken back.
struct TakenBack<'a> {
    record: &'a VolumeRecord,
    trial: &'a TrialRecord,
    volume: &'a Arc<Volume>,
    /// Blocks of which what was kept is lost are accepted.
    force: bool,
}

impl Daemon {
    /// The trial is final: this site is primary. Clients see a pause.
    pub(in crate::daemon) async fn commit_trial(&self, name: &VolumeName) -> Outcome<Promotion> {
        let (began, (record, _operation)) = (Instant::now(), self.begin(name).await?);
        let trial = trial_of(&record)?;
        if trial.taken_back {
            return Err(wrong_state(format!("the trial of {name} is being taken back"), "`tern promote --force` begins anew once it is"));
        }
        let (epoch, lineage) = goes_on_from(&trial)?;
        let volume = self.volumes.lock().await.get(name)?.volume.clone();
        if !self.still(&volume).await {
            volume.gate.reopen();
            let error = ApiError::new(ErrorCode::Timeout, format!("{name}: requests of clients do not complete"));
            return Err(error.with_hint("the disk does not answer: see the kernel's log"));
        }
        let mut volumes = self.volumes.lock().await;
        let recorded = volumes.change(name, |record| {
            record.role = RecordedRole::Primary;
            record.lineage = lineage_records(&lineage);
            record.trial = None;
            record.granted = None;
            // Who was fenced for an earlier one hears of this generation.
            record.voided.clear();
        });
        recorded.inspect_err(|_| volume.gate.reopen())?;
        // From here on this site is primary, whatever happens.
        let started = tokio::task::block_in_place(|| volumes.begin_as_primary(name, &volume));
        if started.is_err() {
            volumes.restore(name);
        }
        started?;
        drop(volumes);
        self.note_parted(name, None).await;
        let generation = lineage.current().counter;
        tracing::warn!(volume = %name, epoch, generation, "the trial is final: promoted");
        let seconds = began.elapsed().as_secs_f64();
        Ok(Promotion { kind: PromotionKind::Failover, epoch, generation, seconds, lost_bytes: None, damaged_blocks: 0 })
    }

    /// The trial is taken back: what was kept is put back, and the site is the standby that it was.
    pub(in crate::daemon) async fn take_trial_back(
        &self,
        name: &VolumeName,
        force: bool,
        progress: &ProgressSink,
    ) -> Outcome<VolumeStatus> {
        let (record, _operation) = self.begin(name).await?;
        let trial = trial_of(&record)?;
        let volume = self.volumes.lock().await.get(name)?.volume.clone();
        if !trial.taken_back {
            volume.gate.shut();
            let attached = volume.clients.attached();
            if !attached.is_empty() && !force {
                volume.gate.reopen();
                return Err(client_active(name, &attached));
            }
            // Before anything is cut off: a trial that cannot be taken back whole may be made final.
            self.check_kept(&record, force).await.inspect_err(|_| volume.gate.reopen())?;
            let recorded =
                self.volumes.lock().await.change(name, |record| record.trial.iter_mut().for_each(|trial| trial.taken_back = true));
            recorded.inspect_err(|_| volume.gate.reopen())?;
        }
        let told = |done, total| progress.report(Progress::bytes("rollback", done, Some(total)));
        self.put_back(&TakenBack { record: &record, trial: &trial, volume: &volume, force }, &told).await?;
        self.tell_voided(name).await;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// Refuses to take a trial back of which some of what was kept is not that any more, unless that is accepted.
    async fn check_kept(&self, record: &VolumeRecord, force: bool) -> Outcome<()> {
        let place = self.volumes.lock().await.kept_place(record)?;
        let damaged = tokio::task::block_in_place(|| place.open()?.damaged()).map_err(io_error)?;
        if damaged.is_empty() || force { Ok(()) } else { Err(kept_is_damaged(&record.name, &damaged)) }
    }

    /// What a rollback does once it is recorded; done again, from the beginning, after a crash or an error.
    async fn put_back(&self, back: &TakenBack<'_>, told: &(dyn Fn(u64, u64) + Sync)) -> Outcome<()> {
        let name = &back.record.name;
        let front_ends = self.volumes.lock().await.front_ends.clone();
        // A request that waits would be carried out on other content: whoever made it has to begin anew.
        let emptied = tokio::time::timeout(DRAIN_DEADLINE, async {
            front_ends.end_all(name).await;
            back.volume.gate.drained().await;
        });
        let done = match emptied.await {
            Ok(()) => self.put_all_back(back, told).await,
            Err(_) => {
                let error = ApiError::new(ErrorCode::Timeout, format!("{name}: requests of clients do not complete"));
                Err(error.with_hint("the disk does not answer: see the kernel's log; it is tried again"))
            }
        };
        self.volumes.lock().await.serve_all(name).await;
        done
    }

    async fn put_all_back(&self, back: &TakenBack<'_>, told: &(dyn Fn(u64, u64) + Sync)) -> Outcome<()> {
        let TakenBack { record, trial, volume, force } = *back;
        let (name, id) = (&record.name, volume_id(record)?);
        let (_, lineage) = goes_on_from(trial)?;
        let place = self.volumes.lock().await.kept_place(record)?;
        let put_back = || {
            volume.origin.clear();
            let kept = place.open()?;
            let total = kept.blocks().len() * BLOCK_BYTES as u64;
            kept.put_back(&volume.image, |done| told(done, total))
        };
        let damaged = tokio::task::block_in_place(put_back).map_err(io_error)?;
        let mut volumes = self.volumes.lock().await;
        if !damaged.is_empty() {
            // The standby asks for them: nobody takes what is there for what should be.
            if !force || !note_damaged(id, &*volumes.catalogue, &damaged).map_err(io_error)? {
                return Err(kept_is_damaged(name, &damaged));
            }
            tracing::error!(volume = %name, blocks = damaged.len(), first = damaged.min(), "blocks could not be put back: the primary is asked for them");
        }
        volumes.change(name, |record| {
            record.trial = None;
            void(record, lineage.current().id.to_string());
        })?;
        tracing::warn!(volume = %name, "the trial is taken back");
        volume.intake.stop_logging();
        // What is left of it counts for nothing, and goes with the next one at the latest.
        let forgotten = Rollback::forget(id, &*volumes.catalogue).and_then(|()| place.forget()).and_then(|()| volume.intake.log().clear());
        if let Err(error) = forgotten {
            tracing::warn!(volume = %name, %error, "what the trial has left takes room");
        }
        volumes.restore(name);
        Ok(())
    }

    /// Lets nobody in, and waits until nobody is inside.
    async fn still(&self, volume: &Volume) -> bool {
        volume.gate.shut() && tokio::time::timeout(DRAIN_DEADLINE, volume.gate.drained()).await.is_ok()
    }
}

impl Volumes {
    /// A trial has become final, and nobody is inside the gate. Everything that changed since the point is marked.
    fn begin_as_primary(&mut self, name: &VolumeName, volume: &Arc<Volume>) -> Outcome<()> {
        let record = self.get(name)?.record.clone();
        let (id, site) = (volume_id(&record)?, record.peer.as_ref().map_or("", |peer| &peer.site));
        volume.origin.clear();
        self.resume_going_back(volume, &record)?;
        // One standby: with several there are no trials.
        let known = memory::load_known(&*self.catalogue, &memory::known_key(id, site)).map_err(io_error)?;
        let bases = vec![Base { known, ..Base::default() }];
        let part = self.start_primary(PrimaryStart { volume, record: &record, bases, not_before_ms: 0 })?;
        self.put_part(name, part);
        volume.gate.reopen();
        let goes_back = volume.origin.get().is_some();
        let forgotten =
            self.forget_trial(&record).and_then(|()| if goes_back { Ok(()) } else { self.forget_points(&record.id).map_err(io_error) });
        if let Err(error) = forgotten {
            tracing::warn!(volume = %name, %error, "what led back takes room although it leads nowhere");
        }
        Ok(())
    }
}
