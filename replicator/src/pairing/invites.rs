//! The invitations of this site, as pure state: each good once, for a time, and for the same site again if its answer was lost.

use super::token::{SECRET_BYTES, Secret};
use crate::identity::SiteId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Invitations that may be open at once.
pub const MAX_OPEN_INVITES: usize = 16;

/// Used and expired ones are remembered to say so: this many, and for this long after they expired.
const MAX_REMEMBERED: usize = 64;
const REMEMBERED_SECONDS: u64 = 24 * 3600;

/// Longest time that an invitation may be good for.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// See the module's documentation. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Invites {
    invites: Vec<Invite>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Invite {
    secret: Secret,
    expires_at: u64,
    used_by: Option<SiteId>,
}

/// There are as many open invitations as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyInvites;

/// Why a site may not join.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotWelcome {
    /// No invitation has the secret that the proof was made with.
    Unknown,
    /// Another site used the invitation.
    Used,
    /// It was not used in time.
    Expired {
        /// Since when.
        ago: Duration,
    },
}

impl Invites {
    /// Opens an invitation until `expires_at`.
    pub(super) fn issue(&mut self, secret: [u8; SECRET_BYTES], now: u64, expires_at: u64) -> Result<Secret, TooManyInvites> {
        self.invites.retain(|invite| invite.expires_at.saturating_add(REMEMBERED_SECONDS) > now);
        if self.invites.iter().filter(|invite| invite.is_open(now)).count() >= MAX_OPEN_INVITES {
            return Err(TooManyInvites);
        }
        if self.invites.len() >= MAX_REMEMBERED {
            // There are more than the open ones may be, so one is not open.
            if let Some(oldest) = self.invites.iter().position(|invite| !invite.is_open(now)) {
                self.invites.remove(oldest);
            }
        }
        let secret = Secret(secret);
        self.invites.push(Invite { secret, expires_at, used_by: None });
        Ok(secret)
    }

    /// Until then a stranger may try to join: when the last open invitation expires, or 0.
    pub(super) fn open_until(&self) -> u64 {
        self.invites.iter().filter(|invite| invite.used_by.is_none()).map(|invite| invite.expires_at).max().unwrap_or(0)
    }

    /// Uses the invitation whose secret `proves`, for `joiner`. Every secret is tried, whichever fits.
    pub(super) fn redeem(&mut self, joiner: SiteId, now: u64, proves: impl Fn(&Secret) -> bool) -> Result<(), NotWelcome> {
        let mut fitting = None;
        for (index, invite) in self.invites.iter().enumerate() {
            if proves(&invite.secret) {
                fitting = Some(index);
            }
        }
        let invite = fitting.and_then(|index| self.invites.get_mut(index)).ok_or(NotWelcome::Unknown)?;
        match invite.used_by {
            Some(site) if site == joiner => Ok(()),
            Some(_) => Err(NotWelcome::Used),
            None => match now.checked_sub(invite.expires_at) {
                Some(seconds) => Err(NotWelcome::Expired { ago: Duration::from_secs(seconds) }),
                None => {
                    invite.used_by = Some(joiner);
                    Ok(())
                }
            },
        }
    }

    /// A removed peer is a stranger again: what it used does not let it in a second time.
    pub(super) fn forget(&mut self, site: &SiteId) {
        self.invites.retain(|invite| invite.used_by != Some(*site));
    }
}

impl Invite {
    fn is_open(&self, now: u64) -> bool {
        self.used_by.is_none() && now < self.expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> SiteId {
        SiteId::of_public_key(name.as_bytes())
    }

    fn with(secret: [u8; SECRET_BYTES]) -> impl Fn(&Secret) -> bool {
        move |candidate| *candidate == Secret(secret)
    }

    #[test]
    fn an_invitation_is_good_for_one_site_and_for_its_repetition() {
        let mut invites = Invites::default();
        invites.issue([1; 16], 100, 200).unwrap();
        assert_eq!(invites.open_until(), 200);
        assert_eq!(invites.redeem(site("a"), 150, with([2; 16])), Err(NotWelcome::Unknown));
        assert_eq!(invites.redeem(site("a"), 150, with([1; 16])), Ok(()));
        assert_eq!(invites.open_until(), 0);
        assert_eq!(invites.redeem(site("b"), 151, with([1; 16])), Err(NotWelcome::Used));
        assert_eq!(invites.redeem(site("a"), 1000, with([1; 16])), Ok(()));
    }

    #[test]
    fn an_invitation_expires() {
        let mut invites = Invites::default();
        invites.issue([1; 16], 100, 200).unwrap();
        assert_eq!(invites.open_until(), 200);
        assert_eq!(invites.redeem(site("a"), 230, with([1; 16])), Err(NotWelcome::Expired { ago: Duration::from_secs(30) }));
    }

    #[test]
    fn a_removed_peer_cannot_use_its_invitation_again() {
        let mut invites = Invites::default();
        invites.issue([1; 16], 100, 200).unwrap();
        invites.redeem(site("a"), 150, with([1; 16])).unwrap();
        invites.forget(&site("a"));
        assert_eq!(invites.redeem(site("a"), 151, with([1; 16])), Err(NotWelcome::Unknown));
    }

    #[test]
    fn open_and_remembered_invitations_are_bounded() {
        let mut invites = Invites::default();
        for n in 0..MAX_OPEN_INVITES {
            invites.issue([n as u8; 16], 100, 200).unwrap();
        }
        assert_eq!(invites.issue([99; 16], 100, 200), Err(TooManyInvites));
        for n in 0..1000_u64 {
            invites.issue([99; 16], 300 + n, 300 + n).unwrap();
            assert!(invites.invites.len() <= MAX_REMEMBERED);
        }
        invites.issue([1; 16], 300 + 2 * REMEMBERED_SECONDS, 300 + 3 * REMEMBERED_SECONDS).unwrap();
        assert_eq!(invites.invites.len(), 1);
    }
}
