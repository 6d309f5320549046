//! Which of two links to the same peer is kept. Both sides must come to the same answer without asking each other.
//!
//! - The peer restarted in between: the new one; the old one is dead.
//! - The same side dialled both: the new one; that side knows that the old one is dead.
//! - Each side dialled one, at about the same time: the one that the site with the lower id dialled.

use super::super::link::{Direction, Link};
use crate::identity::SiteId;

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    instance: u64,
    direction: Direction,
}

impl Offer {
    pub(super) fn of(link: &Link) -> Self {
        Self { instance: link.hello().instance, direction: link.direction() }
    }

    /// Whether this new link takes the place of `old`, at `site`, whose peer is `peer`.
    pub(super) fn replaces(&self, old: &Self, site: SiteId, peer: SiteId) -> bool {
        let preferred = if site < peer { Direction::Dialled } else { Direction::Accepted };
        self.instance != old.instance || self.direction == old.direction || self.direction == preferred
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (SiteId, SiteId) {
        (SiteId::from_bytes([1; 32]), SiteId::from_bytes([2; 32]))
    }

    #[test]
    fn both_sides_keep_the_same_of_two_crossing_links() {
        let (low, high) = ids();
        let offer = |direction| Offer { instance: 5, direction };
        let (dialled, accepted) = (offer(Direction::Dialled), offer(Direction::Accepted));
        // The lower site dialled link 1, the higher one link 2; whichever each sees first, link 1 stays.
        assert!(dialled.replaces(&accepted, low, high), "low: link 1 after link 2");
        assert!(!accepted.replaces(&dialled, low, high), "low: link 2 after link 1");
        assert!(accepted.replaces(&dialled, high, low), "high: link 1 after link 2");
        assert!(!dialled.replaces(&accepted, high, low), "high: link 2 after link 1");
    }

    #[test]
    fn a_repetition_and_a_restarted_peer_take_over() {
        let (low, high) = ids();
        let old = Offer { instance: 5, direction: Direction::Dialled };
        assert!(old.replaces(&old, low, high) && old.replaces(&old, high, low));
        let restarted = Offer { instance: 6, direction: Direction::Accepted };
        assert!(restarted.replaces(&old, low, high) && restarted.replaces(&old, high, low));
    }
}
