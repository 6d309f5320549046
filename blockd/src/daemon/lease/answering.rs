//! Questions of other sites about leases.

use super::Duty;
use crate::catalogue::RecordedRole;
use crate::daemon::Daemon;
use replicator::site_link::lease::{CandidacyRecord, LeaseRequest};
use replicator::site_link::request::{Answer, GenerationRecord, lineage_of};
use replicator_engine::generation::Relation;
use replicator_engine::lease::Answer as Decided;

impl Daemon {
    /// A primary asks for a lease: of its standby, or of a witness.
    pub(in crate::daemon) async fn grant(&self, from: &str, asked: &LeaseRequest) -> Result<Answer, String> {
        if self.grants.duty() == Duty::Data {
            let volumes = self.volumes.lock().await;
            let record = volumes.by_id(&asked.volume).map(|open| &open.record);
            let shared = record.filter(|record| record.peer_at(from).is_some());
            let record = shared.ok_or("this site is not the volume's standby, and no witness: `blockd --witness` makes it one")?;
            match (record.role, lineage_of(&record.lineage), lineage_of(&asked.lineage)) {
                (RecordedRole::Standby, ..) if record.trial.is_some() => return Err("this site is promoted on trial".into()),
                (RecordedRole::Standby, ..) => {}
                (RecordedRole::Primary, Some(mine), Some(theirs)) if matches!(mine.relation(&theirs), Relation::MineAhead(_)) => {
                    return Ok(Decided::Overtaken(mine).into());
                }
                _ => return Err("this site is not the volume's standby now".into()),
            }
        }
        tokio::task::block_in_place(|| self.grants.lease(from, asked)).map(Answer::from)
    }

    /// A candidate asks for this witness's consent.
    pub(in crate::daemon) fn consent(
        &self,
        from: &str,
        volume: &str,
        lineage: &[GenerationRecord],
        candidacy: &CandidacyRecord,
    ) -> Result<Answer, String> {
        if self.grants.duty() != Duty::Witness {
            return Err("this site is no witness: `blockd --witness` makes it one".into());
        }
        let improper = || "the question has no proper lineage or generation".to_owned();
        let (lineage, candidacy) = (lineage_of(lineage).ok_or_else(improper)?, candidacy.decoded().ok_or_else(improper)?);
        tokio::task::block_in_place(|| self.grants.consent(from, volume, &lineage, candidacy)).map(Answer::from)
    }
}
