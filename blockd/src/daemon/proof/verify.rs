//! Comparing both sites on a schedule, one volume after the other, and what came of it last: that is durable.

use crate::admin::Outcome;
use crate::config::ProofConfig;
use crate::daemon::Daemon;
use crate::daemon::part::Part;
use crate::daemon::replication::replica_error;
use crate::daemon::settings::schedule_of;
use blockd_api::*;
use replicator::catalogue::{Catalogue, Persist};
use replicator::clock::unix_ms;
use replicator::primary::{OnProgress, Replica, ReplicaError, Verified};
use replicator_engine::schedule::{Clock, Timetable};
use replicator_engine::sender::Phase;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// From a comparison that broke off, or that had no standby to ask, to the next attempt.
const RETRY: Duration = Duration::from_secs(60);

/// What is recorded of a volume.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    /// The schedule counts from here: the end of the last comparison, or when this volume was first seen.
    since_unix_ms: u64,
    last: Option<LastVerify>,
}

fn key(id: &str) -> Vec<u8> {
    format!("verified/{id}").into_bytes()
}

/// What cannot be read is taken for nothing: it is made anew.
fn load(catalogue: &dyn Catalogue, id: &str) -> io::Result<Option<Recorded>> {
    Ok(catalogue.get(&key(id))?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn store(catalogue: &dyn Catalogue, id: &str, recorded: &Recorded) -> io::Result<()> {
    catalogue.apply(&[(key(id), Some(serde_json::to_vec(recorded)?))], Persist::Synced)
}

/// Adds what the last comparison found to a volume's status.
pub(in crate::daemon) fn add_verified(status: &mut VolumeStatus, catalogue: &dyn Catalogue, id: &str) {
    status.verified = load(catalogue, id).ok().flatten().and_then(|recorded| recorded.last);
    let Some(LastVerify { blocks_different: different @ 1.., time, .. }) = &status.verified else { return };
    if status.role == Role::Primary {
        let differ = || format!("the two sites differed in {different} blocks when they were compared at {time}");
        status.last_error = status.last_error.take().or_else(|| Some(differ()));
    }
}

/// The volume is deleted.
pub(in crate::daemon) fn forget(catalogue: &dyn Catalogue, id: &str) -> io::Result<()> {
    catalogue.apply(&[(key(id), None)], Persist::Synced)
}

/// When which volume is due.
struct Plan {
    began: Instant,
    timetables: BTreeMap<VolumeName, Timetable>,
    /// Those that were due and broke off.
    again: BTreeMap<VolumeName, Instant>,
}

impl Plan {
    fn clock(&self) -> Clock {
        Clock { now_ms: self.began.elapsed().as_millis() as u64 + 1, unix_ms: unix_ms() }
    }
}

impl Daemon {
    /// Compares the volumes whose primary is here when they are due, until it is aborted.
    pub(in crate::daemon) async fn verify_in_time(self: Arc<Self>, config: ProofConfig) {
        let Some(schedule) = config.verify.as_deref() else { return };
        let mut plan = Plan { began: Instant::now(), timetables: BTreeMap::new(), again: BTreeMap::new() };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            for name in self.due(&mut plan, schedule).await {
                if let Err(error) = self.prove(&name, Box::new(|_, _| {}), Some(config.verify_bytes_per_second)).await {
                    tracing::info!(volume = %name, %error, "a verify that was due broke off: it is tried again");
                    plan.again.insert(name, Instant::now() + RETRY);
                }
            }
        }
    }

    async fn due(&self, plan: &mut Plan, schedule: &str) -> Vec<VolumeName> {
        let volumes = self.volumes.lock().await;
        let primaries = volumes.all().filter(|open| matches!(open.part, Part::Primary(_)));
        let names: BTreeMap<VolumeName, String> = primaries.map(|open| (open.record.name.clone(), open.record.id.clone())).collect();
        let catalogue = volumes.catalogue.clone();
        drop(volumes);
        plan.timetables.retain(|name, _| names.contains_key(name));
        plan.again.retain(|name, _| names.contains_key(name));
        let clock = plan.clock();
        let mut due = Vec::new();
        for (name, id) in names {
            if !plan.timetables.contains_key(&name) {
                let Some(since_unix_ms) = first_seen(&*catalogue, &id) else { continue };
                let Ok(schedule) = schedule_of(schedule) else { return due };
                plan.timetables.insert(name.clone(), Timetable::new(schedule, Some(since_unix_ms), clock));
            }
            let is_due = plan.timetables.get_mut(&name).is_some_and(|timetable| timetable.take_due(clock));
            let is_again = plan.again.get(&name).is_some_and(|at| *at <= Instant::now());
            if is_due || is_again {
                plan.again.remove(&name);
                due.push(name);
            }
        }
        due
    }

    /// Compares both sites, and records what was found.
    pub(in crate::daemon) async fn prove(
        &self,
        name: &VolumeName,
        progress: OnProgress,
        bytes_per_second: Option<u64>,
    ) -> Outcome<Verification> {
        let (first, others) = self.replicas(name, None).await?;
        let found = match verify_all(std::iter::once(first).chain(others).collect(), progress, bytes_per_second).await {
            // Nothing was found out.
            Err(error @ (ReplicaError::Disconnected | ReplicaError::Stopped)) => return Err(replica_error(name, &error)),
            found => found,
        };
        let found = found.map(|found| {
            let Verified { blocks_compared, blocks_different, blocks_unsettled, at_epoch } = found;
            Verification { blocks_compared, blocks_unsettled, blocks_different, at_epoch }
        });
        self.note_verified(name, &found).await;
        found.map_err(|error| replica_error(name, &error))
    }

    async fn note_verified(&self, name: &VolumeName, found: &Result<Verification, ReplicaError>) {
        match found {
            Ok(found) if found.blocks_different > 0 => tracing::error!(volume = %name, ?found, "the two sites differ"),
            Ok(found) => tracing::info!(volume = %name, ?found, "verified"),
            Err(error) => tracing::error!(volume = %name, %error, "the two sites could not be compared"),
        }
        let (since_unix_ms, volumes) = (unix_ms(), self.volumes.lock().await);
        let Some(time) = i64::try_from(since_unix_ms / 1000).ok().and_then(UtcTime::from_unix_seconds) else { return };
        let stored = volumes.get(name).map_err(io::Error::other).and_then(|open| {
            let (catalogue, id) = (&*volumes.catalogue, &open.record.id);
            let before = load(catalogue, id)?.and_then(|recorded| recorded.last);
            store(catalogue, id, &Recorded { since_unix_ms, last: Some(last(before, found, time)) })
        });
        if let Err(error) = stored {
            tracing::warn!(volume = %name, %error, "what the verify found could not be recorded");
        }
    }
}

/// What is known after a comparison. One that could not be done finds nothing out: what was found before stands, and when.
fn last(before: Option<LastVerify>, found: &Result<Verification, ReplicaError>, time: UtcTime) -> LastVerify {
    let of = |found: &Verification| {
        let Verification { blocks_compared, blocks_unsettled, blocks_different, at_epoch } = *found;
        LastVerify { time, blocks_compared, blocks_unsettled, blocks_different, at_epoch, error: None }
    };
    match found {
        Ok(found) => of(found),
        Err(error) => {
            let nothing = of(&Verification { blocks_compared: 0, blocks_unsettled: 0, blocks_different: 0, at_epoch: 0 });
            LastVerify { error: Some(error.to_string()), ..before.unwrap_or(nothing) }
        }
    }
}

/// Compares with one standby after the other, once all are there.
async fn verify_all(replicas: Vec<Arc<Replica>>, progress: OnProgress, bytes_per_second: Option<u64>) -> Result<Verified, ReplicaError> {
    if replicas.len() > 1 && replicas.iter().any(|replica| replica.status().borrow().phase != Phase::Online) {
        return Err(ReplicaError::Disconnected);
    }
    let progress = Arc::new(Mutex::new(progress));
    let mut all: Option<Verified> = None;
    for replica in replicas {
        let progress = progress.clone();
        let told: OnProgress = Box::new(move |done, total| progress.lock().unwrap_or_else(PoisonError::into_inner)(done, total));
        let found = replica.verify(told, bytes_per_second).await?;
        all = Some(all.map_or(found, |before| Verified {
            blocks_compared: before.blocks_compared + found.blocks_compared,
            blocks_different: before.blocks_different + found.blocks_different,
            blocks_unsettled: before.blocks_unsettled + found.blocks_unsettled,
            at_epoch: before.at_epoch.min(found.at_epoch),
        }));
    }
    all.ok_or(ReplicaError::Stopped)
}

/// From when on the schedule counts. `None` if that cannot be recorded: then nothing is due, rather than all the time.
fn first_seen(catalogue: &dyn Catalogue, id: &str) -> Option<u64> {
    let recorded = load(catalogue, id).ok()?;
    if let Some(recorded) = recorded {
        return Some(recorded.since_unix_ms);
    }
    let since_unix_ms = unix_ms();
    store(catalogue, id, &Recorded { since_unix_ms, last: None }).ok()?;
    Some(since_unix_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_that_could_not_be_done_hides_nothing_that_was_found_before() {
        let time = |hour: i64| UtcTime::from_unix_seconds(1_800_000_000 + hour * 3600).unwrap();
        let differs = last(None, &Ok(Verification { blocks_compared: 9, blocks_unsettled: 0, blocks_different: 3, at_epoch: 5 }), time(0));
        let failed = last(Some(differs.clone()), &Err(ReplicaError::Disk(io::ErrorKind::Other.into())), time(1));
        assert!(failed.error.is_some());
        assert_eq!(LastVerify { error: None, ..failed }, differs);
    }

    #[test]
    fn what_is_recorded_has_the_documented_form() {
        let time = UtcTime::from_unix_seconds(1_800_000_000).unwrap();
        let last = Some(LastVerify { time, blocks_compared: 4096, blocks_unsettled: 0, blocks_different: 0, at_epoch: 812, error: None });
        let json = serde_json::to_string(&Recorded { since_unix_ms: 1_800_000_000_000, last }).unwrap();
        assert!(include_str!("../../../../docs/formats.md").contains(&json), "{json}");
    }
}
