//! What one user of a link costs on the wire: its share of what the link sent and received, by the bytes of its frames.

use super::link::{Link, LinkStats};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of frames on a link, over all its meters.
#[derive(Debug, Default)]
pub(super) struct Metered {
    sent: AtomicU64,
    received: AtomicU64,
}

/// See the module's documentation.
pub struct WireMeter {
    link: Link,
    own: Metered,
    seen: Mutex<Seen>,
}

/// What was accounted for until now.
#[derive(Clone, Copy, Default)]
struct Seen {
    wire: LinkStats,
    all: (u64, u64),
    own: (u64, u64),
}

impl Metered {
    fn read(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }
}

impl WireMeter {
    /// A meter of a link, from now on.
    pub fn new(link: &Link) -> Self {
        let seen = Seen { wire: link.stats(), all: link.metered().read(), own: (0, 0) };
        Self { link: link.clone(), own: Metered::default(), seen: Mutex::new(seen) }
    }

    /// A frame went out.
    pub fn sent(&self, len_bytes: usize) {
        self.own.sent.fetch_add(len_bytes as u64, Relaxed);
        self.link.metered().sent.fetch_add(len_bytes as u64, Relaxed);
    }

    /// A frame came in.
    pub fn received(&self, len_bytes: usize) {
        self.own.received.fetch_add(len_bytes as u64, Relaxed);
        self.link.metered().received.fetch_add(len_bytes as u64, Relaxed);
    }

    /// Bytes on the wire since the last call, sent and received: this user's share.
    pub fn take(&self) -> (u64, u64) {
        let mut seen = self.seen.lock().expect("no panic under this lock");
        let now = Seen { wire: self.link.stats(), all: self.link.metered().read(), own: self.own.read() };
        let before = std::mem::replace(&mut *seen, now);
        let wire = (now.wire.wire_bytes_sent - before.wire.wire_bytes_sent, now.wire.wire_bytes_received - before.wire.wire_bytes_received);
        let own = (now.own.0 - before.own.0) + (now.own.1 - before.own.1);
        let all = (now.all.0 - before.all.0) + (now.all.1 - before.all.1);
        // Both directions by both: one direction's packets are mostly acknowledgements of the other's.
        let share = |wire: u64| if all == 0 { 0 } else { (u128::from(wire) * u128::from(own.min(all)) / u128::from(all)) as u64 };
        (share(wire.0), share(wire.1))
    }
}
