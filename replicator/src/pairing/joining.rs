//! Bringing a token to the site that made it.

use super::desk::{PairingDesk, unix_now};
use super::messages::{Answer, Join, MAX_MESSAGE_BYTES, Refusal, proof};
use super::name;
use super::peer_book::{Peer, RecordError};
use super::token::{Token, TokenError};
use crate::transport::{CloseCode, Closed, PairingConnection, StreamError, Transport};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// From the connection to the answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// Addresses that a name may lead to.
const MAX_RESOLVED: usize = 8;

/// Why two sites are not peers now, as the joiner knows it.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is no good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The token is this site's own.
    #[error("this site made the token: paste it at the other site")]
    OwnToken,
    /// A name that both would use.
    #[error("both sites are named {0}: start one of them with another --site name")]
    SameName(String),
    /// One of the inviter's other peers has its name here.
    #[error("there is another peer named {0}: remove it first, or start one of the two with another --site name")]
    NameTaken(String),
    /// Not an address.
    #[error("{0} is not HOST:PORT")]
    Address(String),
    /// None of the token's addresses led to the inviter; what each said.
    #[error("cannot reach {site}: {}", attempts.join("; "))]
    Unreachable {
        /// The inviter's name.
        site: String,
        /// What happened at each address.
        attempts: Vec<String>,
    },
    /// The inviter refused.
    #[error("{site} refused: {text}")]
    Refused {
        /// The inviter's name.
        site: String,
        /// Which check failed.
        refusal: Refusal,
        /// In its words.
        text: String,
    },
    /// The connection was lost before the answer: the pairing can be repeated with the same token.
    #[error("the answer of {site} was lost ({source}): run the same command again")]
    Lost {
        /// The inviter's name.
        site: String,
        /// What happened.
        source: StreamError,
    },
    /// The peer could not be recorded here.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What writes to the disk was broken off.
    #[error("this site is stopping")]
    Stopping,
}

impl PairingDesk {
    /// Makes this site and the one that made the token peers. `addresses` is where the other can reach this site; empty: at the address
    /// that it sees. On success both have recorded the other, durably.
    pub async fn join(self: &Arc<Self>, transport: &Transport, token: &str, addresses: Vec<String>) -> Result<Peer, JoinError> {
        let token = Token::decode(token)?;
        self.check(&token, &addresses)?;
        let connection = reach(transport, &token).await?;
        let asked = tokio::time::timeout(ANSWER_DEADLINE, self.ask(transport, &connection, &token, addresses)).await;
        connection.close(CloseCode::Done, "");
        match asked.unwrap_or(Err(StreamError::Closed(Closed::Silent))) {
            Ok(Answer::Welcome) => {}
            Ok(Answer::Refused { refusal, text }) => return Err(JoinError::Refused { site: token.name, refusal, text }),
            Err(source) => return Err(JoinError::Lost { site: token.name, source }),
        }
        let (desk, peer) = (self.clone(), Peer { id: token.inviter, name: token.name, addresses: token.addresses });
        let recording = tokio::task::spawn_blocking(move || desk.book().record(peer.clone(), &[]).map(|()| peer));
        Ok(recording.await.map_err(|_| JoinError::Stopping)??)
    }

    /// What can be known without asking: afterwards only one side could have recorded the other.
    fn check(&self, token: &Token, addresses: &[String]) -> Result<(), JoinError> {
        if let Some(bad) = addresses.iter().find(|address| !name::is_address(address)) {
            return Err(JoinError::Address(bad.clone()));
        }
        if token.inviter == self.site() {
            return Err(JoinError::OwnToken);
        }
        if token.name == self.name() {
            return Err(JoinError::SameName(token.name.clone()));
        }
        if self.book().find_by_name(&token.name).is_some_and(|other| other.id != token.inviter) {
            return Err(JoinError::NameTaken(token.name.clone()));
        }
        if self.book().is_full_for(&token.inviter) {
            return Err(RecordError::TooMany.into());
        }
        Ok(token.check_age(unix_now())?)
    }

    async fn ask(
        &self,
        transport: &Transport,
        connection: &PairingConnection,
        token: &Token,
        addresses: Vec<String>,
    ) -> Result<Answer, StreamError> {
        let (mut send, mut recv) = connection.open().await?;
        let binding = connection.binding().map_err(StreamError::Closed)?;
        let proof = *proof(&token.secret, &token.inviter, &transport.site(), &binding).as_bytes();
        let port = transport.local_address().map_or(0, |address| address.port());
        let join = Join { name: self.name().to_owned(), addresses, port, proof };
        send.send(Bytes::from(join.encode())).await?;
        send.finish();
        recv.set_limit(MAX_MESSAGE_BYTES);
        let answer = recv.recv().await?.ok_or(StreamError::CutShort)?;
        Answer::decode(&answer).map_err(|_| StreamError::CutShort)
    }
}

/// A connection to the inviter at the first of the token's addresses that leads to it.
async fn reach(transport: &Transport, token: &Token) -> Result<PairingConnection, JoinError> {
    let mut attempts = Vec::new();
    for address in &token.addresses {
        match tokio::net::lookup_host(address).await {
            Ok(resolved) => {
                for resolved in resolved.take(MAX_RESOLVED) {
                    match transport.dial_pairing(resolved, token.inviter).await {
                        Ok(connection) => return Ok(connection),
                        Err(error) => attempts.push(error.to_string()),
                    }
                }
            }
            Err(error) => attempts.push(format!("{address}: {error}")),
        }
    }
    Err(JoinError::Unreachable { site: token.name.clone(), attempts })
}
