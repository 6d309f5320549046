//! Handovers as they go: what was forecast when one was ordered, and what it took, at both sites.

use super::record::{Entry, Record};
use super::{chosen, millis, reckon};
use crate::admin::Outcome;
use crate::catalogue::VolumeRecord;
use crate::daemon::Daemon;
use crate::daemon::part::{Part, peer_site};
use blockd_api::{ApiError, ErrorCode, Handover, HandoverList, UtcTime, VolumeName};
use replicator::catalogue::{Catalogue, Persist};
use replicator::clock::unix_ms;
use replicator::site_link::forecast::{ForecastRecord, HandedOver};
use replicator::site_link::request::{self, Answer, Question};
use replicator_engine::tracker::Epoch;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For the old primary to hear how long it took.
const TELL_DEADLINE: Duration = Duration::from_secs(30);

/// A handover that has begun.
pub(in crate::daemon) struct Begun {
    at: Instant,
    began_unix_ms: u64,
    forecast: ForecastRecord,
    sending: Duration,
}

impl Begun {
    /// It was ordered just now.
    pub fn now(forecast: ForecastRecord) -> Self {
        Self { at: Instant::now(), began_unix_ms: unix_ms(), forecast, sending: Duration::ZERO }
    }

    /// Everything is at the standby.
    pub fn sent(&mut self) {
        self.sending = self.at.elapsed();
    }

    fn handed(&self) -> HandedOver {
        let forecast_ms = self.forecast.seconds.map(|seconds| (seconds * 1000.0) as u64);
        let (sending_ms, took_ms) = (millis(self.sending), millis(self.at.elapsed()));
        HandedOver { began_unix_ms: self.began_unix_ms, forecast_ms, forecast_bytes: self.forecast.bytes, sending_ms, took_ms }
    }
}

impl Daemon {
    pub(in crate::daemon) async fn list_handovers(&self, name: Option<&VolumeName>) -> Outcome<HandoverList> {
        let volumes = self.volumes.lock().await;
        let listed = chosen(&volumes, name)?.into_iter().flat_map(|open| {
            let record = Record::load(&*volumes.catalogue, &open.record.id);
            record.entries().iter().map(|entry| handover(&open.record.name, entry)).collect::<Vec<_>>()
        });
        Ok(HandoverList { handovers: listed.collect() })
    }

    /// How a handover would go that is ordered now, to this site or the first.
    pub(in crate::daemon) async fn begin_handover(&self, name: &VolumeName, to: Option<&str>) -> Outcome<Begun> {
        let volumes = self.volumes.lock().await;
        let open = volumes.get(name)?;
        let Part::Primary(primary) = &open.part else { return Ok(Begun::now(ForecastRecord::default())) };
        let part = to.and_then(|to| primary.to(to)).unwrap_or(primary.first());
        let fixed_ms = Record::load(&*volumes.catalogue, &open.record.id).fixed_ms();
        Ok(Begun::now(reckon(primary, part, &open.volume, fixed_ms)))
    }

    /// This site is about to step down at this epoch, or has just done so: with what is recorded next it is durable.
    pub(in crate::daemon) async fn note_handed(&self, record: &VolumeRecord, begun: &Begun, epoch: Epoch) -> HandedOver {
        let handed = begun.handed();
        let entry = Entry { from: self.site.clone(), to: None, generation: None, epoch, handed, granted_ms: None, took_ms: None };
        self.change_record(&record.id, Persist::Eventually, |of| of.note(entry)).await;
        handed
    }

    /// How this site stepped down at this epoch, if nobody has taken over since, for all that is known.
    pub(in crate::daemon) async fn handed_at(&self, id: &str, epoch: Epoch) -> Option<HandedOver> {
        let mut record = Record::load(&*self.volumes.lock().await.catalogue, id);
        record.open_at(epoch).filter(|entry| entry.from == self.site).map(|entry| entry.handed)
    }

    /// The primary stepped down at this epoch, for this generation, and said so after so long.
    pub(in crate::daemon) async fn note_granted(
        &self,
        record: &VolumeRecord,
        generation: &str,
        epoch: Epoch,
        handed: Option<HandedOver>,
        granted: Duration,
    ) {
        let (Some(peer), Some(handed)) = (&record.peer, handed) else { return };
        let (from, to, generation) = (peer.name.clone(), Some(self.site.clone()), Some(generation.to_owned()));
        let entry = Entry { from, to, generation, epoch, handed, granted_ms: Some(millis(granted)), took_ms: None };
        self.change_record(&record.id, Persist::Eventually, |of| of.note(entry)).await;
    }

    /// This site has become primary by a handover, so long after it was granted.
    pub(in crate::daemon) async fn note_taken_over(&self, name: &VolumeName, epoch: Epoch, since_grant: Duration) {
        let Ok(record) = self.volumes.lock().await.get(name).map(|open| open.record.clone()) else { return };
        let mut took_ms = None;
        self.change_record(&record.id, Persist::Synced, |of| {
            let Some(entry) = of.open_at(epoch).filter(|entry| entry.generation.is_some()) else { return };
            took_ms = entry.granted_ms.map(|ms| ms.saturating_add(millis(since_grant)));
            entry.took_ms = took_ms;
            let (forecast_ms, sending_ms) = (entry.handed.forecast_ms, entry.handed.sending_ms);
            tracing::info!(volume = %name, took_ms, forecast_ms, sending_ms, granted_ms = entry.granted_ms, "handed over");
        })
        .await;
        let (Some(took_ms), Some(Ok(site))) = (took_ms, record.peer.as_ref().map(peer_site)) else { return };
        let (links, question) = (self.sites.links.clone(), Question::TookOver { volume: record.id.clone(), epoch, took_ms });
        tokio::spawn(async move {
            if let Err(error) = request::ask(&links, &site, &question, TELL_DEADLINE).await {
                tracing::debug!(%site, %error, "the old primary does not hear how long the handover took");
            }
        });
    }

    /// A site has taken over what this one handed over.
    pub(in crate::daemon) async fn note_took_over(&self, from: &str, volume: &str, epoch: Epoch, took_ms: u64) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let to = {
            let volumes = self.volumes.lock().await;
            volumes.by_id(volume).and_then(|open| open.record.peer_at(from)).map(|peer| peer.name.clone()).ok_or_else(unknown)?
        };
        self.change_record(volume, Persist::Eventually, |of| {
            if let Some(entry) = of.open_at(epoch).filter(|entry| entry.from == self.site) {
                (entry.to, entry.took_ms) = (Some(to), Some(took_ms));
            }
        })
        .await;
        Ok(Answer::Done)
    }

    /// What is written down of handovers is worth no failed one.
    async fn change_record(&self, id: &str, persist: Persist, change: impl FnOnce(&mut Record)) {
        let volumes = self.volumes.lock().await;
        let catalogue: Arc<dyn Catalogue> = volumes.catalogue.clone();
        let mut record = Record::load(&*catalogue, id);
        change(&mut record);
        let stored = tokio::task::block_in_place(|| record.store(&*catalogue, id, persist));
        if let Err(error) = stored {
            tracing::warn!(volume = id, %error, "catalogue: the record of handovers cannot be written");
        }
    }
}

fn handover(name: &VolumeName, entry: &Entry) -> Handover {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let (forecast, actual) = (entry.handed.forecast_ms, entry.took_ms);
    let error = forecast.zip(actual.filter(|ms| *ms > 0));
    Handover {
        name: name.clone(),
        time: i64::try_from(entry.handed.began_unix_ms / 1000).ok().and_then(UtcTime::from_unix_seconds),
        from: entry.from.clone(),
        to: entry.to.clone(),
        epoch: entry.epoch,
        forecast_seconds: forecast.map(seconds),
        actual_seconds: actual.map(seconds),
        error_percent: error.map(|(forecast, actual)| ((forecast as f64 / actual as f64 - 1.0) * 1000.0).round() / 10.0),
        forecast_bytes: entry.handed.forecast_bytes,
    }
}
