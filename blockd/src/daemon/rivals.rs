//! A standby whose primary was replaced by another one of its standbys: it follows that one.
//!
//! ```text
//!   the new primary branched at epoch 17
//!     this standby stands at 15: it attaches, and is sent what changed since
//!     this standby stands at 19, in mode async: its own changes since 17 count as blocks to be compared, then it attaches
//!     this standby stands at 19, and its mode promised to keep that: nothing is given up before the operator says so
//! ```

use super::Daemon;
use super::handover::{Copy, wrong_state};
use super::overtaken::coarse;
use super::part::{Part, rules};
use super::volumes::io_error;
use crate::admin::Outcome;
use crate::catalogue::{RecordedRole, VolumeRecord};
use blockd_api::*;
use replicator::clock::unix_ms;
use replicator::following::{self, Stand};
use replicator::primary::PrimaryStatus;
use replicator::site_link::request::{Question, lineage_of, lineage_records};
use replicator::standby::{Lost, Session, StandbyService};
use replicator::undo::Point;
use replicator_engine::acknowledgement::Promise;
use replicator_engine::block::{BLOCK_BYTES, block_count};
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::Base;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How often standbys are told which epoch each of them has.
const EVERYWHERE_INTERVAL: Duration = Duration::from_secs(5);
/// For one of them to have heard that.
const EVERYWHERE_DEADLINE: Duration = Duration::from_secs(2);

/// What becomes of recovery points that the new primary does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Discarded {
    /// The last of them is pinned, as the old state.
    Kept,
    Gone,
}

/// What a standby that may not follow says of itself.
pub(super) fn of_standby(status: &mut VolumeStatus, record: &VolumeRecord) {
    if !record.successor.is_empty() {
        status.state = State::SplitBrain;
        status.last_error = Some(format!(
            "another site was promoted without recovery points that this standby has, and that it does not give up by itself: `tern resync {0} \
             --discard-local` here gives them up, `tern promote {0} --force` here goes on with them",
            record.name
        ));
    }
}

impl Daemon {
    /// While this is polled: once this site's stream has attached to the standby, it is recorded as its primary.
    pub(super) async fn note_primary(&self, record: &VolumeRecord, site: &str, standby: &StandbyService, session: Session) -> Infallible {
        let is_noted = record.successor.is_empty() && record.peer.as_ref().is_some_and(|peer| peer.site == site);
        if !is_noted && standby.status().wait_for(|seen| seen.attached && seen.session == Some(session)).await.is_ok() {
            let mut volumes = self.volumes.lock().await;
            let changed = volumes.change(&record.name, |record| {
                if record.role == RecordedRole::Standby {
                    record.follow(site);
                    record.successor.clear();
                }
            });
            if let Err(error) = changed {
                tracing::warn!(volume = %record.name, %error, "it is not recorded which site is primary");
            }
        }
        std::future::pending().await
    }

    /// A stream has ended. If its primary was refused because it branched before what this standby has, it is followed all the same where nothing
    /// is lost by it that anybody was promised, or that the operator has not looked at yet.
    pub(super) async fn meet_rival(&self, name: &VolumeName, site: &str, standby: &Arc<StandbyService>) {
        let Some(theirs) = standby.status().borrow().rival.clone() else { return };
        let Ok((record, _operation)) = self.begin(name).await else { return };
        // It may have gone over meanwhile: then another one is the standby here.
        let is_current = self.standby(name).await.is_ok_and(|current| Arc::ptr_eq(&current, standby));
        let (is_rival, keeps_old) = {
            let seen = standby.status();
            let seen = seen.borrow();
            (is_current && seen.rival.as_ref() == Some(&theirs), seen.kept_old.is_some())
        };
        let successor = lineage_records(&theirs);
        if !is_rival || record.role != RecordedRole::Standby || record.trial.is_some() || record.peer_at(site).is_none() {
            return;
        }
        let was_promised = record.peer.as_ref().is_none_or(|peer| rules(peer).wanted > Promise::Local);
        if was_promised || keeps_old {
            if record.successor == successor {
                return;
            }
            tracing::error!(volume = %name, "another site was promoted without what this standby has");
            if let Err(error) = self.volumes.lock().await.change(name, |record| record.successor = successor) {
                tracing::error!(volume = %name, %error, "it is not recorded that another site was promoted");
            }
            return;
        }
        match self.go_over(&record, site, &theirs, Discarded::Kept).await {
            Ok(_) => tracing::info!(volume = %name, site, "following the new primary: what changed here alone is compared, and kept"),
            Err(error) => tracing::error!(volume = %name, %error, "this standby cannot follow the new primary yet"),
        }
    }

    /// The operator gives up the recovery points that the new primary does not have.
    pub(super) async fn give_up_later_points(&self, record: VolumeRecord, request: &Resync) -> Outcome<Resynced> {
        let standby = self.standby(&record.name).await?;
        let (committed, mine, kept_old) = {
            let seen = standby.status();
            let seen = seen.borrow();
            (seen.committed, seen.lineage.clone(), seen.kept_old.is_some())
        };
        let theirs = lineage_of(&record.successor).ok_or_else(|| ApiError::new(ErrorCode::Internal, "catalogue: no proper successor"))?;
        let Some(Relation::TheirsAhead(branch)) = mine.map(|mine| mine.relation(&theirs)) else {
            return Err(wrong_state(format!("{} has followed another site meanwhile", record.name), "nothing is to be given up"));
        };
        if !request.discard_local {
            let message = format!("recovery points after {branch}, up to {committed}, are here and not at the new primary");
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--discard-local gives them up"));
        }
        if kept_old && !request.yes {
            let message = format!("{} keeps an older state already, and can keep one", record.name);
            return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--yes lets both go, for good"));
        }
        let discarded = if request.yes { Discarded::Gone } else { Discarded::Kept };
        let site = record.peer.as_ref().map(|peer| peer.site.clone()).unwrap_or_default();
        let (blocks, kept) = self.go_over(&record, &site, &theirs, discarded).await?;
        Ok(Resynced { blocks, bytes: blocks * BLOCK_BYTES as u64, kept })
    }

    /// Makes of a standby that is ahead one that stands where the new primary branched, but for the blocks that changed since; says how many,
    /// and whether what they were is kept.
    async fn go_over(&self, record: &VolumeRecord, site: &str, theirs: &Lineage, discarded: Discarded) -> Outcome<(u64, bool)> {
        let name = &record.name;
        let standby = self.standby(name).await?;
        self.end_any_drill(name).await;
        let gone_over = async {
            let settled = standby.settle().await.map_err(io_error)?;
            let stand = following::as_standby(&settled.lineage, &settled.base, &settled.history, &settled.damaged, theirs);
            let Some(Stand { committed, base, lineage }) = stand else {
                return Err(wrong_state(format!("{name} has followed another site meanwhile"), "look at `tern status`"));
            };
            let volume = self.volumes.lock().await.get(name)?.volume.clone();
            let cut_unix_ms = standby.status().borrow().cut_unix_ms.unwrap_or_else(unix_ms);
            let point = Point { epoch: settled.epoch, size_bytes: settled.size_bytes, cut_unix_ms, group: None };
            let (blocks, base) = match base {
                Base::PointBut(changed) => (changed.len(), Base::PointBut(coarse(changed, block_count(volume.size_bytes()) as u32))),
                unknown => (0, unknown),
            };
            // Epochs without content have nothing to be looked at.
            let is_worth_it = settled.base == Base::Point && (blocks > 0 || base == Base::Unfinished);
            let lost = if settled.damaged.is_empty() { "" } else { "this site's disk did not give them back as they came" };
            let lost = Lost { all: false, blocks: settled.damaged, why: lost.into() };
            let old = Some((point, lost)).filter(|_| discarded == Discarded::Kept && is_worth_it);
            let (follows, kept) = (Some(site.to_owned()), old.is_some());
            let copy = Copy { committed, base, lineage, follows, old };
            let part = self.volumes.lock().await.take_part(name);
            tokio::task::block_in_place(|| part.stop());
            self.volumes.lock().await.become_standby(&volume, name, copy, None)?;
            Ok((blocks, kept))
        };
        let done = gone_over.await;
        if done.is_err() {
            standby.resume();
            self.volumes.lock().await.restore(name);
        }
        done
    }

    /// Its primary says that every standby has this epoch.
    pub(super) async fn note_everywhere(&self, from: &str, volume: &str, epoch: Epoch) -> Outcome<()> {
        let volumes = self.volumes.lock().await;
        self.standby_of(from, volumes.by_id(volume)).map(|standby| standby.everywhere(epoch))
    }

    /// Tells the standbys of volumes that have several which epoch each has, until it is aborted: what changed before need not be remembered.
    pub(super) async fn tell_everywhere(self: Arc<Self>) {
        let mut told: HashMap<(String, String), Epoch> = HashMap::new();
        let mut due = tokio::time::interval(EVERYWHERE_INTERVAL);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let news = self.epochs_everywhere().await;
            told.retain(|key, _| news.iter().any(|(of, _)| of == key));
            for ((volume, site), epoch) in news {
                let key = (volume.clone(), site.clone());
                let Ok(to) = site.parse() else { continue };
                if told.get(&key) != Some(&epoch) {
                    let question = Question::Everywhere { volume, epoch };
                    let links = &self.sites.links;
                    if replicator::site_link::request::ask(links, &to, &question, EVERYWHERE_DEADLINE).await.is_ok() {
                        told.insert(key, epoch);
                    }
                }
            }
        }
    }

    /// For each standby that is attached, of volumes with several: the epoch that all of them have.
    async fn epochs_everywhere(&self) -> Vec<((String, String), Epoch)> {
        let volumes = self.volumes.lock().await;
        let mut news = Vec::new();
        for open in volumes.all() {
            let Part::Primary(primary) = &open.part else { continue };
            let seen: Vec<PrimaryStatus> = primary.replicas.iter().map(|part| part.replica.status().borrow().clone()).collect();
            let everywhere = seen.iter().map(PrimaryStatus::committed).min().unwrap_or(0);
            for (part, seen) in primary.replicas.iter().zip(&seen).filter(|_| seen.len() > 1) {
                if seen.phase == Phase::Online {
                    news.push(((open.record.id.clone(), part.site.clone()), everywhere));
                }
            }
        }
        news
    }
}
