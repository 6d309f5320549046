//! `tern status --watch`: the state on a full screen, renewed until somebody presses `q`.
//!
//! ```text
//!   daemon ── status every interval ──▶ Model (pure: rates, peaks, selection) ──▶ view (pure: draws a frame)
//!   keys ─────────────────────────────────▲
//! ```
//!
//! A daemon that goes away is shown as such, with what was last known; the view comes back by itself.

mod model;
mod strips;
#[cfg(test)]
mod tests;
mod view;

use crate::{
    cli::StatusArgs,
    client::{Client, decode},
};
use blockd_api::{ApiError, ErrorCode, Status, routes};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use model::{Model, Move};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Shortest time between two looks at the daemon.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// How often the key thread sees whether it is still needed.
const KEY_POLL: Duration = Duration::from_millis(200);

/// Shows the view. Returns when the user leaves it.
pub async fn run(client: &Client, arguments: &StatusArgs) -> Result<(), ApiError> {
    let path = routes::status(arguments.volume.as_ref());
    let first: Status = decode(client.get(&path).await?)?;
    let no_screen = |error: std::io::Error| ApiError::new(ErrorCode::Io, format!("cannot draw on this terminal: {error}"));
    let mut terminal = ratatui::try_init().map_err(no_screen)?;
    let mut model = Model::default();
    model.update(first, Instant::now());
    let (keys_in, mut keys) = mpsc::channel(16);
    std::thread::spawn(move || read_keys(&keys_in));
    let (statuses_in, mut statuses) = mpsc::channel(1);
    let asker = tokio::spawn(ask(client.clone(), path, arguments.interval.duration().max(MIN_INTERVAL), statuses_in));
    let result = loop {
        if let Err(error) = terminal.draw(|frame| view::draw(frame, &model)) {
            break Err(no_screen(error));
        }
        tokio::select! {
            key = keys.recv() => match key {
                None | Some(Key::Quit) => break Ok(()),
                Some(Key::Move(step)) => model.select(step),
                Some(Key::Redraw) => {}
            },
            Some(answer) = statuses.recv() => match answer {
                Ok(status) => model.update(status, Instant::now()),
                Err(error) => model.fail(&error),
            },
        }
    };
    asker.abort();
    ratatui::restore();
    result
}

async fn ask(client: Client, path: String, interval: Duration, statuses: mpsc::Sender<Result<Status, ApiError>>) {
    loop {
        tokio::time::sleep(interval).await;
        let answer = client.get(&path).await.and_then(decode);
        if statuses.send(answer).await.is_err() {
            return;
        }
    }
}

enum Key {
    Quit,
    Move(Move),
    Redraw,
}

/// Blocks on the terminal, hence its own thread. Ends when nobody listens any more.
fn read_keys(keys: &mpsc::Sender<Key>) {
    while !keys.is_closed() {
        match event::poll(KEY_POLL) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(_) => return,
        }
        let key = match event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => key_of(key),
            Ok(Event::Resize(..)) => Some(Key::Redraw),
            Ok(_) => None,
            Err(_) => return,
        };
        if let Some(key) = key
            && keys.blocking_send(key).is_err()
        {
            return;
        }
    }
}

fn key_of(key: KeyEvent) -> Option<Key> {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Move(Move::Up)),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Move(Move::Down)),
        KeyCode::Home | KeyCode::Char('g') => Some(Key::Move(Move::First)),
        KeyCode::End | KeyCode::Char('G') => Some(Key::Move(Move::Last)),
        _ => None,
    }
}
