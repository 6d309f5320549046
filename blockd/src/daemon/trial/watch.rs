//! What becomes of trials by themselves: they run out, and what was begun of a rollback goes on.

use crate::admin::ProgressSink;
use crate::catalogue::TrialRecord;
use crate::daemon::Daemon;
use blockd_api::VolumeName;
use replicator::clock::unix_ms;
use replicator::intake::boot_ms;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often trials are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A client that went may come back: a restart of the daemon, or of the guest.
const PATIENCE_MS: u64 = 10_000;
/// From a rollback that failed to the next attempt.
const RETRY_MS: u64 = 5_000;
/// After a restart of the daemon clients have so long to come back, however late it is.
const GRACE_MS: u64 = 60_000;

/// When a trial is over, by the clock that nobody sets.
struct Watched {
    over_at_ms: u64,
    /// Since when no client is attached.
    alone_since_ms: Option<u64>,
    /// After a rollback that failed: when it is tried again.
    not_before_ms: u64,
}

impl Watched {
    fn new(trial: &TrialRecord, now_ms: u64) -> Self {
        let gone_ms = unix_ms().saturating_sub(trial.began_unix_ms);
        let left_ms = trial.timeout_ms.saturating_sub(gone_ms).max(trial.timeout_ms.min(GRACE_MS));
        Self { over_at_ms: now_ms.saturating_add(left_ms), alone_since_ms: None, not_before_ms: 0 }
    }

    /// Whether it is to be taken back now.
    fn is_over(&mut self, trial: &TrialRecord, is_attached: bool, now_ms: u64) -> bool {
        let since_ms = *self.alone_since_ms.get_or_insert(now_ms);
        if is_attached {
            self.alone_since_ms = None;
            return false;
        }
        now_ms >= self.over_at_ms && now_ms - since_ms >= PATIENCE_MS.min(trial.timeout_ms)
    }
}

struct Seen {
    name: VolumeName,
    trial: Option<TrialRecord>,
    is_attached: bool,
}

impl Daemon {
    /// Serves until it is aborted.
    pub(in crate::daemon) async fn watch_trials(self: Arc<Self>) {
        let mut watched: HashMap<String, Watched> = HashMap::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let seen = self.trials().await;
            let ids: Vec<String> = seen.iter().filter_map(|seen| id_of(seen.trial.as_ref()?)).collect();
            watched.retain(|id, _| ids.contains(id));
            for Seen { name, trial, is_attached } in seen {
                let Some((id, trial)) = trial.and_then(|trial| Some((id_of(&trial)?, trial))) else {
                    self.tell_if_idle(&name).await;
                    continue;
                };
                let now_ms = boot_ms();
                let of = watched.entry(id).or_insert_with(|| Watched::new(&trial, now_ms));
                let ends = of.is_over(&trial, is_attached, now_ms) || trial.taken_back;
                if ends && now_ms >= of.not_before_ms && !self.end(&name).await {
                    of.not_before_ms = boot_ms() + RETRY_MS;
                }
            }
        }
    }

    /// Volumes on trial, and those of which the other site does not know that a trial is over.
    async fn trials(&self) -> Vec<Seen> {
        let volumes = self.volumes.lock().await;
        let concerned = volumes.all().filter(|open| open.record.trial.is_some() || !open.record.voided.is_empty());
        let seen = concerned.map(|open| Seen {
            name: open.record.name.clone(),
            trial: open.record.trial.clone(),
            is_attached: !open.volume.clients.attached().is_empty(),
        });
        seen.collect()
    }

    /// Takes a trial back, unless somebody attaches now, or works on it; says whether it is.
    async fn end(&self, name: &VolumeName) -> bool {
        match self.take_trial_back(name, false, &ProgressSink::nowhere()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(volume = %name, %error, "the trial cannot be taken back yet: it is tried again");
                false
            }
        }
    }

    async fn tell_if_idle(&self, name: &VolumeName) {
        let Some(operation) = self.volumes.lock().await.open.get(name).map(|open| open.operation.clone()) else { return };
        // A trial that is beginning has fenced the other site, and is void only if it does not begin.
        let Ok(_operation) = operation.try_lock_owned() else { return };
        self.tell_voided(name).await;
    }
}

fn id_of(trial: &TrialRecord) -> Option<String> {
    trial.lineage.last().map(|last| last.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_over_when_its_time_is_and_nobody_was_attached_for_a_while() {
        let trial = TrialRecord { lineage: Vec::new(), timeout_ms: 600_000, began_unix_ms: unix_ms(), taken_back: false };
        let mut watched = Watched::new(&trial, 1_000);
        assert!((600_000..=601_000).contains(&watched.over_at_ms));
        assert!(!watched.is_over(&trial, false, 599_000));
        assert!(!watched.is_over(&trial, true, 700_000));
        assert!(!watched.is_over(&trial, false, 701_000) && !watched.is_over(&trial, false, 710_999));
        assert!(watched.is_over(&trial, false, 711_000));
        // The clock was set ahead, or the daemon was away: clients may come back first.
        let late = TrialRecord { began_unix_ms: 1, ..trial };
        assert_eq!(Watched::new(&late, 5_000).over_at_ms, 65_000);
    }
}
