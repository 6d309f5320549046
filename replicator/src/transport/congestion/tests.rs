//! The controllers on long paths.

use super::super::settings::Settings;
use super::Congestion;
use super::sim::{Outcome, PathShape, Simulation};
use std::time::Duration;

fn path(rate_mbit: u64, round_trip_ms: u64, loss_percent: f64, queue: f64) -> PathShape {
    let round_trip = Duration::from_millis(round_trip_ms);
    PathShape { rate_bits: rate_mbit * 1_000_000, round_trip, loss: loss_percent / 100.0, queue }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn show(what: &str, outcome: &Outcome) {
    let goodput: Vec<String> = outcome.goodput.iter().map(|share| format!("{share:.3}")).collect();
    println!(
        "{what}: goodput {} wire/byte {:.3} lost {:.4} queued {:?} back {:.4}",
        goodput.join(" + "),
        outcome.wire_per_byte,
        outcome.lost,
        outcome.most_queued,
        outcome.back_per_byte
    );
}

#[test]
fn a_long_path_is_used_up_in_spite_of_a_little_loss() {
    for (rate, round_trip, span) in [(85, 27, 8), (500, 200, 8)] {
        for loss in [0.0, 0.1] {
            let mut simulation = Simulation::new(Settings::default(), path(rate, round_trip, loss, 1.0), 1);
            simulation.add_flow(Congestion::Tern);
            simulation.run(seconds(4));
            let outcome = simulation.run(seconds(span));
            let what = format!("{rate} Mbit/s, {round_trip} ms, loss {loss} %: {outcome:?}");
            assert!(outcome.goodput[0] > 0.92, "{what}");
            assert!(outcome.wire_per_byte < 1.07, "{what}");
        }
    }
}

#[test]
fn a_path_is_shared_with_another_flow_of_ours() {
    let mut simulation = Simulation::new(Settings::default(), path(85, 27, 0.0, 1.0), 1);
    simulation.add_flow(Congestion::Tern);
    simulation.run(seconds(3));
    simulation.add_flow(Congestion::Tern);
    simulation.run(seconds(3));
    let outcome = simulation.run(seconds(6));
    assert!(outcome.goodput.iter().all(|share| *share > 0.25), "{outcome:?}");
}

#[test]
fn a_path_that_becomes_slower_is_followed() {
    let mut simulation = Simulation::new(Settings::default(), path(85, 27, 0.0, 1.0), 1);
    simulation.add_flow(Congestion::Tern);
    simulation.run(seconds(4));
    simulation.reshape(path(17, 27, 0.0, 5.0));
    simulation.run(seconds(3));
    let outcome = simulation.run(seconds(5));
    assert!(outcome.goodput[0] > 0.9 && outcome.most_queued < Duration::from_millis(60), "{outcome:?}");
}

#[test]
#[ignore = "prints a table for whoever tunes a controller"]
fn table() {
    for congestion in [Congestion::Tern] {
        for (rate, rtt, span) in [(85, 27, 20), (500, 200, 20), (900, 2, 5)] {
            for loss in [0.0, 0.01, 0.1, 1.0] {
                for queue in [0.25, 1.0, 4.0] {
                    let mut simulation = Simulation::new(Settings::default(), path(rate, rtt, loss, queue), 1);
                    simulation.add_flow(congestion);
                    let begin = simulation.run(seconds(3));
                    let what = format!(
                        "{congestion:?} {rate} Mbit {rtt} ms loss {loss} % queue {queue} ({:.3} in 3 s)",
                        begin.goodput.iter().sum::<f64>()
                    );
                    show(&what, &simulation.run(seconds(span)));
                }
            }
        }
    }
}

#[test]
#[ignore = "prints how flows share a path"]
fn sharing() {
    for queue in [0.25, 1.0, 4.0] {
        for other in [Congestion::Tern, Congestion::Cubic] {
            let mut simulation = Simulation::new(Settings::default(), path(85, 27, 0.0, queue), 1);
            simulation.add_flow(Congestion::Tern);
            simulation.run(seconds(5));
            simulation.add_flow(other);
            show(&format!("queue {queue}, {other:?} joins: first 5 s Mbit"), &simulation.run(seconds(5)));
            show(&format!("queue {queue}, {other:?} joins: next 20 s Mbit"), &simulation.run(seconds(20)));
        }
    }
}

#[test]
#[ignore = "prints what happens when the path changes"]
fn changes() {
    for (rate, rtt) in [(85, 27), (500, 200)] {
        for queue in [0.25, 1.0] {
            let mut simulation = Simulation::new(Settings::default(), path(rate, rtt, 0.0, queue), 1);
            simulation.add_flow(Congestion::Tern);
            simulation.run(seconds(10));
            let slow = path(rate / 5, rtt, 0.0, queue * 5.0);
            simulation.reshape(slow);
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: a fifth, first 5 s"), &simulation.run(seconds(5)));
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: a fifth, next 5 s"), &simulation.run(seconds(5)));
            simulation.reshape(path(rate, rtt, 0.0, queue));
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: again all, first 5 s"), &simulation.run(seconds(5)));
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: again all, next 5 s"), &simulation.run(seconds(5)));
            simulation.reshape(path(rate, rtt * 2, 0.0, queue));
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: twice as long, first 10 s"), &simulation.run(seconds(10)));
            show(&format!("{rate} Mbit {rtt} ms queue {queue}: twice as long, next 20 s"), &simulation.run(seconds(20)));
        }
    }
}
