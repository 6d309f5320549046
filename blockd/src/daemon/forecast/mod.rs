//! `tern forecast`: how long a handover would take now, and how long those before took.
//!
//! The primary reckons, from what its replicas measure and what earlier handovers cost; a standby asks it. What becomes of a handover is in
//! [`handovers`].

mod handovers;
mod record;
mod words;

pub(super) use handovers::Begun;
pub(super) use record::forget;

use super::Daemon;
use super::handover::{OTHERS_DEADLINE, wrong_state};
use super::part::{Part, PrimaryPart, ReplicaPart, peer_site};
use super::volumes::{OpenVolume, Volumes};
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, VolumeRecord};
use crate::volume::Volume;
use blockd_api::{ApiError, ErrorCode, Forecast, ForecastList, SiteName, VolumeName, VolumeStatus};
use record::Record;
use replicator::catalogue::Catalogue;
use replicator::primary::Replica;
use replicator::site_link::forecast::ForecastRecord;
use replicator::site_link::request::{self, Answer, Question};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::forecast::{Circumstances, Writers};
use std::collections::BTreeSet;
use std::time::Duration;
use words::{FAILOVER, NO_POINT, NOT_CONNECTED, shown, to_the_millisecond, word};

/// For the primary to say what it reckons.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// What is reckoned for one standby.
pub(super) fn reckon(primary: &PrimaryPart, part: &ReplicaPart, volume: &Volume, fixed_ms: Option<u64>) -> ForecastRecord {
    let is_other = |other: &&ReplicaPart| other.site != part.site;
    let others_ms = primary.replicas.iter().filter(is_other).filter_map(|other| drained_ms(&other.replica)).max().unwrap_or(0);
    let writers = if volume.clients.attached().is_empty() { Writers::None } else { Writers::GoOn };
    of_replica(&part.replica, Circumstances { writers, fixed_ms, others_ms, now_ms: part.replica.now_ms() })
}

/// How long another standby is waited for: by itself it holds nothing up.
fn drained_ms(replica: &Replica) -> Option<u64> {
    let outlook = replica.status().borrow().outlook?;
    let seconds = outlook.forecast(Circumstances { fixed_ms: Some(0), ..Circumstances::default() }).seconds?;
    Some(millis(Duration::try_from_secs_f64(seconds).unwrap_or(OTHERS_DEADLINE).min(OTHERS_DEADLINE)))
}

fn of_replica(replica: &Replica, circumstances: Circumstances) -> ForecastRecord {
    let status = replica.status();
    let seen = status.borrow();
    let backlog_bytes = seen.backlog.unsent_blocks * BLOCK_BYTES as u64;
    let Some(outlook) = seen.outlook else {
        return ForecastRecord { backlog_bytes, basis: NOT_CONNECTED.into(), ..ForecastRecord::default() };
    };
    let forecast = outlook.forecast(circumstances);
    let if_idle = outlook.forecast(Circumstances { writers: Writers::None, ..circumstances });
    let measured = outlook.measured;
    let basis = if seen.known.is_none() { NO_POINT } else { word(forecast.basis) };
    ForecastRecord {
        seconds: forecast.seconds,
        seconds_if_idle: if_idle.seconds,
        bytes: forecast.bytes,
        backlog_bytes: outlook.backlog_bytes,
        changes_per_second: measured.changes_per_second,
        link_per_second: measured.link.per_second(),
        payload_per_mille: measured.payload_per_mille,
        fixed_ms: circumstances.fixed_ms,
        basis: basis.into(),
    }
}

/// Adds the forecast to a volume's status: of the standby that the status is of.
pub(super) fn add_to(status: &mut VolumeStatus, catalogue: &dyn Catalogue, open: &OpenVolume) {
    let Part::Primary(primary) = &open.part else { return };
    let fixed_ms = Record::load(catalogue, &open.record.id).fixed_ms();
    let seconds = |name: &SiteName| {
        let peer = open.record.peers().find(|peer| peer.name == *name)?;
        reckon(primary, primary.to(&peer.site)?, &open.volume, fixed_ms).seconds.map(to_the_millisecond)
    };
    status.evacuation_seconds = status.peer.as_ref().and_then(&seconds);
    for replica in &mut status.replicas {
        replica.evacuation_seconds = seconds(&replica.site);
    }
}

impl Daemon {
    pub(super) async fn forecasts(&self, name: Option<&VolumeName>, to: Option<&SiteName>) -> Outcome<ForecastList> {
        let chosen: Vec<(VolumeName, VolumeRecord)> = {
            let volumes = self.volumes.lock().await;
            let open = chosen(&volumes, name)?;
            let is_meant = |open: &&&OpenVolume| name.is_some() || matches!(open.part, Part::Primary(_) | Part::Standby(_));
            open.iter().filter(is_meant).map(|open| (open.record.name.clone(), open.record.clone())).collect()
        };
        let (mut volumes, mut silent) = (Vec::new(), BTreeSet::new());
        for (name, record) in chosen {
            volumes.extend(self.forecasts_of(&name, &record, to, &mut silent).await?);
        }
        Ok(ForecastList { volumes })
    }

    async fn forecasts_of(
        &self,
        name: &VolumeName,
        record: &VolumeRecord,
        to: Option<&SiteName>,
        silent: &mut BTreeSet<String>,
    ) -> Outcome<Vec<Forecast>> {
        {
            let volumes = self.volumes.lock().await;
            let open = volumes.get(name)?;
            let fixed_ms = Record::load(&*volumes.catalogue, &record.id).fixed_ms();
            match &open.part {
                Part::Primary(primary) => {
                    let to_this = |peer: &&PeerRecord| to.is_none_or(|to| peer.name == *to);
                    let all = record.peers().filter(to_this).filter_map(|peer| Some((peer, primary.to(&peer.site)?)));
                    let all: Vec<_> =
                        all.map(|(peer, part)| shown(name, &peer.name, &reckon(primary, part, &open.volume, fixed_ms))).collect();
                    return match to {
                        Some(to) if all.is_empty() => Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not replicated to {to}"))),
                        _ => Ok(all),
                    };
                }
                Part::Standby(_) if to.is_none_or(|to| *to == self.site) => {}
                Part::Standby(_) => return Err(wrong_state(format!("{name} is a standby here"), "ask at its primary for other standbys")),
                Part::Idle => return Err(wrong_state(format!("{name} is not replicated"), "`tern replicate --to SITE` begins that")),
            }
        }
        Ok(vec![shown(name, &self.site, &self.ask_for_forecast(record, silent).await?)])
    }

    /// What the primary reckons; if it does not answer, how long this site took by itself. A site that is silent is not asked again.
    async fn ask_for_forecast(&self, record: &VolumeRecord, silent: &mut BTreeSet<String>) -> Outcome<ForecastRecord> {
        if let Some(peer) = record.peer.as_ref().filter(|peer| !silent.contains(&peer.site)) {
            let question = Question::Forecast { volume: record.id.clone() };
            match request::ask(&self.sites.links, &peer_site(peer)?, &question, ASK_DEADLINE).await {
                Ok(Answer::Forecast(forecast)) => return Ok(forecast),
                Ok(answer) => tracing::debug!(volume = %record.name, ?answer, "the primary makes no forecast"),
                Err(error) => {
                    silent.insert(peer.site.clone());
                    tracing::debug!(volume = %record.name, %error, "the primary makes no forecast");
                }
            }
        }
        let alone = Record::load(&*self.volumes.lock().await.catalogue, &record.id).promotion_ms();
        let seconds = alone.map(|ms| ms as f64 / 1000.0);
        Ok(ForecastRecord { seconds, seconds_if_idle: seconds, basis: FAILOVER.into(), ..ForecastRecord::default() })
    }

    /// A standby asks.
    pub(in crate::daemon) async fn tell_forecast(&self, from: &str, volume: &str) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let volumes = self.volumes.lock().await;
        let open = volumes.by_id(volume).filter(|open| open.record.peer_at(from).is_some()).ok_or_else(unknown)?;
        let Part::Primary(primary) = &open.part else {
            return Err(ApiError::new(ErrorCode::WrongState, "that site is not the volume's primary"));
        };
        let fixed_ms = Record::load(&*volumes.catalogue, &open.record.id).fixed_ms();
        Ok(Answer::Forecast(reckon(primary, primary.to(from).ok_or_else(unknown)?, &open.volume, fixed_ms)))
    }
}

/// The volumes that are meant: one, a group's, or all.
fn chosen<'a>(volumes: &'a Volumes, name: Option<&VolumeName>) -> Outcome<Vec<&'a OpenVolume>> {
    match name {
        None => Ok(volumes.all().collect()),
        Some(name) => match volumes.groups.get(name) {
            Some(group) => volumes.members(&group.record),
            None => Ok(vec![volumes.get(name)?]),
        },
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
