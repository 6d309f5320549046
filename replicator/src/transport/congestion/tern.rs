//! A congestion controller for replication over long paths: sends as much as the path delivers, and now and then a little more to find out
//! whether it delivers more.
//!
//! A loss alone is no reason to slow down (at 0.1 % loss and 27 ms CUBIC gets a fifth of 85 Mbit/s), and a short queue is no reason to send
//! everything one and a half times (as QUIC's BBR does). What counts is measured once a round trip: the rate that was acknowledged, the
//! shortest round trip, and what got lost beyond what usually does. The window is `gain × rate × shortest round trip`, and a few
//! milliseconds' worth for timers and acknowledgements that come late.
//!
//! ```text
//!   Startup ── delay grows, or rate does not, or losses ──► Drain ──► Cruise × 6 ──► Probe ──► Settle ──► Cruise …
//!   window × 2, later × 1.5 a round                        gain 0.85   gain 1        gain ≤ 1.25  gain 1
//! ```
//!
//! The packets of a round are acknowledged in the next one, so a probe is judged after the round that follows it: a higher rate makes
//! another probe follow at once, losses make the next one gentler. Every few seconds a drain takes a cruise's place: it empties the queue
//! that the window's slack keeps up, so that the shortest round trip stays that of the path.

use super::filters::{RateFilter, RoundTripFilter};
use super::round::{Round, Summary};
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a connection begins with, as QUIC's other controllers do.
const INITIAL_WINDOW_BYTES: u64 = 14_720;

/// Packets that may always be in flight.
const MIN_WINDOW_PACKETS: u64 = 4;

/// The window doubles from round to round up to here; then it grows by half, because a fat path's last step is all overshoot.
const DOUBLING_BELOW_BYTES: u64 = 1024 * 1024;

/// What the window holds beyond the path: timers fire late by a millisecond, packets leave in bursts of two.
const SLACK: Duration = Duration::from_millis(3);

/// Startup ends when round trips are longer than the shortest by an eighth and at least this.
const DELAY_STEP: Duration = Duration::from_millis(4);

/// Startup ends after this many rounds whose rate did not grow by [`STARTUP_GROWTH`].
const STARTUP_FLAT_ROUNDS: u32 = 3;
const STARTUP_GROWTH: f64 = 1.15;

const DRAIN_GAIN: f64 = 0.85;
/// From one drain to the next: well within the time that a shortest round trip is remembered for.
const DRAIN_INTERVAL: Duration = Duration::from_secs(5);
const CRUISE_ROUNDS: u32 = 6;
const MAX_PROBE_GAIN: f64 = 1.25;
const MIN_PROBE_GAIN: f64 = 1.03;
/// A probe that lost nothing lets the next one be bolder by this.
const PROBE_GAIN_STEP: f64 = 0.02;
/// A probe that found this much more is followed by another.
const PROBE_SUCCESS: f64 = 1.08;

/// Losses beyond the usual share count from here on, and at least so many packets.
const LOSS_STEP: f64 = 0.02;
const MIN_LOST_PACKETS: u64 = 8;
/// From here on the path has become slower: what it delivers now counts, not the best of the last rounds.
const HEAVY_LOSS: f64 = 0.10;
/// Weight of a round in the usual share of losses.
const LOSS_WEIGHT: f64 = 1.0 / 16.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Startup { flat_rounds: u32 },
    Drain,
    Cruise { rounds: u32 },
    Probe,
    Settle,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Tern {
    mtu: u64,
    window: u64,
    phase: Phase,
    probe_gain: f64,
    /// The rate before the probe that is being judged.
    rate_before_probe: Option<f64>,
    rate: RateFilter,
    round_trip: RoundTripFilter,
    usual_loss: f64,
    drained_at: Instant,
    round: Round,
}

impl Tern {
    fn new(now: Instant, mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            window: INITIAL_WINDOW_BYTES,
            phase: Phase::Startup { flat_rounds: 0 },
            probe_gain: MAX_PROBE_GAIN,
            rate_before_probe: None,
            rate: RateFilter::default(),
            round_trip: RoundTripFilter::default(),
            usual_loss: 0.0,
            drained_at: now,
            round: Round::new(now),
        }
    }

    fn end_round(&mut self, now: Instant, summary: Summary) {
        let before = self.rate.highest();
        if summary.app_limited {
            self.rate.raise(summary.rate);
        } else {
            self.rate.add(summary.rate);
        }
        let lossy = summary.lost_packets(self.mtu) >= MIN_LOST_PACKETS && summary.loss > self.usual_loss + LOSS_STEP;
        let heavy = lossy && summary.loss > self.usual_loss + HEAVY_LOSS;
        self.phase = match self.phase {
            Phase::Startup { flat_rounds } => self.after_startup_round(flat_rounds, before, &summary, lossy),
            Phase::Drain => Phase::Cruise { rounds: 0 },
            Phase::Settle => self.after_settling(&summary, lossy),
            Phase::Cruise { .. } if now.saturating_duration_since(self.drained_at) > DRAIN_INTERVAL => Phase::Drain,
            Phase::Cruise { rounds } if rounds + 1 < CRUISE_ROUNDS || summary.app_limited => Phase::Cruise { rounds: rounds + 1 },
            Phase::Cruise { .. } => {
                self.rate_before_probe = Some(self.rate.highest());
                Phase::Probe
            }
            Phase::Probe => Phase::Settle,
        };
        if heavy && !matches!(self.phase, Phase::Startup { .. }) {
            self.rate.reset_to(summary.rate);
            self.phase = Phase::Drain;
        }
        if self.phase == Phase::Drain {
            self.drained_at = now;
        }
        if !matches!(self.phase, Phase::Startup { .. }) {
            self.usual_loss += (summary.loss - self.usual_loss) * LOSS_WEIGHT;
            self.follow_model();
        }
    }

    fn after_startup_round(&self, flat_rounds: u32, before: f64, summary: &Summary, lossy: bool) -> Phase {
        let grew = summary.app_limited || summary.rate >= before * STARTUP_GROWTH;
        let flat_rounds = if grew { 0 } else { flat_rounds + 1 };
        if lossy || flat_rounds >= STARTUP_FLAT_ROUNDS { Phase::Drain } else { Phase::Startup { flat_rounds } }
    }

    /// The losses and the rate of the probe are known now.
    fn after_settling(&mut self, summary: &Summary, lossy: bool) -> Phase {
        let Some(before) = self.rate_before_probe.take() else { return Phase::Cruise { rounds: 0 } };
        if lossy {
            self.probe_gain = (1.0 + (self.probe_gain - 1.0) / 2.0).max(MIN_PROBE_GAIN);
            return Phase::Cruise { rounds: 0 };
        }
        self.probe_gain = (self.probe_gain + PROBE_GAIN_STEP).min(MAX_PROBE_GAIN);
        if summary.rate > before * PROBE_SUCCESS {
            self.rate_before_probe = Some(self.rate.highest());
            return Phase::Probe;
        }
        Phase::Cruise { rounds: 0 }
    }

    fn follow_model(&mut self) {
        let Some(shortest) = self.round_trip.shortest() else { return };
        let (gain, slack) = match self.phase {
            Phase::Startup { .. } | Phase::Cruise { .. } | Phase::Settle => (1.0, SLACK),
            Phase::Drain => (DRAIN_GAIN, Duration::ZERO),
            Phase::Probe => (self.probe_gain, SLACK),
        };
        let held = shortest.as_secs_f64() * gain + slack.as_secs_f64();
        self.window = ((self.rate.highest() * held) as u64).max(self.min_window());
    }

    /// A queue is building up: the path is full.
    fn delay_has_grown(&self, round_trip: Duration) -> bool {
        self.round_trip.shortest().is_some_and(|shortest| round_trip > shortest + DELAY_STEP.max(shortest / 8))
    }

    fn min_window(&self) -> u64 {
        MIN_WINDOW_PACKETS * self.mtu
    }
}

impl Controller for Tern {
    fn on_sent(&mut self, _: Instant, bytes: u64, last_packet_number: u64) {
        self.round.sent(bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: &RttEstimator) {
        let round_trip = now.saturating_duration_since(sent);
        self.round_trip.add(now, round_trip);
        self.round.acknowledged(now, sent, bytes, app_limited);
        if matches!(self.phase, Phase::Startup { .. }) && !app_limited {
            self.window += if self.window < DOUBLING_BELOW_BYTES { bytes } else { bytes / 2 };
        }
    }

    fn on_end_acks(&mut self, now: Instant, _: u64, _: bool, largest_acknowledged: Option<u64>) {
        if let Some(summary) = self.round.end(now, largest_acknowledged) {
            let full = matches!(self.phase, Phase::Startup { .. }) && self.delay_has_grown(summary.shortest_round_trip);
            if full {
                self.phase = Phase::Drain;
            }
            self.end_round(now, summary);
        }
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.round.lost(lost_bytes);
        if is_persistent_congestion {
            // Nothing came through for long: what was known of the path is worth nothing.
            self.rate = RateFilter::default();
            self.window = self.min_window();
            self.phase = Phase::Startup { flat_rounds: 0 };
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(self.min_window());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics.pacing_rate = Some((self.rate.highest() * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Makes the controllers.
#[derive(Debug)]
pub(super) struct TernFactory;

impl ControllerFactory for TernFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Tern::new(now, current_mtu))
    }
}
