//! What a link counted, and the document in which an emulator shows it.
//!
//! Every packet that entered a direction is in exactly one of: delivered, dropped (by queue, loss or cut), queued,
//! in flight. Bytes are IP bytes, headers included.

use serde::{Deserialize, Serialize};

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one packet of `len_bytes`.
    pub fn add(&mut self, len_bytes: u64) {
        self.packets += 1;
        self.bytes += len_bytes;
    }
}

/// Totals of one direction since the emulator started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Read from the sending device.
    pub sent: Tally,
    /// Handed to the receiving device.
    pub delivered: Tally,
    /// Found the queue full.
    pub dropped_queue: Tally,
    /// Occupied the link and were lost on it.
    pub dropped_loss: Tally,
    /// Sent, waiting or under way while the link was cut.
    pub dropped_cut: Tally,
    /// The most bytes that ever waited.
    pub queue_peak_bytes: u64,
    /// For how long the serialiser was at work; against the time passed, the share of the link in use.
    pub busy_ns: u64,
    /// By how much the emulator itself was late, at worst: what it cannot be trusted with.
    pub late_max_ns: u64,
}

/// One direction: its counters and what is in it now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Totals.
    #[serde(flatten)]
    pub counters: Counters,
    /// Bytes that wait for the serialiser.
    pub queue_bytes: u64,
    /// The drop-tail limit in force.
    pub queue_limit_bytes: u64,
    /// Bytes serialised and not yet delivered.
    pub in_flight_bytes: u64,
    /// Whether the direction is cut.
    pub cut: bool,
    /// Packets that the kernel dropped at the sending device because the emulator did not read in time.
    pub dropped_device_packets: u64,
    /// Packets that the receiving device refused.
    pub refused_device_packets: u64,
}

/// The answer to `stats`: one JSON line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nanoseconds since the relay started.
    pub uptime_ns: u64,
    /// `null` without a limit.
    pub rate_bits_per_second: Option<u64>,
    /// The configured round trip.
    pub rtt_ns: u64,
    /// Lost packets in a million.
    pub loss_ppm: u32,
    /// From namespace A to namespace B.
    pub a_to_b: LinkReport,
    /// From namespace B to namespace A.
    pub b_to_a: LinkReport,
}
