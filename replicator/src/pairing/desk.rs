//! The desk where sites meet: makes tokens, decides about the sites that bring one, and tells the transport who may connect.
//!
//! ```text
//!   joiner                                     inviter
//!     │  token (pasted by a person)  ◄────────── invite
//!     ├── TLS: both keys proved; the inviter's is the token's ──►
//!     ├── join: name, addresses, proof of the secret ──►
//!     │                                   checks, records the peer and the use of the
//!     │                                   invitation in one durable step
//!     │ ◄────────────────────────── welcome ──┤
//!   records the peer, durably
//! ```
//!
//! If the answer is lost, the joiner asks again with the same token and the same key and gets the same answer. What the joiner can check
//! by itself (names, expiry) it checks before it asks, so that no side is left with half a pairing.

use super::invites::{Invites, MAX_OPEN_INVITES, MAX_TTL, NotWelcome};
use super::messages::{Answer, Join, Refusal, proof};
use super::name;
use super::peer_book::{Peer, PeerBook, RecordError};
use super::token::{SECRET_BYTES, Token, TokenError, in_words};
use crate::catalogue::{Catalogue, Change, Persist};
use crate::identity::SiteId;
use crate::transport::{Admission, PeerPolicy};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::warn;

/// The catalogue's key of the invitations, as JSON.
const INVITES_KEY: &[u8] = b"invites";

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// No address to be reached at.
    #[error("no address to put into the token: name one with --address HOST:PORT")]
    NoAddress,
    /// Not an address.
    #[error("{0} is not HOST:PORT")]
    Address(String),
    /// The time is too long.
    #[error("an invitation is good for {} at most", in_words(MAX_TTL))]
    TooLong,
    /// Too many are open.
    #[error("{MAX_OPEN_INVITES} invitations are open: use one or let one expire")]
    TooMany,
    /// The system gave no random number.
    #[error("no randomness from the system: {0}")]
    Random(getrandom::Error),
    /// The catalogue failed.
    #[error("cannot record the invitation")]
    Io(#[from] io::Error),
}

/// A token and its last moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The text to paste at the other site.
    pub token: String,
    /// When it ceases to be good, seconds since 1970.
    pub expires_at: u64,
}

/// See the module's documentation.
pub struct PairingDesk {
    site: SiteId,
    name: String,
    catalogue: Arc<dyn Catalogue>,
    book: Arc<PeerBook>,
    /// Held over a change, I/O included, as the book's is.
    invites: Mutex<Invites>,
    /// Copy of [`Invites::open_until`], for those that cannot wait.
    open_until: AtomicU64,
}

impl PairingDesk {
    /// The desk of the site with this id and name.
    pub fn open(site: SiteId, name: String, catalogue: Arc<dyn Catalogue>, book: Arc<PeerBook>) -> io::Result<Self> {
        let invites = match catalogue.get(INVITES_KEY)? {
            Some(stored) => serde_json::from_slice(&stored)?,
            None => Invites::default(),
        };
        let open_until = AtomicU64::new(invites.open_until());
        Ok(Self { site, name, catalogue, book, invites: Mutex::new(invites), open_until })
    }

    /// The site that the desk is at.
    pub(super) fn site(&self) -> SiteId {
        self.site
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The peers that it knows.
    pub fn book(&self) -> &Arc<PeerBook> {
        &self.book
    }

    /// Makes a token, good once and for `ttl`. Blocks.
    pub fn invite(&self, addresses: Vec<String>, ttl: Duration) -> Result<Invitation, InviteError> {
        if addresses.is_empty() {
            return Err(InviteError::NoAddress);
        }
        if let Some(bad) = addresses.iter().find(|address| !name::is_address(address)) {
            return Err(InviteError::Address(bad.clone()));
        }
        if ttl > MAX_TTL {
            return Err(InviteError::TooLong);
        }
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(InviteError::Random)?;
        let now = unix_now();
        let expires_at = now + ttl.as_secs();
        let mut invites = self.invites();
        let mut changed = invites.clone();
        let secret = changed.issue(secret, now, expires_at).map_err(|_| InviteError::TooMany)?;
        self.catalogue.apply(&[change(&changed)?], Persist::Synced)?;
        self.replace(&mut invites, changed);
        drop(invites);
        let token = Token { inviter: self.site, name: self.name.clone(), addresses, expires_at, secret };
        Ok(Invitation { token: token.encode(), expires_at })
    }

    /// Removes a peer; its key is a stranger's from now on. Blocks.
    pub fn remove(&self, id: &SiteId) -> io::Result<Option<Peer>> {
        let mut invites = self.invites();
        let mut changed = invites.clone();
        changed.forget(id);
        let removed = self.book.remove(id, &[change(&changed)?])?;
        if removed.is_some() {
            self.replace(&mut invites, changed);
        }
        Ok(removed)
    }

    /// Whether `joiner` may, and if so, its record.
    pub(super) fn decide(&self, joiner: SiteId, join: Join, binding: &[u8]) -> Answer {
        let mut invites = self.invites();
        let mut changed = invites.clone();
        let proves = |secret: &_| proof(secret, &self.site, &joiner, binding) == join.proof;
        if let Err(not_welcome) = changed.redeem(joiner, unix_now(), proves) {
            return not_welcome.into();
        }
        if join.name == self.name {
            return refused(Refusal::NameTaken, format!("it is named {} itself: start one of the two with another --site name", self.name));
        }
        let peer = Peer { id: joiner, name: join.name, addresses: join.addresses };
        let recorded = change(&changed).map_err(RecordError::from).and_then(|along| self.book.record(peer, &[along]));
        match recorded {
            Ok(()) => {
                self.replace(&mut invites, changed);
                Answer::Welcome
            }
            Err(RecordError::NameTaken(name)) => refused(
                Refusal::NameTaken,
                format!("it has another peer named {name}: remove that one there, or start this site with another --site name"),
            ),
            Err(error @ RecordError::TooMany) => refused(Refusal::Failed, error.to_string()),
            Err(RecordError::Io(error)) => {
                warn!(%error, "cannot record a peer");
                refused(Refusal::Failed, "it could not record this site: its log says why".to_owned())
            }
        }
    }

    fn invites(&self) -> MutexGuard<'_, Invites> {
        self.invites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, invites: &mut Invites, changed: Invites) {
        self.open_until.store(changed.open_until(), Ordering::Relaxed);
        *invites = changed;
    }
}

impl PeerPolicy for PairingDesk {
    fn admission(&self, site: &SiteId) -> Admission {
        if self.book.find(site).is_some() {
            Admission::Peer
        } else if unix_now() < self.open_until.load(Ordering::Relaxed) {
            Admission::Pairing
        } else {
            Admission::Unknown
        }
    }
}

impl From<NotWelcome> for Answer {
    fn from(not_welcome: NotWelcome) -> Self {
        match not_welcome {
            NotWelcome::Unknown => refused(Refusal::Unknown, "it knows no such invitation".to_owned()),
            NotWelcome::Used => refused(Refusal::Used, "the token was already used".to_owned()),
            NotWelcome::Expired { ago } => refused(Refusal::Expired, TokenError::Expired { ago }.to_string()),
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn refused(refusal: Refusal, text: String) -> Answer {
    Answer::Refused { refusal, text }
}

fn change(invites: &Invites) -> io::Result<Change> {
    Ok((INVITES_KEY.to_vec(), Some(serde_json::to_vec(invites)?)))
}
