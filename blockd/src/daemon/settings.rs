//! What the operator set for a replica: asked for, recorded, and told to the standby, which goes by it once it is primary itself.

use super::part::Part;
use super::volumes::Volumes;
use super::{Daemon, sites::Sites};
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, RecordedRole, VolumeRecord};
use blockd_api::*;
use replicator::identity::SiteId;
use replicator::primary::PrimaryStatus;
use replicator::site_link::request::{Answer, OtherStandby, Question, SettingsRecord};
use replicator_engine::schedule::{MAX_PERIOD_MS, Schedule};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::MAX_LANES;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// As long as a schedule's period at most: what is computed of it stays far from its limits.
const RPO_MS: std::ops::RangeInclusive<u64> = 100..=MAX_PERIOD_MS;
/// A guest's disk should not hang for longer than an operator would.
const ACK_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
/// For the standby to have heard of a change before the operator is answered.
const TELL_DEADLINE: Duration = Duration::from_secs(5);
/// In place of a schedule: cuts only when asked.
const NO_SCHEDULE: &str = "none";
/// Before a question that was not answered is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

fn millis(span: Span) -> u64 {
    span.duration().as_millis() as u64
}

fn invalid(message: impl Into<String>, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message).with_hint(hint)
}

/// What is recorded once the request is granted: what it does not name stays as it is.
pub(super) fn asked(request: &Replicate, recorded: PeerRecord) -> Outcome<PeerRecord> {
    let mode = request.mode.unwrap_or(recorded.mode);
    let peer = PeerRecord {
        mode,
        rpo_ms: request.rpo.map_or(recorded.rpo_ms, millis),
        bandwidth: request.bandwidth.clone().unwrap_or(recorded.bandwidth),
        on_disconnect: request.on_disconnect.or(recorded.on_disconnect),
        ack_timeout_ms: request.ack_timeout.map(millis).or(recorded.ack_timeout_ms),
        schedule: match request.schedule.as_deref() {
            None => recorded.schedule,
            Some(NO_SCHEDULE) => None,
            Some(schedule) => Some(schedule.to_owned()),
        },
        ..recorded
    };
    if mode.on_disconnect() == OnDisconnect::Continue && request.on_disconnect.is_some_and(|choice| choice != OnDisconnect::Continue) {
        let hint = "--mode barrier or --mode sync, or leave --on-disconnect out";
        return Err(invalid(format!("in mode {mode} no request waits for the standby"), hint));
    }
    if mode != Mode::Snapshot && request.schedule.as_deref().is_some_and(|schedule| schedule != NO_SCHEDULE) {
        return Err(invalid(format!("mode {mode} cuts by itself"), "--mode snapshot goes by a schedule"));
    }
    check(peer)
}

/// A request that changes nothing.
pub(super) fn nothing_for(to: SiteName) -> Replicate {
    let (on_disconnect, ack_timeout, schedule) = Default::default();
    let (fence, lease, witness, auto_promote, force) = Default::default();
    let (mode, rpo, bandwidth) = Default::default();
    Replicate { to, mode, rpo, bandwidth, on_disconnect, ack_timeout, schedule, fence, lease, witness, auto_promote, force }
}

/// What a schedule says: a span, or cron syntax.
pub(super) fn schedule_of(text: &str) -> Outcome<Schedule> {
    let schedule = text.parse::<Span>().map_or_else(|_| Schedule::cron(text), |span| Schedule::every(millis(span)));
    schedule.map_err(|error| invalid(format!("schedule {text:?}: {error}"), "such as 15m, or \"0 2 * * *\" in UTC"))
}

/// Whether a site can go by it.
fn check(peer: PeerRecord) -> Outcome<PeerRecord> {
    if !RPO_MS.contains(&peer.rpo_ms) {
        return Err(invalid(format!("an RPO of {} ms cannot be kept", peer.rpo_ms), "give 100ms or more, and 366 days or less"));
    }
    if let Some(ms) = peer.ack_timeout_ms.filter(|ms| !ACK_TIMEOUT_MS.contains(ms)) {
        return Err(invalid(format!("a request cannot wait for {ms} ms"), "give --ack-timeout 100ms or more, and 10m or less"));
    }
    peer.schedule.as_deref().map(schedule_of).transpose()?;
    Ok(peer)
}

/// What the other site is told.
pub(super) fn record_of(peer: &PeerRecord) -> SettingsRecord {
    SettingsRecord {
        mode: peer.mode.as_str().to_owned(),
        rpo_ms: peer.rpo_ms,
        bandwidth_bits_per_second: peer.bandwidth.lowest().map(Rate::bits_per_second),
        bandwidth: Some(&peer.bandwidth).filter(|bandwidth| matches!(bandwidth, Bandwidth::By(_))).map(Bandwidth::to_string),
        on_disconnect: peer.on_disconnect.map(|choice| choice.as_str().to_owned()),
        ack_timeout_ms: peer.ack_timeout_ms,
        schedule: peer.schedule.clone(),
        others: Vec::new(),
    }
}

/// What this standby of the volume is told: how it is replicated to, and which others there are.
pub(super) fn told_to(record: &VolumeRecord, peer: &PeerRecord) -> SettingsRecord {
    let others = record.peers().filter(|other| other.site != peer.site);
    let told = |other: &PeerRecord| OtherStandby { site: other.site.clone(), name: other.name.to_string(), settings: record_of(other) };
    SettingsRecord { others: others.map(told).collect(), ..record_of(peer) }
}

/// A site of an earlier release tells a number alone.
fn told_bandwidth(told: &SettingsRecord) -> Outcome<Bandwidth> {
    let number = || told.bandwidth_bits_per_second.and_then(Rate::from_bits_per_second).map_or(Bandwidth::Unlimited, Bandwidth::AtMost);
    let calendar = told.bandwidth.as_deref().map(str::parse).transpose();
    Ok(calendar.map_err(|error: BandwidthError| invalid(error.to_string(), "upgrade this site"))?.unwrap_or_else(number))
}

/// What is recorded of what the other site told.
fn recorded(told: &SettingsRecord, peer: &PeerRecord) -> Outcome<PeerRecord> {
    let unknown = |error: String| invalid(error, "upgrade this site");
    check(PeerRecord {
        mode: told.mode.parse().map_err(unknown)?,
        rpo_ms: told.rpo_ms,
        bandwidth: told_bandwidth(told)?,
        on_disconnect: told.on_disconnect.as_deref().map(str::parse).transpose().map_err(unknown)?,
        ack_timeout_ms: told.ack_timeout_ms,
        schedule: told.schedule.clone(),
        ..peer.clone()
    })
}

impl Daemon {
    /// The primary of a standby here says how it replicates.
    pub(super) async fn note_settings(&self, from: &str, volume: &str, told: SettingsRecord) -> Outcome<()> {
        let mut volumes = self.volumes.lock().await;
        let of = volumes.by_id(volume).filter(|open| open.record.role == RecordedRole::Standby && open.record.trial.is_none());
        let standby = self.standby_of(from, of)?.clone();
        let old = of.expect("it has a standby").record.clone();
        let mut new = old.clone();
        new.follow(from);
        let peer = new.peer.as_ref().expect("it follows a site that it knows");
        let (peer, others) = (recorded(&told, peer)?, self.others_of(from, &told)?);
        (new.peer, new.others) = (Some(peer), others);
        if !new.others.is_empty() {
            standby.everywhere(0);
        }
        if new == old { Ok(()) } else { volumes.change(&old.name, |record| *record = new) }
    }

    /// The other standbys of the primary at `from`, as it tells of them: each once, and neither itself nor this one.
    fn others_of(&self, from: &str, told: &SettingsRecord) -> Outcome<Vec<PeerRecord>> {
        let improper = || invalid("the question names no proper standby", "upgrade this site");
        let mut others: Vec<PeerRecord> = Vec::new();
        for other in &told.others {
            let site: SiteId = other.site.parse().map_err(|_| improper())?;
            let told_name = other.name.parse().map_err(|_| improper())?;
            let (id, name) = (site.to_string(), self.sites.peer_by_id(&site).unwrap_or(told_name));
            let is_known = id == self.id || id == from || others.iter().any(|known| known.site == id);
            if !is_known && others.len() < MAX_LANES - 1 {
                others.push(recorded(&other.settings, &PeerRecord::new(id, name, other.settings.rpo_ms))?);
            }
        }
        Ok(others)
    }

    /// Records what is set for one of the volume's standbys, and has all of them told.
    pub(super) async fn change_peer(&self, name: &VolumeName, peer: &PeerRecord) -> Outcome<()> {
        let mut volumes = self.volumes.lock().await;
        volumes.change(name, |record| {
            if let Some(old) = record.peers_mut().find(|old| old.site == peer.site) {
                *old = peer.clone();
            }
        })?;
        volumes.tell_standbys(name);
        Ok(())
    }

    /// Waits a little until the standbys, if they are there, have heard what is recorded. If not, they hear it when they attach.
    pub(super) async fn settings_heard(&self, name: &VolumeName) {
        let volumes = self.volumes.lock().await;
        let Ok(Part::Primary(primary)) = volumes.get(name).map(|open| &open.part) else { return };
        let hearing: Vec<_> =
            primary.replicas.iter().map(|part| (part.settings.borrow().clone(), part.heard.clone(), part.replica.status())).collect();
        drop(volumes);
        let told = async {
            for (settings, mut heard, mut status) in hearing {
                tokio::select! {
                    _ = heard.wait_for(|heard| heard.as_ref() == Some(&settings)) => {}
                    _ = status.wait_for(|seen| seen.phase != Phase::Online) => {}
                }
            }
        };
        let _ = tokio::time::timeout(TELL_DEADLINE, told).await;
    }
}

impl Volumes {
    /// Has each standby of a primary told what is recorded.
    pub(super) fn tell_standbys(&self, name: &VolumeName) {
        let Ok(open) = self.get(name) else { return };
        let Part::Primary(primary) = &open.part else { return };
        for part in &primary.replicas {
            if let Some(peer) = open.record.peer_at(&part.site) {
                part.settings.send_if_modified(|settings| {
                    let now = told_to(&open.record, peer);
                    now != std::mem::replace(settings, now.clone())
                });
            }
        }
    }
}

/// Tells a standby what is set, each time that it has attached and at each change.
pub(super) struct Teller {
    pub sites: Arc<Sites>,
    pub site: SiteId,
    pub name: SiteName,
    /// The volume's id, in hexadecimal.
    pub volume: String,
    pub settings: watch::Receiver<SettingsRecord>,
    /// What the standby answered to last, well or not.
    pub heard: watch::Sender<Option<SettingsRecord>>,
}

impl Teller {
    /// Until there is nothing left to tell.
    pub async fn run(mut self, mut status: watch::Receiver<PrimaryStatus>) {
        while status.wait_for(|seen| seen.phase == Phase::Online).await.is_ok() {
            let settings = self.settings.borrow_and_update().clone();
            let question = Question::Settings { volume: self.volume.clone(), settings: settings.clone() };
            match self.sites.ask(&self.site, &self.name, &question, TELL_DEADLINE).await {
                Ok(Answer::Done) => {}
                Ok(answer) => {
                    tracing::warn!(volume = %self.volume, site = %self.name, ?answer, "the standby does not note what is set here");
                }
                Err(error) => {
                    tracing::debug!(volume = %self.volume, %error, "the standby has not heard what is set here");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    continue;
                }
            }
            self.heard.send_replace(Some(settings));
            tokio::select! {
                changed = self.settings.changed() => if changed.is_err() { return },
                _ = status.wait_for(|seen| seen.phase != Phase::Online) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rpo_that_nothing_could_be_computed_of_is_refused_whoever_names_it() {
        let peer = |rpo_ms| PeerRecord::new("77".repeat(32), "osaka".parse().unwrap(), rpo_ms);
        for rpo_ms in [0, 99, MAX_PERIOD_MS + 1, u64::MAX] {
            assert!(check(peer(rpo_ms)).is_err());
            let told = SettingsRecord { rpo_ms, ..record_of(&peer(5000)) };
            assert!(recorded(&told, &peer(5000)).is_err(), "{rpo_ms}");
        }
        assert!(check(peer(MAX_PERIOD_MS)).is_ok());
    }
}
