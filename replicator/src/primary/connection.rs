//! Keeps a stream to the standby: opens one whenever there is a link, moves frames, opens another when it ends.

use super::{Input, Outgoing, Replica, Session};
use crate::counters::Counters;
use crate::identity::SiteId;
use crate::site_link::{self, Throttle};
use crate::transport::{Link, Links, StreamError, WireMeter};
use replicator_engine::generation::Id;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// From the end of one stream to the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// The same, if the standby refused: until it has room, or somebody decides.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// Answers of the standby that wait for the thread: then its stream waits.
const MAX_WAITING_ANSWERS: usize = 64;

/// Where a replica's stream goes.
pub struct Route {
    /// The links to all sites.
    pub links: Arc<Links>,
    /// The standby's site.
    pub site: SiteId,
    /// The volume.
    pub volume: Id,
    /// Most that may be sent, in bits per second.
    pub bandwidth: watch::Receiver<Option<u64>>,
    /// The volume's totals.
    pub counters: Arc<Counters>,
}

impl Replica {
    /// Keeps the replica connected, for as long as it is polled.
    pub async fn keep_connected(&self, route: Route) {
        let mut links = route.links.changed();
        loop {
            let link = loop {
                match route.links.get(&route.site) {
                    Some(link) => break link,
                    None if links.changed().await.is_err() => return,
                    None => {}
                }
            };
            if let Err(error) = self.serve(&link, &route).await {
                tracing::debug!(volume = %route.volume, site = %route.site, %error, "the replication stream ended");
            }
            let refused = self.status.borrow().refused.is_some();
            tokio::select! {
                () = tokio::time::sleep(if refused { REFUSED_RETRY } else { RETRY }) => {}
                // Another link is another chance.
                _ = route.links.another(&link) => {}
            }
        }
    }

    /// One stream, from its beginning to its end.
    async fn serve(&self, link: &Link, route: &Route) -> Result<(), StreamError> {
        let (mut send, mut recv) = link.open(site_link::REPLICATION, &route.volume.0).await?;
        let session: Session = self.sessions.fetch_add(1, Relaxed);
        let (sink, mut frames) = mpsc::unbounded_channel::<Outgoing>();
        let meter = WireMeter::new(link);
        let waiting = Arc::new(Semaphore::new(MAX_WAITING_ANSWERS));
        self.tell(Input::Connected(session, sink));
        let write = async {
            let mut throttle = Throttle::new();
            while let Some(Outgoing { frame, payload_bytes }) = frames.recv().await {
                let len_bytes = frame.len();
                let rate = *route.bandwidth.borrow();
                throttle.pass(len_bytes, rate).await;
                send.send(frame).await?;
                meter.sent(len_bytes);
                if payload_bytes > 0 {
                    self.tell(Input::Written(session, payload_bytes, link.stats().round_trip));
                }
            }
            Ok(())
        };
        let read = async {
            while let Some(frame) = recv.recv().await? {
                meter.received(frame.len());
                let Ok(place) = waiting.clone().acquire_owned().await else { break };
                self.tell(Input::Frame(session, frame, place));
            }
            Ok(())
        };
        let ended = tokio::select! {
            ended = write => ended,
            ended = read => ended,
            () = site_link::account(&meter, &route.counters) => Ok(()),
        };
        self.tell(Input::Disconnected(session));
        site_link::account_once(&meter, &route.counters);
        ended
    }
}
