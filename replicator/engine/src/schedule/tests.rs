//! Schedules under clocks that are set.

use super::*;
use proptest::prelude::*;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A clock on the wall that is set now and then.
struct Wall {
    now_ms: u64,
    unix_ms: u64,
}

impl Wall {
    fn at(text: &str) -> Self {
        let unix_ms = DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis() as u64;
        Self { now_ms: 1, unix_ms }
    }

    fn clock(&self) -> Clock {
        Clock { now_ms: self.now_ms, unix_ms: self.unix_ms }
    }

    /// The cuts that fall due in this time, by the clock that never steps.
    fn pass(&mut self, timetable: &mut Timetable, span_ms: u64) -> Vec<u64> {
        let end = self.now_ms + span_ms;
        let mut cuts = Vec::new();
        while self.now_ms < end {
            let step = MINUTE.min(end - self.now_ms);
            self.now_ms += step;
            self.unix_ms += step;
            if timetable.take_due(self.clock()) {
                cuts.push(self.now_ms);
            }
        }
        cuts
    }
}

/// A timetable whose first cut was made.
fn begun(schedule: Schedule, wall: &Wall) -> Timetable {
    let mut timetable = Timetable::new(schedule, None, wall.clock());
    assert!(timetable.take_due(wall.clock()), "the first is due at once");
    assert!(!timetable.take_due(wall.clock()));
    timetable
}

#[test]
fn what_is_no_schedule_is_refused_with_the_reason() {
    assert_eq!(Schedule::every(999).unwrap_err(), ScheduleError::Period(999));
    for bad in ["", "nightly", "60 * * * *", "0 2 * *", "0 0 2 * * * 2027", "* * * * * *"] {
        assert!(matches!(Schedule::cron(bad), Err(ScheduleError::Syntax(_))), "{bad}");
    }
    assert_eq!(Schedule::cron("0 0 30 2 *").unwrap_err(), ScheduleError::Never);
}

#[test]
fn cron_syntax_means_utc_and_sunday_is_0() {
    let after = |pattern: &str, text: &str| {
        let next = Schedule::cron(pattern).unwrap().after(Wall::at(text).unix_ms).unwrap();
        DateTime::<Utc>::from_timestamp_millis(next as i64).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    };
    assert_eq!(after("0 2 * * *", "2026-11-21T02:00:00Z"), "2026-11-22T02:00:00Z");
    assert_eq!(after("*/15 * * * *", "2026-11-21T23:46:00Z"), "2026-11-22T00:00:00Z");
    assert_eq!(after("30 1 * * 0", "2026-11-21T12:00:00Z"), "2026-11-22T01:30:00Z");
    // The nights in which clocks in Berlin, New York and Sydney are put forwards and back.
    for night in ["2027-03-28", "2027-10-31", "2027-03-14", "2027-11-07", "2027-04-04", "2027-10-03"] {
        let mut wall = Wall::at(&format!("{night}T00:00:30Z"));
        let mut timetable = begun(Schedule::cron("30 2 * * *").unwrap(), &wall);
        assert_eq!(wall.pass(&mut timetable, DAY).len(), 1, "{night}");
    }
}

#[test]
fn a_span_is_measured_by_the_clock_that_never_steps() {
    let mut wall = Wall::at("2026-11-21T12:00:00Z");
    let mut timetable = begun(Schedule::every(15 * MINUTE).unwrap(), &wall);
    for step in [0, HOUR as i64, -(HOUR as i64), -(DAY as i64)] {
        wall.unix_ms = wall.unix_ms.saturating_add_signed(step);
        assert_eq!(wall.pass(&mut timetable, HOUR).len(), 4);
    }
}

#[test]
fn a_clock_that_is_set_back_an_hour_neither_doubles_a_nightly_cut_nor_stops_frequent_ones() {
    let mut wall = Wall::at("2026-11-21T00:30:00Z");
    let mut nightly = begun(Schedule::cron("0 1 * * *").unwrap(), &wall);
    assert_eq!(wall.pass(&mut nightly, HOUR).len(), 1);
    wall.unix_ms -= HOUR;
    let next = wall.pass(&mut nightly, 2 * DAY);
    assert_eq!(next, [1 + 30 * MINUTE + 25 * HOUR], "the day has 25 hours");

    let mut wall = Wall::at("2026-11-21T00:00:30Z");
    let mut frequent = begun(Schedule::cron("*/15 * * * *").unwrap(), &wall);
    let mut cuts = wall.pass(&mut frequent, 100 * MINUTE);
    wall.unix_ms -= HOUR;
    cuts.extend(wall.pass(&mut frequent, 2 * HOUR));
    assert!(cuts.windows(2).all(|pair| (7 * MINUTE..=24 * MINUTE).contains(&(pair[1] - pair[0]))), "{cuts:?}");
    assert!((12..=15).contains(&cuts.len()), "{cuts:?}");
}

#[test]
fn instants_that_were_missed_are_one_cut() {
    let wall = Wall::at("2026-11-21T12:30:00Z");
    for schedule in [Schedule::cron("0 * * * *").unwrap(), Schedule::every(HOUR).unwrap()] {
        let mut timetable = Timetable::new(schedule.clone(), Some(wall.unix_ms - 5 * HOUR), wall.clock());
        assert!(timetable.take_due(wall.clock()) && !timetable.take_due(wall.clock()));
        let mut timetable = Timetable::new(schedule.clone(), Some(wall.unix_ms - 10 * MINUTE), wall.clock());
        assert!(!timetable.take_due(wall.clock()));
        // Of a time when the clock was wrong.
        let mut timetable = Timetable::new(schedule, Some(wall.unix_ms + DAY), wall.clock());
        assert!(!timetable.take_due(wall.clock()));
        assert!(timetable.next_unix_ms() <= wall.unix_ms + HOUR);
    }
}

#[test]
fn a_due_cut_counts_as_kept_until_the_next_is_due() {
    let mut dues = Dues::default();
    dues.handle_due();
    dues.handle_cut(7);
    assert!(dues.are_kept() && !dues.are_served());
    dues.handle_due();
    assert!(!dues.are_kept());
    dues.handle_committed(6);
    assert!(!dues.are_kept());
    dues.handle_committed(7);
    assert!(dues.are_kept() && !dues.are_served(), "the second was due after the cut");
    dues.handle_cut(8);
    // Given up, and cut anew.
    dues.handle_cut(9);
    dues.handle_committed(9);
    assert!(dues.are_served());
}

proptest! {
    #[test]
    fn however_the_clock_is_set_cuts_neither_bunch_nor_stop(steps in prop::collection::vec((1u64..300, -200i64..200), 1..20)) {
        let mut wall = Wall::at("2026-11-21T12:00:00Z");
        let mut timetable = begun(Schedule::cron("0 * * * *").unwrap(), &wall);
        // An instant that was skipped is made up for, and the one after it may follow soon.
        let (mut last, mut skipped) = (wall.now_ms, 0);
        for (minutes, step) in steps {
            for cut in wall.pass(&mut timetable, minutes * MINUTE) {
                prop_assert!(skipped > 0 || cut - last >= 29 * MINUTE, "{} ms apart", cut - last);
                prop_assert!(cut - last <= 92 * MINUTE, "{} ms apart", cut - last);
                (last, skipped) = (cut, i32::max(skipped - 1, 0));
            }
            prop_assert!(wall.now_ms - last <= 92 * MINUTE);
            wall.unix_ms = wall.unix_ms.saturating_add_signed(step * MINUTE as i64);
            skipped = if step > 0 { 2 } else { skipped };
        }
    }
}
