//! Dials one peer whenever there is no link to it.

use super::super::backoff::Backoff;
use super::super::endpoint::Transport;
use super::super::link::Link;
use super::Table;
use crate::identity::SiteId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::debug;

/// The site with the higher id lets the other one dial first, so that links seldom cross.
const COURTESY: Duration = Duration::from_millis(500);

/// Addresses that a name may lead to.
const MAX_RESOLVED: usize = 8;

/// Runs until it is aborted.
pub(super) async fn keep(table: Arc<Table>, transport: Transport, peer: SiteId, seed: u64) {
    let salt = peer.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let mut backoff = Backoff::new(seed ^ salt);
    let mut wait = if table.site < peer { Duration::ZERO } else { COURTESY };
    loop {
        let link = match link_within(&table, &peer, wait).await {
            Some(link) => link,
            None => {
                if let Err(reason) = dial(&table, &transport, peer).await {
                    table.failed(peer, reason);
                }
                match table.live(&peer) {
                    Some(link) => link,
                    None => {
                        wait = backoff.next_wait();
                        continue;
                    }
                }
            }
        };
        let up_since = Instant::now();
        link.closed().await;
        drop(link);
        // A link that ends at once, again and again, is no success.
        if up_since.elapsed() > Backoff::LONGEST {
            backoff.reset();
        }
        wait = backoff.next_wait();
    }
}

/// The peer's link, if there is one in this time.
async fn link_within(table: &Table, peer: &SiteId, wait: Duration) -> Option<Link> {
    let mut links = table.links.subscribe();
    let live = links.wait_for(|links| links.get(peer).is_some_and(Link::is_live));
    let found = tokio::time::timeout(wait, live).await.ok()?.ok()?;
    found.get(peer).cloned()
}

/// Tries the peer's addresses in their order.
async fn dial(table: &Arc<Table>, transport: &Transport, peer: SiteId) -> Result<(), String> {
    let addresses = table.book.find(&peer).map(|peer| peer.addresses).unwrap_or_default();
    let mut failures = Vec::new();
    for address in &addresses {
        let resolved = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved,
            Err(error) => {
                failures.push(format!("{address}: {error}"));
                continue;
            }
        };
        for resolved in resolved.take(MAX_RESOLVED) {
            match transport.dial(resolved, peer).await {
                Ok(link) => {
                    table.adopt(link);
                    return Ok(());
                }
                Err(error) => {
                    debug!(site = %peer, %error, "dialling failed");
                    failures.push(error.to_string());
                }
            }
        }
    }
    if failures.is_empty() {
        return Err("no address is known: only the peer can connect".to_owned());
    }
    Err(failures.join("; "))
}
