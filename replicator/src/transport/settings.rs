//! What is set about connections, and the numbers that QUIC is given for it.
//!
//! QUIC's own defaults fit 100 Mbit/s at 100 ms and stop at a fifth of that path with a little loss. Windows here follow the longest,
//! fattest path that is planned for: a stream may have twice the path's content in flight, a connection four times.

use super::congestion::Congestion;
use super::hello::VersionRange;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Streams that a peer may have open at once.
pub(crate) const MAX_STREAMS: u32 = 1024;

/// What a connection may send before its key was looked at: one hello.
pub(crate) const STRANGER_WINDOW_BYTES: u32 = 16 * 1024;

/// Smallest bound on what is written but not acknowledged.
pub(crate) const MIN_SEND_WINDOW_BYTES: u64 = 1024 * 1024;

/// Largest datagram on loopback: larger ones defeat segmentation offload.
const LOOPBACK_MTU: u16 = 6500;

/// The longest, fattest path that the windows must fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathPlan {
    /// Bits in a second.
    pub rate_bits: u64,
    /// There and back.
    pub round_trip_ms: u32,
}

impl PathPlan {
    /// What such a path holds, in bytes.
    pub fn content_bytes(self) -> u64 {
        (u128::from(self.rate_bits) * u128::from(self.round_trip_ms) / 8000).min(u128::from(u32::MAX)) as u64
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This site's name, told to peers.
    pub site_name: String,
    /// The daemon's name and version, told to peers.
    pub software: String,
    /// The protocol versions to offer.
    pub versions: VersionRange,
    /// The optional abilities to offer.
    pub features: u64,
    /// What the windows are made for.
    pub plan: PathPlan,
    /// How the sending rate is found.
    pub congestion: Congestion,
    /// An idle connection says that it lives.
    pub keep_alive: Duration,
    /// A peer that was silent for so long is gone.
    pub idle_timeout: Duration,
    /// A dialled connection is a link in this time or given up.
    pub dial_deadline: Duration,
    /// Largest UDP payload that is tried on a path (loopback aside).
    pub max_datagram_bytes: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            site_name: String::new(),
            software: concat!("tern ", env!("CARGO_PKG_VERSION")).to_owned(),
            versions: VersionRange::CURRENT,
            features: 0,
            plan: PathPlan { rate_bits: 500_000_000, round_trip_ms: 200 },
            congestion: Congestion::default(),
            keep_alive: Duration::from_millis(2500),
            idle_timeout: Duration::from_secs(10),
            dial_deadline: Duration::from_secs(8),
            max_datagram_bytes: 1452,
        }
    }
}

/// Which limits a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Its key was checked in the handshake: the full windows.
    Checked,
    /// Its key comes with the handshake: enough for a hello, until it was looked at.
    Stranger,
}

/// Whether packets got lost lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    /// None did.
    None,
    /// Some did.
    Some,
}

/// Where the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// On this host.
    Loopback,
    /// Elsewhere.
    Network,
}

impl Settings {
    /// The largest datagram that the endpoint takes.
    pub(crate) fn max_received_datagram_bytes(&self) -> u16 {
        self.max_datagram_bytes.max(LOOPBACK_MTU)
    }

    /// How much a connection may receive ahead of its readers.
    pub(crate) fn receive_window(&self) -> VarInt {
        var_int(4 * self.plan.content_bytes().max(MIN_SEND_WINDOW_BYTES))
    }

    /// How much is written ahead of the peer's acknowledgements on a path with this congestion window: near what the path takes, because a
    /// fixed window for the fattest path would be seconds of a thin one, and a commit would wait behind them. It counts from the first
    /// byte that is missing, so where packets get lost it must span the round trips until they were sent again.
    pub(crate) fn send_window(&self, congestion_window: u64, losses: Losses) -> u64 {
        let round_trips = match losses {
            Losses::None => 2,
            Losses::Some => 4,
        };
        congestion_window.saturating_mul(round_trips).clamp(MIN_SEND_WINDOW_BYTES, self.max_send_window())
    }

    /// The most that is written ahead of the peer's acknowledgements.
    fn max_send_window(&self) -> u64 {
        (4 * self.plan.content_bytes()).max(MIN_SEND_WINDOW_BYTES)
    }

    /// QUIC's numbers for one kind of connection.
    pub(crate) fn quic(&self, trust: Trust, reach: Reach) -> Arc<TransportConfig> {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(match reach {
            Reach::Loopback => self.max_datagram_bytes.max(LOOPBACK_MTU),
            Reach::Network => self.max_datagram_bytes,
        });
        let (receive_window, streams) = match trust {
            Trust::Checked => (self.receive_window(), MAX_STREAMS),
            Trust::Stranger => (VarInt::from_u32(STRANGER_WINDOW_BYTES), 1),
        };
        let mut quic = TransportConfig::default();
        quic.stream_receive_window(var_int(2 * self.plan.content_bytes().max(MIN_SEND_WINDOW_BYTES)))
            .receive_window(receive_window)
            .send_window(MIN_SEND_WINDOW_BYTES.min(self.max_send_window()))
            .max_concurrent_bidi_streams(VarInt::from_u32(streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            .mtu_discovery_config(Some(mtu))
            .congestion_controller_factory(self.congestion.factory());
        Arc::new(quic)
    }
}

fn var_int(bytes: u64) -> VarInt {
    VarInt::from_u32(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_the_plan() {
        let settings = Settings::default();
        assert_eq!(settings.plan.content_bytes(), 12_500_000);
        assert_eq!(settings.max_send_window(), 50_000_000);
        assert_eq!(settings.send_window(10_000_000, Losses::None), 20_000_000);
        assert_eq!(settings.send_window(10_000_000, Losses::Some), 40_000_000);
        assert_eq!(settings.send_window(1, Losses::None), MIN_SEND_WINDOW_BYTES);
        assert_eq!(settings.receive_window().into_inner(), 50_000_000);
    }

    #[test]
    fn a_tiny_or_absurd_plan_still_gives_windows() {
        let tiny = Settings { plan: PathPlan { rate_bits: 1, round_trip_ms: 1 }, ..Settings::default() };
        assert_eq!(tiny.max_send_window(), MIN_SEND_WINDOW_BYTES);
        let absurd = Settings { plan: PathPlan { rate_bits: u64::MAX, round_trip_ms: u32::MAX }, ..Settings::default() };
        assert_eq!(absurd.receive_window().into_inner(), u64::from(u32::MAX));
    }
}
