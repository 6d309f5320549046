//! The two messages of a pairing: the joiner's request and the inviter's answer.

use super::name::{self, MAX_ADDRESSES};
use super::token::Secret;
use crate::identity::SiteId;
use crate::transport::FieldError;
use crate::transport::fields::{FieldReader, put_text, put_texts};
use std::net::{IpAddr, SocketAddr};

/// Longest message.
pub(super) const MAX_MESSAGE_BYTES: usize = 4096;

/// Length of a proof.
const PROOF_BYTES: usize = 32;

/// Domain of the key that proofs are made with.
const PROOF_CONTEXT: &str = "tern 2026-11 pairing: joiner knows the token";

/// A site asks to become a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// Its name.
    pub(super) name: String,
    /// Where it can be reached; empty: at the address its packets come from.
    pub(super) addresses: Vec<String>,
    /// The port it listens at.
    pub(super) port: u16,
    /// See [`proof`].
    pub(super) proof: [u8; PROOF_BYTES],
}

impl Join {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, &self.name);
        put_texts(&mut out, &self.addresses, MAX_ADDRESSES);
        out.extend_from_slice(&self.port.to_le_bytes());
        out.extend_from_slice(&self.proof);
        out
    }

    /// The request of a site whose packets come from `ip`: without addresses of its own it is reached there, if it listens at all.
    pub(super) fn seen_at(mut self, ip: IpAddr) -> Self {
        if self.addresses.is_empty() && self.port != 0 {
            self.addresses.push(SocketAddr::new(ip, self.port).to_string());
        }
        self
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, FieldError> {
        let mut reader = FieldReader::new(message);
        let name = reader.text("name")?;
        let addresses = reader.texts("addresses", MAX_ADDRESSES)?;
        if !name::is_site_name(&name) {
            return Err(FieldError::Invalid("name"));
        }
        if !addresses.iter().all(|address| name::is_address(address)) {
            return Err(FieldError::Invalid("addresses"));
        }
        Ok(Self { name, addresses, port: reader.u16("port")?, proof: reader.array("proof")? })
    }
}

/// What the inviter says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Both are peers now.
    Welcome,
    /// They are not.
    Refused {
        /// Which check failed.
        refusal: Refusal,
        /// In words.
        text: String,
    },
}

/// Which check of a join failed. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// No open invitation has this secret.
    Unknown = 1,
    /// Another site used the token.
    Used = 2,
    /// The token is too old.
    Expired = 3,
    /// The joiner's name is taken at the inviter.
    NameTaken = 4,
    /// The request is malformed.
    Malformed = 5,
    /// The inviter could not record the peer.
    Failed = 6,
}

impl Refusal {
    const ALL: [Self; 6] = [Self::Unknown, Self::Used, Self::Expired, Self::NameTaken, Self::Malformed, Self::Failed];
}

/// The answer's first byte when all is well.
const WELCOME: u8 = 0;

impl Answer {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome => vec![WELCOME],
            Self::Refused { refusal, text } => {
                let mut out = vec![*refusal as u8];
                put_text(&mut out, text);
                out
            }
        }
    }

    pub(super) fn decode(message: &[u8]) -> Result<Self, FieldError> {
        let mut reader = FieldReader::new(message);
        match reader.u8("verdict")? {
            WELCOME => Ok(Self::Welcome),
            number => {
                // A later release may refuse for reasons that this one does not know: the words say it.
                let refusal = Refusal::ALL.into_iter().find(|refusal| *refusal as u8 == number).unwrap_or(Refusal::Failed);
                Ok(Self::Refused { refusal, text: reader.text("reason")? })
            }
        }
    }
}

/// Shows that its maker knows the secret, for one inviter, one joiner and one connection. Compared in constant time.
pub(super) fn proof(secret: &Secret, inviter: &SiteId, joiner: &SiteId, binding: &[u8]) -> blake3::Hash {
    let key = blake3::derive_key(PROOF_CONTEXT, &secret.0);
    blake3::Hasher::new_keyed(&key).update(inviter.as_bytes()).update(joiner.as_bytes()).update(binding).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{PROTOCOL, example};
    use proptest::prelude::*;

    fn join() -> Join {
        Join { name: "oregon".into(), addresses: vec!["site-b.example:7447".into()], port: 7447, proof: [3; 32] }
    }

    #[test]
    fn messages_have_the_documented_bytes() {
        let (inviter, joiner) = (SiteId::of_public_key(b"osaka"), SiteId::of_public_key(b"oregon"));
        let binding: Vec<u8> = (0..32).collect();
        let proof = *proof(&Secret([7; 16]), &inviter, &joiner, &binding).as_bytes();
        assert_eq!(Join { proof, ..join() }.encode(), example(PROTOCOL, "join"));
        assert_eq!(Answer::Welcome.encode(), example(PROTOCOL, "welcome"));
        let refused = Answer::Refused { refusal: Refusal::Expired, text: "too late".into() };
        assert_eq!(refused.encode(), example(PROTOCOL, "not-welcome"));
    }

    #[test]
    fn messages_come_back() {
        assert_eq!(Join::decode(&join().encode()), Ok(join()));
        for refusal in Refusal::ALL {
            let answer = Answer::Refused { refusal, text: "why".into() };
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        assert_eq!(Answer::decode(&Answer::Welcome.encode()), Ok(Answer::Welcome));
        assert_eq!(Answer::decode(b"\x63\x03new"), Ok(Answer::Refused { refusal: Refusal::Failed, text: "new".into() }));
    }

    #[test]
    fn what_cannot_be_a_name_or_address_is_refused() {
        let with_name = Join { name: "../x".into(), ..join() };
        assert_eq!(Join::decode(&with_name.encode()), Err(FieldError::Invalid("name")));
        let with_address = Join { addresses: vec!["a b".into()], ..join() };
        assert_eq!(Join::decode(&with_address.encode()), Err(FieldError::Invalid("addresses")));
    }

    #[test]
    fn a_proof_is_good_for_one_secret_one_pair_and_one_connection() {
        let (a, b) = (SiteId::of_public_key(b"a"), SiteId::of_public_key(b"b"));
        let (secret, other) = (Secret([1; 16]), Secret([2; 16]));
        let good = proof(&secret, &a, &b, b"binding");
        assert_eq!(good, proof(&secret, &a, &b, b"binding"));
        for bad in [proof(&other, &a, &b, b"binding"), proof(&secret, &b, &a, b"binding"), proof(&secret, &a, &b, b"another")] {
            assert_ne!(good, bad);
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(join) = Join::decode(&bytes) {
                prop_assert_eq!(Join::decode(&join.encode()), Ok(join));
            }
            let _ = Answer::decode(&bytes);
        }
    }
}
