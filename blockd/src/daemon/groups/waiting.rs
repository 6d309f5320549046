//! Waiting for a group to get where the operator wants it.

use super::super::Daemon;
use super::no_group;
use super::status::status_of;
use crate::admin::{Outcome, ProgressSink};
use blockd_api::{Condition, GroupStatus, Progress, Role, State, VolumeName};
use std::time::Duration;

/// How often it is looked.
const WAIT_POLL: Duration = Duration::from_millis(50);

impl Daemon {
    pub(in crate::daemon) async fn wait_for_group(
        &self,
        name: &VolumeName,
        condition: Condition,
        progress: &ProgressSink,
    ) -> Outcome<GroupStatus> {
        let mut poll = tokio::time::interval(WAIT_POLL);
        loop {
            poll.tick().await;
            let seen = {
                let here = self.volumes.lock().await;
                status_of(&here, here.groups.get(name).ok_or_else(|| no_group(name))?)
            };
            let holds = match condition {
                Condition::InSync => seen.state == State::InSync,
                Condition::Primary => seen.role == Some(Role::Primary),
                Condition::Committed(number) => seen.point >= Some(number),
            };
            if holds {
                return Ok(seen);
            }
            progress.report(Progress::phase(seen.state.as_str()));
        }
    }
}
