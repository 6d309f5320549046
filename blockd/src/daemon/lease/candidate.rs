//! The standbys of this site that may be promoted without the operator.

use super::keeper::ask;
use crate::admin::Outcome;
use crate::catalogue::RecordedRole;
use crate::daemon::Daemon;
use crate::daemon::part::Part;
use crate::daemon::volumes::{io_error, random_id};
use blockd_api::{PromotionKind, VolumeName};
use replicator::site_link::lease::consent_of;
use replicator::site_link::request::{Answer, Question, lineage_records};
use replicator_engine::lease::{Candidacy, Step};
use std::sync::Arc;
use std::time::Duration;

/// How often each standby is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// For the witness to answer.
const WITNESS_DEADLINE: Duration = Duration::from_secs(2);

impl Daemon {
    /// Serves until it is aborted.
    pub(in crate::daemon) async fn watch_standbys(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            for (name, id) in self.candidates().await {
                if let Some(step) = self.grants.poll(&id) {
                    tokio::spawn(self.clone().take_step(name, id, step));
                }
            }
        }
    }

    /// Standbys that have a recovery point.
    async fn candidates(&self) -> Vec<(VolumeName, String)> {
        let volumes = self.volumes.lock().await;
        let mut candidates = Vec::new();
        for open in volumes.all() {
            match &open.part {
                Part::Standby(standby) if standby.status().borrow().has_point => {
                    candidates.push((open.record.name.clone(), open.record.id.clone()));
                }
                _ => self.grants.not_standby(&open.record.id),
            }
        }
        candidates
    }

    async fn take_step(self: Arc<Self>, name: VolumeName, id: String, step: Step) {
        let taken = match step {
            Step::Stand => {
                tracing::warn!(volume = %name, "the primary has not been heard for too long: standing for promotion");
                random_id().and_then(|generation| tokio::task::block_in_place(|| self.grants.stand(&id, generation)).map_err(io_error))
            }
            Step::Withdraw => {
                tracing::info!(volume = %name, "the primary is there: not standing for promotion any more");
                tokio::task::block_in_place(|| self.grants.withdraw(&id)).map_err(io_error)
            }
            Step::AskWitness(candidacy) => {
                self.ask_witness(&name, &id, candidacy).await;
                Ok(())
            }
            Step::Release(term) => {
                let question = Question::Withdraw { volume: id.clone(), term };
                match self.question_witness(&id, &question).await {
                    Some(Answer::Done) => tokio::task::block_in_place(|| self.grants.released(&id, term)).map_err(io_error),
                    _ => Ok(()),
                }
            }
            Step::Promote(candidacy) => self.promote_unattended(&name, candidacy).await,
        };
        if let Err(error) = taken {
            tracing::error!(volume = %name, %error, ?step, "automatic promotion: a step failed; it is tried again");
        }
        self.grants.taken(&id);
    }

    async fn question_witness(&self, id: &str, question: &Question) -> Option<Answer> {
        let witness = self.grants.terms(id)?.witness?;
        ask(&self.sites.links, &witness.site, question, WITNESS_DEADLINE).await
    }

    async fn ask_witness(&self, name: &VolumeName, id: &str, candidacy: Candidacy) {
        let Some(lineage) = self.grants.lineage(id) else { return };
        let question = Question::Consent { volume: id.to_owned(), lineage: lineage_records(&lineage), candidacy: candidacy.into() };
        let answer = self.question_witness(id, &question).await;
        if let Some(answer) = answer.and_then(|answer| consent_of(answer, &lineage)) {
            match &answer {
                Ok(()) => tracing::info!(volume = %name, term = candidacy.term, "the witness agrees to the promotion"),
                // Again and again; the status says so.
                Err(why) => tracing::debug!(volume = %name, ?why, term = candidacy.term, "the witness does not agree"),
            }
            self.grants.answered(id, candidacy, answer);
        }
    }

    /// Nobody asked for it, and nobody acknowledges any more: a failover to the last recovery point.
    async fn promote_unattended(&self, name: &VolumeName, candidacy: Candidacy) -> Outcome<()> {
        let (record, _operation) = self.begin(name).await?;
        if record.role != RecordedRole::Standby {
            return Ok(());
        }
        let standby = self.standby(name).await?;
        self.volumes.lock().await.change(name, |record| record.wanted_generation = Some(candidacy.generation.to_string()))?;
        let common_unix_ms = standby.status().borrow().cut_unix_ms;
        let (epoch, generation) = self.settle_or_restore(name, &standby, None, None, PromotionKind::Failover).await?;
        self.note_parted(name, common_unix_ms).await;
        tracing::error!(volume = %name, epoch, generation, "promoted without the operator: the primary is gone, and the witness agreed");
        Ok(())
    }
}
