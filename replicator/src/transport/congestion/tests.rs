//! The controllers on long paths.

use super::super::settings::Settings;
use super::Congestion;
use super::sim::{PathShape, Simulation};
use std::time::Duration;

fn path(rate_mbit: u64, round_trip_ms: u64, loss_percent: f64, queue: f64) -> PathShape {
    let round_trip = Duration::from_millis(round_trip_ms);
    PathShape { rate_bits: rate_mbit * 1_000_000, round_trip, loss: loss_percent / 100.0, queue }
}

#[test]
#[ignore = "prints a table for whoever tunes a controller"]
fn table() {
    for congestion in [Congestion::Cubic, Congestion::Bbr] {
        for (rate, rtt, seconds) in [(85, 27, 20), (500, 200, 20)] {
            for loss in [0.0, 0.01, 0.1, 1.0] {
                for queue in [0.25, 1.0, 4.0] {
                    let mut simulation = Simulation::new(Settings { congestion, ..Settings::default() }, path(rate, rtt, loss, queue), 1);
                    simulation.add_flow();
                    let begin = simulation.run(Duration::from_secs(3));
                    let outcome = simulation.run(Duration::from_secs(seconds));
                    println!(
                        "{congestion:?} {rate} Mbit {rtt} ms loss {loss} % queue {queue}: first 3 s {:.3}, then goodput {:.3} wire/byte {:.3} lost {:.4} queued {:?} back {:.4}",
                        begin.goodput.iter().sum::<f64>(),
                        outcome.goodput[0],
                        outcome.wire_per_byte,
                        outcome.lost,
                        outcome.most_queued,
                        outcome.back_per_byte
                    );
                }
            }
        }
    }
}
