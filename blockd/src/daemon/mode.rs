//! When requests are acknowledged: what the operator may ask for, and changing it while the volume is in use.

use super::Daemon;
use super::handover::wrong_state;
use super::part::{Part, rules, settings};
use super::status;
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, RecordedRole};
use blockd_api::*;
use replicator_engine::acknowledgement::{Promise, Rules};
use std::time::Duration;

/// A guest's disk should not hang for longer than an operator would.
const ACK_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
/// For another mode to be in force where it asks for less, and to be seen where it asks for more.
const CHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// What was asked for, checked.
pub(super) struct Acknowledgement {
    mode: Mode,
    on_disconnect: Option<OnDisconnect>,
    ack_timeout_ms: Option<u64>,
}

impl Acknowledgement {
    pub fn of(request: &Replicate) -> Outcome<Self> {
        let (mode, on_disconnect) = (check_mode(request.mode)?, request.on_disconnect);
        if mode == Mode::Async && on_disconnect.is_some_and(|choice| choice != OnDisconnect::Continue) {
            let error = ApiError::new(ErrorCode::InvalidRequest, "in mode async no request waits for the standby");
            return Err(error.with_hint("--mode barrier or --mode sync, or leave --on-disconnect out"));
        }
        let ack_timeout_ms = request.ack_timeout.map(|span| span.duration().as_millis() as u64);
        if let Some(ms) = ack_timeout_ms.filter(|ms| !ACK_TIMEOUT_MS.contains(ms)) {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("a request cannot wait for {ms} ms"));
            return Err(error.with_hint("give --ack-timeout 100ms or more, and 10m or less"));
        }
        Ok(Self { mode, on_disconnect, ack_timeout_ms })
    }

    pub fn recorded_in(self, peer: PeerRecord) -> PeerRecord {
        let Self { mode, on_disconnect, ack_timeout_ms } = self;
        PeerRecord { mode, on_disconnect, ack_timeout_ms, ..peer }
    }
}

fn check_mode(mode: Mode) -> Outcome<Mode> {
    if mode != Mode::Snapshot {
        return Ok(mode);
    }
    Err(ApiError::new(ErrorCode::NotSupported, format!("this version does not have mode {mode}")).with_hint("use async, barrier or sync"))
}

impl Daemon {
    /// Returns once a weaker mode is in force; a stronger one is caught up with behind the answer.
    pub(super) async fn change_mode(&self, name: &VolumeName, request: &SetMode) -> Outcome<VolumeStatus> {
        let mode = check_mode(request.mode)?;
        let (record, _operation) = self.begin(name).await?;
        let Some(peer) = record.peer.filter(|_| record.role == RecordedRole::Primary) else {
            return Err(wrong_state(format!("{name} is not replicated from here"), "change the mode at its primary"));
        };
        if let Some(to) = request.to.as_ref().filter(|to| **to != peer.name) {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not replicated to {to}, but to {}", peer.name)));
        }
        let peer = PeerRecord { mode, ..peer };
        self.volumes.lock().await.change(name, |record| record.peer = Some(peer.clone()))?;
        self.obey(name, &peer, rules(&peer)).await?;
        self.volumes.lock().await.get(name).map(status::status)
    }

    /// The operator ends replication: whoever waits for the standby need not any more.
    pub(super) async fn promise_nothing(&self, name: &VolumeName, peer: &PeerRecord) -> Outcome<()> {
        self.obey(name, peer, Rules { wanted: Promise::Local, ..rules(peer) }).await
    }

    /// Has the replica follow these rules, and waits a little for it.
    async fn obey(&self, name: &VolumeName, peer: &PeerRecord, rules: Rules) -> Outcome<()> {
        let replica = match &self.volumes.lock().await.get(name)?.part {
            Part::Primary(primary) => primary.replica.clone(),
            // It follows what is recorded when it begins.
            _ => return Ok(()),
        };
        replica.set_settings(settings(peer), rules);
        let mut seen = replica.status();
        let follows = seen.wait_for(|seen| seen.promise.wanted == rules.wanted && seen.promise.in_force <= rules.wanted);
        // Where the record of a promise cannot be lowered, requests wait, and the status says so.
        let _ = tokio::time::timeout(CHANGE_DEADLINE, follows).await;
        Ok(())
    }
}
