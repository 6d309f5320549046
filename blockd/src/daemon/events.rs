//! Looks at all volumes, and tells what happened to them.

use super::{Daemon, proof, status};
use crate::events::{Event, Teller, Watch};
use blockd_api::{UtcTime, VolumeStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

impl Daemon {
    /// Until it is aborted.
    pub(super) async fn watch_events(self: Arc<Self>, teller: Arc<Teller>) {
        let mut watch = Watch::default();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let volumes = self.look().await;
            for (event, volume, message) in watch.see(&volumes, Instant::now()) {
                let Some(status) = volumes.iter().find(|status| status.name == volume) else { continue };
                let (site, status) = (self.site.to_string(), status.clone());
                teller.tell(&Event { event, time: UtcTime::now(), site, volume: volume.to_string(), message, status });
            }
        }
    }

    /// What is known here, without asking anybody else.
    async fn look(&self) -> Vec<VolumeStatus> {
        let volumes = self.volumes.lock().await;
        let seen = volumes.all().map(|open| {
            let mut seen = status::status(open);
            proof::add_verified(&mut seen, &*volumes.catalogue, &open.record.id);
            seen
        });
        seen.collect()
    }
}
