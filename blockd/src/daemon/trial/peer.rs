//! What the two sites of a volume tell each other of a trial.
//!
//! The primary is told when the trial begins, and whenever it wants to send to it; it acknowledges nothing from then on. That the trial was
//! taken back is told until it has heard it. That it is final it hears as always: it is refused as stale.

use crate::admin::Outcome;
use crate::catalogue::RecordedRole;
use crate::daemon::Daemon;
use crate::daemon::part::peer_site;
use crate::volume::GateState;
use blockd_api::{ApiError, ErrorCode, VolumeName};
use replicator::site_link::request::{self, Answer, Question};
use std::time::Duration;

/// For the other site to hear something.
const TELL_DEADLINE: Duration = Duration::from_secs(5);

impl Daemon {
    /// The primary wants to send to a site that is on trial. Nobody ends that meanwhile: what it hears last is how it is.
    pub(in crate::daemon) async fn tell_of_trial(&self, name: &VolumeName) {
        let Some(operation) = self.volumes.lock().await.open.get(name).map(|open| open.operation.clone()) else { return };
        // It tries again.
        let Ok(_operation) = operation.try_lock_owned() else { return };
        let Ok(record) = self.volumes.lock().await.get(name).map(|open| open.record.clone()) else { return };
        let (Some(trial), Some(peer)) = (&record.trial, &record.peer) else { return };
        let (Some(generation), Ok(site)) = (trial.lineage.last().map(|last| last.id.clone()), peer_site(peer)) else { return };
        let question = Question::Fence { volume: record.id.clone(), trial: Some(generation) };
        let asked = request::ask(&self.sites.links, &site, &question, TELL_DEADLINE).await;
        if !matches!(asked, Ok(Answer::Done)) {
            tracing::warn!(volume = %record.name, answer = ?asked, "the primary has not fenced itself for the trial: it is told again");
        }
    }

    /// Has the other site hear which trials came to nothing. Whoever calls has the volume's operation.
    pub(super) async fn tell_voided(&self, name: &VolumeName) {
        let Ok(record) = self.volumes.lock().await.get(name).map(|open| open.record.clone()) else { return };
        // A primary would be given leave to acknowledge beside it.
        let is_owed = record.role == RecordedRole::Standby && record.trial.is_none() && !record.voided.is_empty();
        let Some(Ok(site)) = record.peer.as_ref().filter(|_| is_owed).map(peer_site) else { return };
        if self.sites.links.get(&site).is_none() {
            return;
        }
        let question = Question::TrialOver { volume: record.id.clone(), generations: record.voided.clone() };
        let asked = request::ask(&self.sites.links, &site, &question, TELL_DEADLINE).await;
        if !matches!(asked, Ok(Answer::Done)) {
            tracing::debug!(volume = %name, answer = ?asked, "the other site has not heard that the trial is over: it is told again");
            return;
        }
        let heard = |voided: &String| !record.voided.contains(voided);
        if let Err(error) = self.volumes.lock().await.change(name, |record| record.voided.retain(heard)) {
            tracing::warn!(volume = %name, %error, "the other site is told again that the trial is over");
        }
    }

    /// The other site has taken these trials back, or never began them: a fence for one of them is lifted.
    pub(in crate::daemon) async fn trials_are_over(&self, from: &str, volume: &str, generations: &[String]) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let name = self.volumes.lock().await.by_id(volume).map(|open| open.record.name.clone()).ok_or_else(unknown)?;
        let (record, _operation) = self.begin(&name).await?;
        if record.peer_at(from).is_none() {
            return Err(unknown());
        }
        let is_over = record.fenced_for.as_ref().is_some_and(|trial| generations.contains(trial));
        if record.role == RecordedRole::Primary && record.fenced && is_over {
            let mut volumes = self.volumes.lock().await;
            volumes.change(&name, |record| (record.fenced, record.fenced_for) = (false, None))?;
            let volume = &volumes.get(&name)?.volume;
            volume.gate.set(GateState::Shut);
            volume.gate.reopen();
            tracing::warn!(volume = %name, "the other site's trial is over: this one goes on");
        }
        Ok(Answer::Done)
    }
}
