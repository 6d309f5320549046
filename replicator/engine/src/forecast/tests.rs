use super::*;

const MIB: u64 = 1 << 20;

/// 10 MiB a second, a commit in 50 ms, content that shrinks to half, 40 MiB to send of which a cut takes 8.
fn outlook() -> Outlook {
    let measured = Measured {
        link: LinkRate::Measured(10 * MIB),
        link_seen_ms: Some(1_000),
        payload_per_mille: Some(500),
        changes_per_second: 4 * MIB,
        commit_ms: Some(50),
        queued_bytes: 0,
    };
    Outlook { measured, backlog_bytes: 40 * MIB, cut_bytes: Some(8 * MIB), round_trip_ms: 30 }
}

fn seconds(outlook: &Outlook, writers: Writers) -> Option<f64> {
    outlook.forecast(Circumstances { writers, fixed_ms: Some(300), ..Circumstances::default() }).seconds
}

fn near(seconds: Option<f64>, expected: f64) -> bool {
    seconds.is_some_and(|seconds| (seconds - expected).abs() < 0.01)
}

#[test]
fn without_writers_it_is_the_backlog_two_commits_and_the_fixed_costs() {
    assert!(near(seconds(&outlook(), Writers::None), 2.0 + 0.1 + 0.3), "{:?}", seconds(&outlook(), Writers::None));
    let nothing = Outlook { backlog_bytes: 0, ..outlook() };
    assert!(near(seconds(&nothing, Writers::None), 0.4));
    let queued = Outlook { measured: Measured { queued_bytes: 5 * MIB, ..outlook().measured }, ..outlook() };
    assert!(near(seconds(&queued, Writers::None), 2.9));
}

#[test]
fn writes_that_go_on_are_sent_too_until_the_gate_is_shut() {
    // 32 MiB at 16 a second net; 8 frozen in 0.4 s and 50 ms; what was written in these in the last epoch.
    let expected = 2.0 + 0.45 + 0.45 * 4.0 / 20.0 + 0.05 + 0.3;
    assert!(near(seconds(&outlook(), Writers::GoOn), expected), "{:?}", seconds(&outlook(), Writers::GoOn));
    let forecast = outlook().forecast(Circumstances { writers: Writers::GoOn, ..Circumstances::default() });
    let bytes = (20.0 + 2.45 * 4.0 / 2.0) * MIB as f64;
    assert!(forecast.bytes.is_some_and(|sent| (sent as f64 - bytes).abs() < 1000.0), "{forecast:?}");
}

#[test]
fn what_changes_faster_than_the_link_takes_it_has_no_end_unless_a_cut_takes_it_all() {
    let busy = Outlook { measured: Measured { changes_per_second: 25 * MIB, ..outlook().measured }, ..outlook() };
    let forecast = busy.forecast(Circumstances { writers: Writers::GoOn, ..Circumstances::default() });
    assert_eq!((forecast.seconds, forecast.basis), (None, Basis::Endless));
    assert!(near(seconds(&busy, Writers::None), 2.4), "once they stop it ends");
    let at_once = Outlook { cut_bytes: None, ..busy };
    assert!(near(seconds(&at_once, Writers::GoOn), 2.05 + 2.05 * 25.0 / 20.0 + 0.05 + 0.3));
}

#[test]
fn what_was_not_measured_is_said_and_an_unknown_link_is_not_guessed() {
    let basis = |outlook: Outlook, fixed_ms| outlook.forecast(Circumstances { fixed_ms, ..Circumstances::default() }).basis;
    let with = |link, payload_per_mille| Outlook { measured: Measured { link, payload_per_mille, ..outlook().measured }, ..outlook() };
    assert_eq!(basis(outlook(), Some(1)), Basis::Measured);
    assert_eq!(basis(outlook(), None), Basis::NoHandover);
    let in_an_hour = Circumstances { fixed_ms: Some(1), now_ms: 3_600_000, ..Circumstances::default() };
    assert_eq!(outlook().forecast(in_an_hour).basis, Basis::LinkLongAgo);
    assert_eq!(basis(with(outlook().measured.link, None), Some(1)), Basis::NoYield);
    assert_eq!(basis(with(LinkRate::AtLeast(MIB), Some(500)), Some(1)), Basis::LinkFaster);
    let unknown = with(LinkRate::Unknown, None);
    assert_eq!(basis(unknown, Some(1)), Basis::LinkUnknown);
    assert_eq!(seconds(&unknown, Writers::None), None);
    let nothing_to_send = Outlook { backlog_bytes: 0, ..unknown };
    assert!(near(seconds(&nothing_to_send, Writers::None), 0.4), "for which the link need not be known");
}
