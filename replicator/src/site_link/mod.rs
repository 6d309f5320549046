//! The streams between two sites.
//!
//! - [`REPLICATION`]: the primary opens one for each volume; its header is the volume's id. What travels is the engine's messages.
//! - [`REQUEST`]: one question and one answer, see [`request`]; those about leases in [`lease`].

pub mod forecast;
pub mod lease;
pub mod request;
mod throttle;

pub(crate) use throttle::Throttle;

use crate::counters::{self, Counters};
use crate::transport::{StreamKind, WireMeter};
use replicator_engine::generation::Id;
use std::time::Duration;

/// A replication stream.
pub const REPLICATION: StreamKind = StreamKind(2);
/// A question and its answer.
pub const REQUEST: StreamKind = StreamKind(1);

/// How often a stream's bytes are added to the volume's totals.
const METER_INTERVAL: Duration = Duration::from_millis(500);

/// The volume that a replication stream's header names.
pub fn volume_of(header: &[u8]) -> Option<Id> {
    header.try_into().ok().map(Id)
}

/// Adds what a stream costs to the volume's totals, for as long as it is polled.
pub(crate) async fn account(meter: &WireMeter, counters: &Counters) {
    loop {
        tokio::time::sleep(METER_INTERVAL).await;
        account_once(meter, counters);
    }
}

pub(crate) fn account_once(meter: &WireMeter, counters: &Counters) {
    let (sent, received) = meter.take();
    counters::add(&counters.wire_bytes_sent, sent);
    counters::add(&counters.wire_bytes_received, received);
}
