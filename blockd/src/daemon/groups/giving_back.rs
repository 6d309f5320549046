//! A promotion that came to nothing: what was handed over for it is primary again where it was.
//!
//! The site that asked forgets, durably, that it was granted a member before it gives that back; the one that granted it takes it back only for that
//! grant, and forgets the grant at any other question. So no member is primary twice, however late a question arrives.

use super::super::Daemon;
use super::super::handover::wrong_state;
use super::super::part::peer_site;
use super::GroupRecord;
use super::promotion::Left;
use crate::admin::Outcome;
use crate::catalogue::RecordedRole;
use blockd_api::*;
use replicator::site_link::request::{Answer, Question};
use std::time::Duration;

/// For the other site to serve a member again.
const TAKE_BACK_DEADLINE: Duration = Duration::from_secs(10);

/// What the other site got.
enum Given {
    Nothing,
    Back,
}

impl Daemon {
    /// No member is primary here: as far as it depends on this site, everything is as it was. The error with what the operator has to know.
    pub(super) async fn given_up(&self, group: &GroupRecord, left: &[Left], error: ApiError) -> ApiError {
        left.iter().for_each(|member| member.standby.resume());
        {
            let mut here = self.volumes.lock().await;
            if here.groups.get(&group.name).is_some_and(|group| group.record.promoting.is_some())
                && let Err(error) = here.change_group(&group.name, |record| record.promoting = None)
            {
                tracing::error!(group = %group.name, %error, "the end of a promotion cannot be recorded");
            }
        }
        let (mut unserved, mut served) = (Vec::new(), Vec::new());
        for name in left.iter().map(|member| &member.record.name) {
            match self.give_back(name).await {
                Ok(Given::Nothing) => {}
                Ok(Given::Back) => served.push(name.as_str()),
                Err(error) => {
                    tracing::warn!(group = %group.name, volume = %name, %error, "what was handed over is not taken back");
                    unserved.push(name.as_str());
                }
            }
        }
        if unserved.is_empty() && served.is_empty() {
            return error;
        }
        if unserved.is_empty() {
            let message = format!("{}; {} serves {} as before", error.message, group.peer, served.join(", "));
            return ApiError { message, ..error };
        }
        let hint = format!(
            "`tern promote {}` again, here or at {}, goes on: until then nobody serves {}",
            group.name,
            group.peer,
            unserved.join(", ")
        );
        let before = error.hint.as_ref().map_or(String::new(), |hint| format!("{hint}; then "));
        error.with_hint(format!("{before}{hint}"))
    }

    /// Has the other site be primary of a member again that it may have handed over to this one.
    async fn give_back(&self, name: &VolumeName) -> Outcome<Given> {
        let mut here = self.volumes.lock().await;
        let record = here.get(name)?.record.clone();
        let (Some(generation), Some(peer)) = (record.wanted_generation, record.peer) else { return Ok(Given::Nothing) };
        here.change(name, |record| record.wanted_generation = None)?;
        drop(here);
        let question = Question::TakeBack { volume: record.id, generation };
        match self.sites.ask(&peer_site(&peer)?, &peer.name, &question, TAKE_BACK_DEADLINE).await? {
            Answer::Done => Ok(Given::Back),
            Answer::Refused { message, .. } => Err(ApiError::new(ErrorCode::WrongState, message)),
            other => Err(ApiError::new(ErrorCode::Internal, format!("{} answered {other:?}", peer.name))),
        }
    }

    /// A site does not want what was granted to it.
    pub(in crate::daemon) async fn take_back(&self, from: &str, volume: &str, generation: &str) -> Outcome<Answer> {
        let unknown = || ApiError::new(ErrorCode::NotFound, "the volume is not replicated between these sites");
        let name = self.volumes.lock().await.by_id(volume).map(|open| open.record.name.clone()).ok_or_else(unknown)?;
        let (record, _operation) = self.begin(&name).await?;
        if record.peer.as_ref().is_none_or(|peer| peer.site != from) {
            return Err(unknown());
        }
        let granted = record.granted.filter(|granted| granted.generation == generation);
        match (record.role, granted) {
            (RecordedRole::Primary, _) if !record.fenced => Ok(Answer::Done),
            (RecordedRole::Standby, Some(granted)) if record.trial.is_none() => {
                let standby = self.standby(&name).await?;
                self.settle_or_restore(&name, &standby, None, Some(granted.epoch), PromotionKind::Handover).await?;
                tracing::info!(volume = %name, epoch = granted.epoch, "primary again: the handover came to nothing");
                Ok(Answer::Done)
            }
            _ => Err(wrong_state(format!("{name} was not handed over, or is fenced"), "`tern status` says how it stands")),
        }
    }
}
