//! A recovery point of a group, now.

use super::super::Daemon;
use super::super::handover::wrong_state;
use super::super::part::Part;
use super::{GroupRecord, no_group};
use crate::admin::{Outcome, ProgressSink};
use blockd_api::{ApiError, ErrorCode, Progress, Snapshot};
use replicator::primary::Replica;
use replicator::primary::group::CutterStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// For a member that keeps the others from being cut to be ready.
const LAG_LIMIT: Duration = Duration::from_secs(30);

impl Daemon {
    /// Tells the number as soon as all are cut: what is written to any member from then on is not in it.
    pub(in crate::daemon) async fn cut_group(&self, group: &GroupRecord, progress: ProgressSink) -> Outcome<Snapshot> {
        let (mut status, replicas) = self.cutting(group).await?;
        let (began, mut told) = (Instant::now(), None);
        let before = status.borrow_and_update().newest;
        for replica in replicas {
            // It asks for the cut, again if one is given up; nobody waits for this member alone.
            tokio::spawn(async move { drop(replica.snapshot(Box::new(|_| {})).await) });
        }
        loop {
            let seen = status.borrow_and_update().clone();
            if seen.newest > before && told.is_none_or(|told| seen.void.contains(&told) && seen.newest > told) {
                told = Some(seen.newest);
                progress.report(Progress { done: seen.newest, ..Progress::phase("cut") });
            }
            // Epochs arrive in order: with a later cut this one is there, too.
            let is_there = |number: &u64| !seen.void.contains(number) && seen.complete.as_ref().is_some_and(|cut| cut.number >= *number);
            if let Some(epoch) = told.filter(is_there) {
                return Ok(Snapshot { epoch, seconds: began.elapsed().as_secs_f64() });
            }
            let changed = tokio::time::timeout(LAG_LIMIT, status.changed()).await;
            match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(no_group(&group.name)),
                Err(_) if status.borrow().lagging.is_empty() => {}
                Err(_) => return Err(self.lags(group).await),
            }
        }
    }

    async fn cutting(&self, group: &GroupRecord) -> Outcome<(watch::Receiver<CutterStatus>, Vec<Arc<Replica>>)> {
        let here = self.volumes.lock().await;
        let open = here.groups.get(&group.name).ok_or_else(|| no_group(&group.name))?;
        let replicas = here.members(&open.record)?.into_iter().map(|member| match &member.part {
            Part::Primary(primary) => Ok(primary.first().replica.clone()),
            _ => Err(wrong_state(format!("{} is not replicated from here", member.record.name), "ask where the group is primary")),
        });
        Ok((open.cutter.status(), replicas.collect::<Outcome<_>>()?))
    }

    async fn lags(&self, group: &GroupRecord) -> ApiError {
        let here = self.volumes.lock().await;
        let why = super::statuses(&here, Some(&group.name)).pop().and_then(|status| status.reason);
        let error = ApiError::new(ErrorCode::Timeout, format!("{} cannot be cut: {}", group.name, why.unwrap_or_default()));
        error.with_hint(format!("`tern group show {}` says how its members stand", group.name))
    }
}
