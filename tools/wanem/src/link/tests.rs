use std::time::Duration;

use super::*;
use crate::counters::Tally;

const PACKET: u64 = 1_000;

fn settings(rate: &str, rtt_ms: u64) -> Settings {
    Settings { rate: rate.parse().unwrap(), rtt: ms(rtt_ms), loss: Loss::default(), queue: QueueLimit::Auto }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Follows the timeouts until nothing is under way: payloads and when they came out.
fn drain(link: &mut Link<u32>) -> Vec<(Duration, u32)> {
    let mut out = Vec::new();
    while let Some(at) = link.poll_timeout() {
        while let Some(payload) = link.poll_transmit(at) {
            out.push((at, payload));
        }
        assert!(link.poll_timeout().is_none_or(|next| next > at), "a timeout that makes no progress would spin");
    }
    out
}

#[test]
fn a_packet_takes_its_serialisation_and_half_the_round_trip() {
    // 1000 bytes at 8 Mbit/s are 1 ms.
    let mut link = Link::new(settings("8Mbit", 20), 0);
    link.handle_packet(ms(5), PACKET, 1);
    assert_eq!(link.poll_timeout(), Some(ms(16)));
    assert_eq!(link.poll_transmit(ms(16) - Duration::from_nanos(1)), None);
    assert_eq!(link.poll_transmit(ms(16)), Some(1));
    assert_eq!(link.poll_timeout(), None);
}

#[test]
fn packets_of_a_burst_are_spaced_by_the_rate() {
    let mut link = Link::new(settings("8Mbit", 20), 0);
    for payload in 0..3 {
        link.handle_packet(ms(0), PACKET, payload);
    }
    assert_eq!(drain(&mut link), [(ms(11), 0), (ms(12), 1), (ms(13), 2)]);
    assert_eq!(link.report(ms(13)).counters.busy_ns, 3_000_000);
}

#[test]
fn a_late_caller_costs_no_bandwidth() {
    let mut link = Link::new(settings("8Mbit", 20), 0);
    for payload in 0..10 {
        link.handle_packet(ms(0), PACKET, payload);
    }
    // Nobody looked for 20 ms: all ten are through, and the next starts at once.
    let out: Vec<_> = std::iter::from_fn(|| link.poll_transmit(ms(20))).collect();
    assert_eq!(out, (0..10).collect::<Vec<_>>());
    assert_eq!(link.report(ms(20)).counters.late_max_ns, 9_000_000);
    link.handle_packet(ms(20), PACKET, 10);
    assert_eq!(drain(&mut link), [(ms(31), 10)]);
}

#[test]
fn throughput_is_the_rate_over_a_second() {
    let mut link = Link::new(Settings { queue: QueueLimit::Bytes(16 << 20), ..settings("85Mbit", 0) }, 0);
    for payload in 0..8_000 {
        link.handle_packet(ms(0), 1_500, payload);
    }
    let delivered = std::iter::from_fn(|| link.poll_transmit(ms(1_000))).count();
    // 85 Mbit are 7083.3 packets of 1500 bytes.
    assert_eq!(delivered, 7_083);
}

#[test]
fn a_full_queue_drops_the_newest_and_only_that() {
    let mut link = Link::new(Settings { queue: QueueLimit::Bytes(2 * PACKET), ..settings("8Mbit", 0) }, 0);
    for payload in 0..4 {
        link.handle_packet(ms(0), PACKET, payload);
    }
    // At 1 ms one is through and one place is free.
    link.handle_packet(ms(1), PACKET, 4);
    let out: Vec<_> = drain(&mut link).into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(out, [0, 1, 4]);
    let counters = link.report(ms(10)).counters;
    assert_eq!(counters.dropped_queue, Tally { packets: 2, bytes: 2 * PACKET });
    assert_eq!(counters.queue_peak_bytes, 2 * PACKET);
}

#[test]
fn a_packet_larger_than_the_queue_passes_an_idle_link() {
    let mut link = Link::new(Settings { queue: QueueLimit::Bytes(10), ..settings("8Mbit", 0) }, 0);
    link.handle_packet(ms(0), PACKET, 7);
    assert_eq!(drain(&mut link), [(ms(1), 7)]);
}

#[test]
fn an_unlimited_link_only_delays() {
    let mut link = Link::new(settings("unlimited", 20), 0);
    for payload in 0..1_000 {
        link.handle_packet(ms(1), PACKET, payload);
    }
    let out = drain(&mut link);
    assert_eq!(out.len(), 1_000);
    assert!(out.iter().all(|(at, _)| *at == ms(11)));
}

#[test]
fn what_an_unlimited_link_holds_is_bounded() {
    let mut link = Link::new(settings("unlimited", 60_000), 0);
    let huge = MAX_HELD_BYTES / 4;
    for payload in 0..5 {
        link.handle_packet(ms(0), huge, payload);
    }
    assert_eq!(link.report(ms(0)).in_flight_bytes, 3 * huge);
    assert_eq!(link.report(ms(0)).counters.dropped_queue.packets, 2);
    // Tiny packets are bounded by what they cost, not by what they carry.
    let mut link = Link::new(settings("unlimited", 60_000), 0);
    let most = MAX_HELD_BYTES / (PACKET_OVERHEAD_BYTES + 1);
    for _ in 0..most + 10 {
        link.handle_packet(ms(0), 1, 0);
    }
    assert_eq!(link.report(ms(0)).counters.dropped_queue.packets, 10);
}

#[test]
fn loss_is_near_its_share_and_the_same_for_the_same_seed() {
    let lossy = Settings { loss: "1%".parse().unwrap(), ..settings("unlimited", 0) };
    let run = |seed| {
        let mut link = Link::new(lossy, seed);
        for payload in 0..100_000 {
            link.handle_packet(ms(0), PACKET, payload);
        }
        drain(&mut link).into_iter().map(|(_, payload)| payload).collect::<Vec<_>>()
    };
    let out = run(1);
    // Five standard deviations of 1000 are 157.
    assert!((98_843..=99_157).contains(&out.len()), "{}", out.len());
    assert_eq!(out, run(1));
    assert_ne!(out, run(2));
}

#[test]
fn a_lost_packet_has_occupied_the_link() {
    let mut link = Link::new(Settings { loss: "100%".parse().unwrap(), ..settings("8Mbit", 20) }, 0);
    link.handle_packet(ms(0), PACKET, 0);
    assert_eq!(drain(&mut link), []);
    let report = link.report(ms(50));
    assert_eq!((report.counters.dropped_loss.packets, report.counters.busy_ns), (1, 1_000_000));
}

#[test]
fn a_new_rate_holds_for_the_rest_of_the_packet_under_way() {
    let mut link = Link::new(settings("8Mbit", 0), 0);
    link.handle_packet(ms(0), PACKET, 0);
    link.handle_packet(ms(0), PACKET, 1);
    // Half of the first is out; the rest takes four times as long.
    link.set(Duration::from_micros(500), settings("2Mbit", 0));
    assert_eq!(drain(&mut link), [(Duration::from_micros(2_500), 0), (Duration::from_micros(6_500), 1)]);
}

#[test]
fn lifting_the_limit_empties_the_queue_at_once() {
    let mut link = Link::new(settings("8kbit", 0), 0);
    for payload in 0..5 {
        link.handle_packet(ms(0), PACKET, payload);
    }
    link.set(ms(1), settings("unlimited", 0));
    assert_eq!(std::iter::from_fn(|| link.poll_transmit(ms(1))).count(), 5);
}

#[test]
fn a_shorter_delay_never_reorders() {
    let mut link = Link::new(settings("unlimited", 200), 0);
    link.handle_packet(ms(0), PACKET, 0);
    link.set(ms(1), settings("unlimited", 2));
    link.handle_packet(ms(1), PACKET, 1);
    assert_eq!(drain(&mut link), [(ms(100), 0), (ms(100), 1)]);
    link.handle_packet(ms(200), PACKET, 2);
    assert_eq!(drain(&mut link), [(ms(201), 2)]);
}

#[test]
fn a_cut_drops_what_waits_what_is_under_way_and_what_comes() {
    let mut link = Link::new(settings("8Mbit", 20), 0);
    for payload in 0..3 {
        link.handle_packet(ms(0), PACKET, payload);
    }
    link.cut(ms(2));
    link.handle_packet(ms(3), PACKET, 3);
    assert_eq!(drain(&mut link), []);
    assert_eq!(link.report(ms(3)).counters.dropped_cut.packets, 4);
    link.heal();
    link.handle_packet(ms(50), PACKET, 4);
    assert_eq!(drain(&mut link), [(ms(61), 4)]);
}

#[test]
fn every_packet_is_in_exactly_one_place() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut link = Link::new(Settings { loss: "5%".parse().unwrap(), ..settings("10Mbit", 30) }, 7);
    let mut now = Duration::ZERO;
    for step in 0..20_000_u32 {
        now += Duration::from_micros(rng.random_range(0..900));
        match rng.random_range(0..200) {
            0 => link.cut(now),
            1 => link.heal(),
            2 => link.set(now, settings("3Mbit", 10)),
            3 => link.set(now, Settings { loss: "5%".parse().unwrap(), ..settings("10Mbit", 30) }),
            _ => link.handle_packet(now, rng.random_range(20..1_500), step),
        }
        while link.poll_transmit(now).is_some() {}
        let LinkReport { counters, queue_bytes, in_flight_bytes, .. } = link.report(now);
        let dropped = counters.dropped_queue.bytes + counters.dropped_loss.bytes + counters.dropped_cut.bytes;
        assert_eq!(counters.sent.bytes, counters.delivered.bytes + dropped + queue_bytes + in_flight_bytes);
    }
    let counters = link.report(now).counters;
    for tally in [counters.delivered, counters.dropped_queue, counters.dropped_loss, counters.dropped_cut] {
        assert!(tally.packets > 0, "the run must have met every fate: {counters:?}");
    }
}
