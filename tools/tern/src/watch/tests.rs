//! What the screen shows.

use super::{
    model::{HISTORY, Model, Move},
    view,
};
use crate::verbs::tests::example_status;
use blockd_api::{ApiError, ErrorCode, Status};
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn status(change: impl FnOnce(&mut Value)) -> Status {
    let mut document = example_status();
    change(&mut document);
    serde_json::from_value(document).unwrap()
}

fn screen(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, model)).unwrap();
    terminal.backend().to_string()
}

/// A model that saw a volume send at 40 Mbit/s for a while.
fn busy() -> Model {
    let mut model = Model::default();
    let begin = Instant::now();
    for second in 0..10u64 {
        let now = status(|document| document["volumes"][0]["wire_bytes_sent"] = json!(second * 5_000_000));
        model.update(now, begin + Duration::from_secs(second));
    }
    model
}

#[test]
fn a_volume_shows_all_that_one_wants_to_know() {
    let shown = screen(&busy(), 130, 30);
    for expected in [
        "tern · osaka",
        "1 volume, 0 of 1 in sync",
        "1.00 GiB of 20.0 GiB",
        "vm1",
        "primary",
        "● catching-up",
        "0.4 s / 5.0 s",
        "12.0 MiB",
        "40.0 Mbit/s",
        "limit 50.0 Mbit/s now",
        "▆",
        "epoch 812 open, 810 committed",
        "6 zero, 7 duplicate, 8 delta, 9 full",
        "vhost-user, nbd",
        "→ oregon",
        "q quit",
    ] {
        assert!(shown.contains(expected), "{expected:?} is not on\n{shown}");
    }
}

#[test]
fn errors_are_shown_where_they_belong() {
    let mut model = Model::default();
    model.update(status(|document| document["volumes"][0]["last_error"] = json!("the standby's journal is full")), Instant::now());
    assert!(screen(&model, 130, 30).contains("the standby's journal is full"));
    model.fail(&ApiError::new(ErrorCode::Unavailable, "cannot reach blockd"));
    let shown = screen(&model, 130, 30);
    assert!(shown.contains("cannot reach blockd; trying again") && shown.contains("vm1"), "{shown}");
    model.update(status(|_| {}), Instant::now());
    assert!(!screen(&model, 130, 30).contains("trying again"));
}

#[test]
fn any_size_of_screen_is_drawn() {
    for model in [Model::default(), busy()] {
        for width in [1, 7, 20, 80, 300] {
            for height in [1, 2, 5, 19, 20, 21, 100] {
                screen(&model, width, height);
            }
        }
    }
}

#[test]
fn a_site_without_volumes_says_what_to_do() {
    let mut model = Model::default();
    model.update(status(|document| document["volumes"] = json!([])), Instant::now());
    assert!(screen(&model, 100, 30).contains("tern volume create"));
}

#[test]
fn the_selection_stays_on_the_list() {
    let mut model = Model::default();
    let two = |document: &mut Value| {
        let mut second = document["volumes"][0].clone();
        second["name"] = json!("vm2");
        document["volumes"].as_array_mut().unwrap().push(second);
    };
    model.select(Move::Down);
    model.update(status(two), Instant::now());
    for (step, selected) in [(Move::Up, 0), (Move::Down, 1), (Move::Down, 1), (Move::First, 0), (Move::Last, 1)] {
        model.select(step);
        assert_eq!(model.selected(), selected, "{step:?}");
    }
    assert!(screen(&model, 130, 30).contains("▶ vm2"));
    model.update(status(|_| {}), Instant::now());
    assert_eq!(model.selected(), 0);
}

#[test]
fn history_is_bounded_and_a_counter_that_falls_is_no_rate() {
    let mut model = Model::default();
    let begin = Instant::now();
    for second in 0..2 * HISTORY as u64 {
        let sent = if second % 2 == 0 { 1_000_000 } else { 0 };
        model.update(status(|document| document["volumes"][0]["wire_bytes_sent"] = json!(sent)), begin + Duration::from_secs(second));
    }
    let trend = model.trend(&"vm1".parse().unwrap()).unwrap();
    assert_eq!(trend.rates.len(), HISTORY);
    assert!(trend.rates.iter().all(|rate| (0.0..=8_000_000.0).contains(rate)));
}
