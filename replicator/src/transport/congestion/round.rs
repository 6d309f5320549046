//! What is counted in a round: from one moment until the last packet that was sent before it is acknowledged.

use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub(super) struct Round {
    began: Instant,
    /// The last packet that was sent when the round began.
    ends_with: u64,
    last_sent: u64,
    acknowledged_bytes: u64,
    lost_bytes: u64,
    first_sent_at: Option<Instant>,
    last_sent_at: Option<Instant>,
    shortest_round_trip: Duration,
    app_limited: bool,
}

/// What came of a round.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// Bytes a second that arrived.
    pub(super) rate: f64,
    /// Share of the bytes that got lost.
    pub(super) loss: f64,
    lost_bytes: u64,
    pub(super) shortest_round_trip: Duration,
    /// The sender had nothing more to send: the path may deliver more.
    pub(super) app_limited: bool,
}

impl Round {
    pub(super) fn new(now: Instant) -> Self {
        Self::after(now, 0)
    }

    fn after(now: Instant, last_sent: u64) -> Self {
        Self {
            began: now,
            ends_with: last_sent,
            last_sent,
            acknowledged_bytes: 0,
            lost_bytes: 0,
            first_sent_at: None,
            last_sent_at: None,
            shortest_round_trip: Duration::MAX,
            app_limited: false,
        }
    }

    pub(super) fn sent(&mut self, _: u64, packet_number: u64) {
        self.last_sent = packet_number;
    }

    pub(super) fn acknowledged(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        self.acknowledged_bytes += bytes;
        self.first_sent_at = Some(self.first_sent_at.map_or(sent, |first| first.min(sent)));
        self.last_sent_at = Some(self.last_sent_at.map_or(sent, |last| last.max(sent)));
        self.shortest_round_trip = self.shortest_round_trip.min(now.saturating_duration_since(sent));
        self.app_limited |= app_limited;
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost_bytes += bytes;
    }

    /// Ends the round if the acknowledgements have come so far, and begins the next.
    pub(super) fn end(&mut self, now: Instant, largest_acknowledged: Option<u64>) -> Option<Summary> {
        if largest_acknowledged.is_none_or(|largest| largest < self.ends_with) || self.acknowledged_bytes == 0 {
            return None;
        }
        let ended = std::mem::replace(self, Self::after(now, self.last_sent));
        let sending = ended.last_sent_at.zip(ended.first_sent_at).map_or(Duration::ZERO, |(last, first)| last - first);
        // Acknowledgements that were held up arrive in a burst: no faster than the packets were sent.
        let took = now.saturating_duration_since(ended.began).max(sending).max(Duration::from_micros(10));
        Some(Summary {
            rate: ended.acknowledged_bytes as f64 / took.as_secs_f64(),
            loss: ended.lost_bytes as f64 / (ended.acknowledged_bytes + ended.lost_bytes) as f64,
            lost_bytes: ended.lost_bytes,
            shortest_round_trip: ended.shortest_round_trip,
            app_limited: ended.app_limited,
        })
    }
}

impl Summary {
    pub(super) fn lost_packets(&self, mtu: u64) -> u64 {
        self.lost_bytes / mtu
    }
}
