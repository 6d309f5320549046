//! Two sites that pair over loopback.

use super::*;
use crate::catalogue::{Catalogue, Change, Persist};
use crate::identity::Identity;
use crate::transport::{DialError, Settings, Transport};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A catalogue in memory; it can be made to fail.
#[derive(Default)]
pub(crate) struct MemoryCatalogue {
    pairs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    full: AtomicBool,
}

impl MemoryCatalogue {
    /// From now on nothing can be written.
    pub(crate) fn fill(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    /// It can again.
    pub(crate) fn make_room(&self) {
        self.full.store(false, Ordering::Relaxed);
    }
}

impl Catalogue for MemoryCatalogue {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.pairs.lock().unwrap().get(key).cloned())
    }

    fn apply(&self, changes: &[Change], _: Persist) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut pairs = self.pairs.lock().unwrap();
        for (key, value) in changes {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        Ok(())
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let pairs = self.pairs.lock().unwrap();
        Ok(pairs.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

const TTL: Duration = Duration::from_secs(900);

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

struct Site {
    identity: Identity,
    catalogue: Arc<MemoryCatalogue>,
    desk: Arc<PairingDesk>,
    transport: Transport,
}

impl Site {
    fn named(name: &str) -> Self {
        Self::with(name, Identity::ephemeral().unwrap(), Arc::default())
    }

    fn with(name: &str, identity: Identity, catalogue: Arc<MemoryCatalogue>) -> Self {
        let book = Arc::new(PeerBook::open(catalogue.clone()).unwrap());
        let desk = Arc::new(PairingDesk::open(identity.id(), name.to_owned(), catalogue.clone(), book).unwrap());
        let settings = Settings { site_name: name.to_owned(), ..Settings::default() };
        let transport = Transport::bind("127.0.0.1:0".parse().unwrap(), identity.clone(), desk.clone(), settings).unwrap();
        desk.serve(&transport);
        Self { identity, catalogue, desk, transport }
    }

    /// What a daemon finds after a restart.
    fn restarted(&self, name: &str) -> Self {
        Self::with(name, self.identity.clone(), self.catalogue.clone())
    }

    fn address(&self) -> String {
        self.transport.local_address().unwrap().to_string()
    }

    fn invite(&self, ttl: Duration) -> String {
        self.desk.invite(vec![self.address()], ttl).unwrap().token
    }

    async fn join(&self, token: &str) -> Result<Peer, JoinError> {
        soon(self.desk.join(&self.transport, token, Vec::new())).await
    }

    async fn dial(&self, other: &Self) -> Result<crate::transport::Link, DialError> {
        soon(self.transport.dial(other.transport.local_address().unwrap(), other.identity.id())).await
    }
}

fn refusal(joined: Result<Peer, JoinError>) -> (Refusal, String) {
    match joined {
        Err(JoinError::Refused { refusal, text, .. }) => (refusal, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_makes_two_sites_peers() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    assert!(oregon.dial(&osaka).await.is_err());
    let peer = oregon.join(&osaka.invite(TTL)).await.unwrap();
    assert_eq!((peer.id, peer.name.as_str()), (osaka.identity.id(), "osaka"));
    let seen = osaka.desk.book().find_by_name("oregon").unwrap();
    assert_eq!((seen.id, seen.addresses), (oregon.identity.id(), vec![oregon.address()]));
    oregon.dial(&osaka).await.unwrap();
    osaka.dial(&oregon).await.unwrap();
    let restarted = osaka.restarted("osaka");
    oregon.dial(&restarted).await.unwrap();
}

#[tokio::test]
async fn a_token_is_good_once_also_across_a_restart() {
    let (osaka, oregon, third) = (Site::named("osaka"), Site::named("oregon"), Site::named("third"));
    let token = osaka.invite(TTL);
    oregon.join(&token).await.unwrap();
    // Another invitation is open, so that the third site is heard at all.
    osaka.invite(TTL);
    let (refused, text) = refusal(third.join(&token).await);
    assert_eq!(refused, Refusal::Used);
    assert!(text.contains("already used"), "{text}");
    let restarted = osaka.restarted("osaka");
    let mut altered = Token::decode(&token).unwrap();
    altered.addresses = vec![restarted.address()];
    assert_eq!(refusal(third.join(&altered.encode()).await).0, Refusal::Used);
    assert!(restarted.desk.book().find_by_name("third").is_none());
}

#[tokio::test]
async fn after_a_lost_answer_the_same_token_gives_the_same_answer() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    let token = osaka.invite(TTL);
    // The answer that came could not be recorded, as though it had been lost.
    oregon.catalogue.fill();
    assert!(matches!(oregon.join(&token).await, Err(JoinError::Record(RecordError::Io(_)))));
    oregon.catalogue.make_room();
    assert!(osaka.desk.book().find_by_name("oregon").is_some());
    oregon.join(&token).await.unwrap();
    oregon.join(&token).await.unwrap();
    oregon.dial(&osaka).await.unwrap();
}

#[tokio::test]
async fn nothing_is_used_up_when_the_inviter_cannot_record() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    let token = osaka.invite(TTL);
    osaka.catalogue.fill();
    assert_eq!(refusal(oregon.join(&token).await).0, Refusal::Failed);
    assert!(oregon.desk.book().peers().is_empty() && osaka.desk.book().peers().is_empty());
    osaka.catalogue.make_room();
    oregon.join(&token).await.unwrap();
}

/// Lesson: a refused connection says why, at both ends (zrepl#517).
#[tokio::test]
async fn an_expired_token_is_told_so_on_both_sides() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    let token = osaka.invite(Duration::ZERO);
    assert!(matches!(oregon.join(&token).await, Err(JoinError::Token(TokenError::Expired { .. }))));
    // A joiner whose clock is behind hears it from the inviter.
    let mut late = Token::decode(&token).unwrap();
    late.expires_at += 1000;
    osaka.invite(TTL);
    let (refused, text) = refusal(oregon.join(&late.encode()).await);
    assert_eq!(refused, Refusal::Expired);
    assert!(text.contains("ago"), "{text}");
}

#[tokio::test]
async fn a_guessed_secret_and_a_site_without_invitations_are_refused() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    let mut guessed = Token::decode(&osaka.invite(TTL)).unwrap();
    guessed.secret.0[0] ^= 1;
    assert_eq!(refusal(oregon.join(&guessed.encode()).await).0, Refusal::Unknown);
    let closed = Site::named("closed");
    guessed.inviter = closed.identity.id();
    guessed.name = "closed".into();
    guessed.addresses = vec![closed.address()];
    let error = oregon.join(&guessed.encode()).await.unwrap_err();
    assert!(error.to_string().contains("no invitation is open"), "{error}");
}

#[tokio::test]
async fn another_site_at_the_tokens_address_is_not_taken_for_the_inviter() {
    let (osaka, oregon, impostor) = (Site::named("osaka"), Site::named("oregon"), Site::named("impostor"));
    let mut token = Token::decode(&osaka.invite(TTL)).unwrap();
    impostor.invite(TTL);
    token.addresses = vec![impostor.address()];
    let error = oregon.join(&token.encode()).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&impostor.identity.id().short()), "{error}");
    token.addresses = vec![impostor.address(), osaka.address()];
    oregon.join(&token.encode()).await.unwrap();
}

#[tokio::test]
async fn names_stay_unique() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    assert!(matches!(osaka.join(&osaka.invite(TTL)).await, Err(JoinError::OwnToken)));
    let namesake = Site::named("osaka");
    assert!(matches!(namesake.join(&osaka.invite(TTL)).await, Err(JoinError::SameName(_))));
    oregon.join(&osaka.invite(TTL)).await.unwrap();
    let second_oregon = Site::named("oregon");
    let (refused, text) = refusal(second_oregon.join(&osaka.invite(TTL)).await);
    assert_eq!(refused, Refusal::NameTaken);
    assert!(text.contains("oregon"), "{text}");
    assert!(matches!(oregon.join(&namesake.invite(TTL)).await, Err(JoinError::NameTaken(_))));
}

#[tokio::test]
async fn a_removed_peer_is_a_stranger_again() {
    let (osaka, oregon) = (Site::named("osaka"), Site::named("oregon"));
    let token = osaka.invite(TTL);
    oregon.join(&token).await.unwrap();
    let id = oregon.identity.id();
    assert_eq!(osaka.desk.remove(&id).unwrap().unwrap().name, "oregon");
    assert_eq!(osaka.desk.remove(&id).unwrap(), None);
    assert!(oregon.dial(&osaka).await.is_err());
    assert!(oregon.join(&token).await.is_err());
    oregon.join(&osaka.invite(TTL)).await.unwrap();
}

#[tokio::test]
async fn an_invitation_needs_sound_addresses_and_a_bounded_life() {
    let osaka = Site::named("osaka");
    assert!(matches!(osaka.desk.invite(Vec::new(), TTL), Err(InviteError::NoAddress)));
    assert!(matches!(osaka.desk.invite(vec!["0.0.0.0:7447".into()], TTL), Err(InviteError::Address(_))));
    assert!(matches!(osaka.desk.invite(vec![osaka.address()], MAX_TTL + TTL), Err(InviteError::TooLong)));
    for _ in 0..MAX_OPEN_INVITES {
        osaka.invite(TTL);
    }
    assert!(matches!(osaka.desk.invite(vec![osaka.address()], TTL), Err(InviteError::TooMany)));
}

#[test]
fn a_damaged_book_is_an_error() {
    let catalogue = Arc::new(MemoryCatalogue::default());
    for (key, value) in [(&b"peer/short"[..], &b"{}"[..]), (&[b"peer/".as_slice(), &[1; 32]].concat(), b"{\"version\":9}")] {
        catalogue.pairs.lock().unwrap().clear();
        catalogue.apply(&[(key.to_vec(), Some(value.to_vec()))], Persist::Synced).unwrap();
        assert!(PeerBook::open(catalogue.clone()).is_err());
    }
}
