//! The service manager: what it hands over at the start, what it is told, and what it watches.
//!
//! systemd's protocol, by environment variables: `LISTEN_FDS` (sockets), `NOTIFY_SOCKET` (ready, stopping), `WATCHDOG_USEC`. Started by
//! anything else, all of it does nothing.

mod sockets;
mod sys;
mod watchdog;

pub use sockets::{Inherited, InheritedError};
pub use watchdog::{Probe, keep_alive};

use sd_notify::NotifyState;

/// The daemon serves.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Nobody there to be told is no failure of ours.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
