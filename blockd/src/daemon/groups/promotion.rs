//! Changing the primary of a group: all of its members, or none that cannot be gone on with.
//!
//! ```text
//!   every member: handed over? ──yes, all──► recorded: each goes on from its newest point ──► every member: primary
//!        └── one was not, and that is accepted ──► all stand still ──► recorded: the newest cut that all have ──┘
//! ```
//!
//! No member becomes primary before it is recorded where all of them go. Whatever fails behind that is gone on with by asking again: the members
//! that are left go where the others went.

use super::super::Daemon;
use super::super::handover::wrong_state;
use super::super::points::past_error;
use super::super::trial::not_on_trial;
use super::super::volumes::io_error;
use super::points::{GroupPoint, group_points, no_points, not_kept};
use super::record::Promoting;
use super::{GroupRecord, no_group};
use crate::admin::{Outcome, ProgressSink};
use crate::catalogue::{RecordedRole, VolumeRecord};
use blockd_api::*;
use replicator::site_link::request::{lineage_of, parse_id};
use replicator::standby::{PastError, StandbyService};
use replicator_engine::tracker::Epoch;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedMutexGuard;

/// A member that is to become primary.
pub(super) struct Left {
    pub record: VolumeRecord,
    pub standby: Arc<StandbyService>,
}

impl Left {
    /// This site handed it over, and nobody has gone on with it since.
    fn may_come_back(&self) -> bool {
        self.record.granted.as_ref().is_some_and(|granted| granted.epoch == self.standby.status().borrow().committed)
    }
}

/// What has become of those that are.
struct Gone {
    names: Vec<VolumeName>,
    /// Those that are once their fence is lifted.
    fenced: Vec<VolumeName>,
    epoch: Epoch,
    generation: u64,
    lost_bytes: Option<u64>,
    damaged_blocks: u64,
}

impl Gone {
    fn none() -> Self {
        Self { names: Vec::new(), fenced: Vec::new(), epoch: 0, generation: 0, lost_bytes: Some(0), damaged_blocks: 0 }
    }

    fn any(&self) -> Option<&VolumeName> {
        self.names.first().or(self.fenced.first())
    }

    fn add(&mut self, name: VolumeName, epoch: Epoch, generation: u64) {
        self.names.push(name);
        (self.epoch, self.generation) = (self.epoch.max(epoch), self.generation.max(generation));
    }
}

impl Daemon {
    pub(in crate::daemon) async fn promote_group(
        &self,
        group: &GroupRecord,
        request: &Promote,
        progress: &ProgressSink,
    ) -> Outcome<Promotion> {
        if request.trial.is_some() {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("{} is a group: only a volume is promoted on trial", group.name));
            return Err(error.with_hint("`tern drill` tries a recovery point of the whole group"));
        }
        let began = Instant::now();
        let (left, mut gone, _operations) = self.hold_members(group, request).await?;
        // Somebody else may have begun one, or ended it, before the members were held.
        let group = &self.group_named(&group.name).await.ok_or_else(|| no_group(&group.name))?;
        if left.is_empty() && group.promoting.is_none() && gone.fenced.is_empty() {
            return Err(wrong_state(format!("{} is primary here", group.name), "promote it at its standby"));
        }
        progress.report(Progress { phase: "handover".into(), done: 0, total: Some(2), unit: Unit::Steps });
        let promoting = match group.promoting.filter(|_| gone.any().is_some()) {
            Some(Promoting::To(number)) if !request.force => {
                let message = format!("a promotion of {} to recovery point {number} has begun, with {}", group.name, joined(&gone.names));
                return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force goes on with it"));
            }
            begun if left.is_empty() => begun.unwrap_or(Promoting::HandedOver),
            begun => match self.decide_and_record(group, &left, &gone, request, begun).await {
                Err(error) if begun.is_none() => return Err(self.given_up(group, &left, error).await),
                decided => decided?,
            },
        };
        progress.report(Progress { phase: "handover".into(), done: 1, total: Some(2), unit: Unit::Steps });
        self.promote_left(group, &left, &mut gone, (promoting, request, progress)).await?;
        self.volumes.lock().await.change_group(&group.name, |record| record.promoting = None)?;
        self.regrouped.notify_one();
        let (kind, epoch, lost_bytes) = match promoting {
            Promoting::HandedOver if left.is_empty() => (PromotionKind::Failover, gone.epoch, gone.lost_bytes),
            Promoting::HandedOver => (PromotionKind::Handover, gone.epoch, gone.lost_bytes),
            Promoting::To(number) => (PromotionKind::Failover, number, None),
        };
        tracing::info!(group = %group.name, ?kind, epoch, "promoted");
        let seconds = began.elapsed().as_secs_f64();
        Ok(Promotion { kind, epoch, generation: gone.generation, seconds, lost_bytes, damaged_blocks: gone.damaged_blocks })
    }

    /// Lets every member be primary here that is not.
    async fn promote_left(
        &self,
        group: &GroupRecord,
        left: &[Left],
        gone: &mut Gone,
        (promoting, request, progress): (Promoting, &Promote, &ProgressSink),
    ) -> Outcome<()> {
        for name in std::mem::take(&mut gone.fenced) {
            let lifted = self.take_over(&name, request, progress).await?;
            gone.lost_bytes = gone.lost_bytes.and(lifted.lost_bytes);
            gone.add(name, lifted.epoch, lifted.generation);
        }
        for member in left {
            let name = &member.record.name;
            gone.damaged_blocks += member.standby.status().borrow().health.as_ref().map_or(0, |health| health.damaged);
            match self.promote_member(group, member, promoting).await {
                Ok((epoch, generation)) => {
                    tracing::info!(group = %group.name, volume = %name, epoch, generation, "a member is promoted");
                    gone.add(name.clone(), epoch, generation);
                }
                Err(error) => return Err(self.stopped_at(group, left, name, error).await),
            }
        }
        Ok(())
    }

    /// A member could not be promoted: those that were go on, and if there are none, it is as it was.
    async fn stopped_at(&self, group: &GroupRecord, left: &[Left], name: &VolumeName, error: ApiError) -> ApiError {
        let primary: Vec<VolumeName> = {
            let here = self.volumes.lock().await;
            let of = here.members(group).unwrap_or_default();
            of.into_iter().filter(|open| open.record.role == RecordedRole::Primary).map(|open| open.record.name.clone()).collect()
        };
        if primary.is_empty() {
            let message = format!("no member of {} is primary here, as {name} could not be: {}", group.name, error.message);
            return self.given_up(group, left, ApiError { message, ..error }).await;
        }
        let message = format!("{} of {} is primary here, {name} is not: {}", joined(&primary), group.name, error.message);
        ApiError { message, ..error }.with_hint("the same command again goes on with the members that are left")
    }

    /// Has every member to itself; which of them are left. Members that both sites took for theirs are decided one by one.
    async fn hold_members(&self, group: &GroupRecord, request: &Promote) -> Outcome<(Vec<Left>, Gone, Vec<OwnedMutexGuard<()>>)> {
        let mut names = self.member_names(group).await?;
        // In the same order, whoever holds several.
        names.sort();
        let (mut left, mut gone, mut operations) = (Vec::new(), Gone::none(), Vec::new());
        for name in names {
            let (record, operation) = self.begin(&name).await?;
            match record.role {
                RecordedRole::Standby => {
                    not_on_trial(&record)?;
                    let standby = self.standby(&name).await?;
                    if !standby.status().borrow().has_point {
                        let message = format!("{name} has no recovery point here: its first sync has not ended");
                        return Err(wrong_state(message, "at the primary, `tern wait --for in-sync`"));
                    }
                    left.push(Left { record, standby });
                    operations.push(operation);
                }
                RecordedRole::Primary if !record.fenced => {
                    gone.add(name, 0, lineage_of(&record.lineage).map_or(0, |lineage| lineage.current().counter));
                    operations.push(operation);
                }
                RecordedRole::Primary | RecordedRole::SplitBrain if request.force && request.at.is_none() => gone.fenced.push(name),
                _ => {
                    let role = format!("{name} is {} here", if record.fenced { "fenced" } else { "stale" });
                    return Err(wrong_state(role, "--force goes on with what is fenced; `tern resync` makes a standby of what is stale"));
                }
            }
        }
        if group.promoting.is_none()
            && let Some(here) = gone.any()
            && let Some(there) = left.iter().find(|member| request.at.is_some() || !member.may_come_back())
        {
            return Err(apart(group, here, &there.record.name));
        }
        Ok((left, gone, operations))
    }

    /// Where all of the members go: where those went that are gone already, if there are any. Durable on return.
    async fn decide_and_record(
        &self,
        group: &GroupRecord,
        left: &[Left],
        gone: &Gone,
        request: &Promote,
        begun: Option<Promoting>,
    ) -> Outcome<Promoting> {
        let promoting = match begun {
            None => self.decide(group, left, gone, request).await?,
            Some(Promoting::HandedOver) => Promoting::HandedOver,
            Some(to) => {
                self.stop_members(left).await?;
                to
            }
        };
        self.volumes.lock().await.change_group(&group.name, |record| record.promoting = Some(promoting))?;
        Ok(promoting)
    }

    /// Has the primary stop, if it can be reached, and the standbys stand still: from here on nothing is committed any more.
    async fn stop_members(&self, left: &[Left]) -> Outcome<()> {
        for member in left {
            self.fence_primary(&member.record, None).await?;
        }
        for member in left {
            member.standby.settle().await.map_err(io_error)?;
        }
        Ok(())
    }

    /// Where all of the members go. Nobody has become primary yet.
    async fn decide(&self, group: &GroupRecord, left: &[Left], gone: &Gone, request: &Promote) -> Outcome<Promoting> {
        let _kept = self.keep_all(&group.name).await?;
        if let Some(at) = request.at {
            let points = self.points_left(group, left).await?;
            let place = points.iter().position(|point| point.number == at).ok_or_else(|| not_kept(&group.name, at))?;
            if !request.force {
                let newer = points.len() - 1 - place;
                let message = format!(
                    "recovery point {at} instead of {} as it is now: {newer} newer ones, and what the primary has since, are given up",
                    group.name
                );
                return Err(ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that"));
            }
        } else if self.is_handed_over(left, request.force).await? {
            return Ok(Promoting::HandedOver);
        } else if let Some(here) = gone.any() {
            return Err(apart(group, here, &left[0].record.name));
        }
        self.stop_members(left).await?;
        let points = self.points_left(group, left).await?;
        match request.at {
            Some(at) if points.iter().any(|point| point.number == at) => Ok(Promoting::To(at)),
            Some(at) => Err(not_kept(&group.name, at)),
            None => points.last().map(|point| Promoting::To(point.number)).ok_or_else(|| no_points(&group.name)),
        }
    }

    /// Asks the primary to step down from every member; whether it did from all. If not, and that is accepted, some are handed over for nothing.
    async fn is_handed_over(&self, left: &[Left], force: bool) -> Outcome<bool> {
        let mut done = Vec::new();
        for member in left {
            let name = &member.record.name;
            let granted = match self.ask_for_handover(&member.record, &member.standby, force).await {
                Err(error) if !done.is_empty() => {
                    let message = format!("{} would be handed over, but not {name}: {}", joined(&done), error.message);
                    return Err(ApiError { message, ..error });
                }
                granted => granted?,
            };
            let Some(epoch) = granted else { return Ok(false) };
            let mine = member.standby.status().borrow().committed;
            if epoch != mine {
                let message = format!("{name} was handed over at recovery point {epoch}, but this copy stands at {mine}");
                let error = ApiError::new(ErrorCode::WouldLoseData, message).with_hint("--force accepts that");
                return if force { Ok(false) } else { Err(error) };
            }
            done.push(name.clone());
        }
        Ok(true)
    }

    async fn points_left(&self, group: &GroupRecord, left: &[Left]) -> Outcome<Vec<GroupPoint>> {
        let id = parse_id(&group.id).ok_or_else(|| no_group(&group.name))?;
        let members: Vec<_> = left.iter().map(|member| (member.record.name.clone(), member.standby.clone())).collect();
        group_points(id, &members).await
    }

    async fn promote_member(&self, group: &GroupRecord, member: &Left, promoting: Promoting) -> Outcome<(Epoch, u64)> {
        let (name, standby) = (&member.record.name, &member.standby);
        let (older, how) = match promoting {
            Promoting::HandedOver => (None, PromotionKind::Handover),
            Promoting::To(number) => {
                // Those that went before have no points any more.
                let points = self.points_left(group, std::slice::from_ref(member)).await?;
                let of_cut = points.iter().find(|point| point.number == number);
                let part = of_cut.and_then(|point| point.parts.first()).ok_or_else(|| past_error(PastError::NotKept(number)))?;
                (Some(part.point.epoch), PromotionKind::Failover)
            }
        };
        let promoted = self.settle_or_restore(name, standby, older, None, how).await?;
        if how == PromotionKind::Failover {
            self.note_parted(name, None).await;
        }
        Ok(promoted)
    }
}

fn joined(names: &[VolumeName]) -> String {
    names.iter().map(VolumeName::as_str).collect::<Vec<_>>().join(", ")
}

/// Both sites have members that are primary, and no promotion says why.
fn apart(group: &GroupRecord, here: &VolumeName, there: &VolumeName) -> ApiError {
    let hint = format!("hand {here} back at the other site, or `tern group delete {}` and promote each by itself", group.name);
    wrong_state(format!("{here} is primary here, and {there} is not"), &hint)
}
