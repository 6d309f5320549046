//! Changing when requests are acknowledged, while the volume is in use.

use super::Daemon;
use super::handover::wrong_state;
use super::part::{Part, orders, rules};
use super::settings::{asked, nothing_for};
use super::standbys::standby_named;
use super::status;
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, RecordedRole};
use blockd_api::*;
use replicator::primary::Orders;
use replicator_engine::acknowledgement::{Promise, Rules};
use std::time::Duration;

/// For another mode to be in force where it asks for less, and to be seen where it asks for more.
const CHANGE_DEADLINE: Duration = Duration::from_secs(5);

impl Daemon {
    /// Returns once a weaker mode is in force; a stronger one is caught up with behind the answer.
    pub(super) async fn change_mode(&self, name: &VolumeName, request: &SetMode) -> Outcome<VolumeStatus> {
        let (record, _operation) = self.begin(name).await?;
        if record.role != RecordedRole::Primary {
            return Err(wrong_state(format!("{name} is not replicated from here"), "change the mode at its primary"));
        }
        let peer = standby_named(&record, request.to.as_ref())?.clone();
        let wanted = Replicate { mode: Some(request.mode), schedule: request.schedule.clone(), ..nothing_for(peer.name.clone()) };
        let peer = asked(&wanted, peer)?;
        self.check_settings_in_group(name, &peer).await?;
        self.change_peer(name, &peer).await?;
        self.obey(name, &peer, rules(&peer)).await?;
        self.settings_heard(name).await;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// The operator ends replication: whoever waits for the standby need not any more.
    pub(super) async fn promise_nothing(&self, name: &VolumeName, peer: &PeerRecord) -> Outcome<()> {
        self.obey(name, peer, Rules { wanted: Promise::Local, ..rules(peer) }).await
    }

    /// Has the replica follow these rules, and waits a little for it.
    async fn obey(&self, name: &VolumeName, peer: &PeerRecord, rules: Rules) -> Outcome<()> {
        let found = match &self.volumes.lock().await.get(name)?.part {
            Part::Primary(primary) => primary.to(&peer.site).map(|part| part.replica.clone()),
            _ => None,
        };
        // It follows what is recorded when it begins.
        let Some(replica) = found else { return Ok(()) };
        replica.set_orders(Orders { rules, ..orders(peer) });
        let mut seen = replica.status();
        let follows = seen.wait_for(|seen| seen.promise.wanted == rules.wanted && seen.promise.in_force <= rules.wanted);
        // Where the record of a promise cannot be lowered, requests wait, and the status says so.
        let _ = tokio::time::timeout(CHANGE_DEADLINE, follows).await;
        Ok(())
    }
}
