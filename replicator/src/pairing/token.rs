//! The token that an operator carries from one site to the other: one line of text.
//!
//! `tern1-` and then, in URL-safe base64, little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 2 | length of everything, in bytes: tells a token that was cut short from one that was altered |
//! | 32 | id of the site that invites: the key to expect |
//! | 16 | the secret, good for one pairing |
//! | 8 | when it expires, seconds since 1970 |
//! | 1 + n | name of the site that invites |
//! | 1 + addresses × (1 + n) | where it can be reached, `HOST:PORT` each |
//! | 4 | start of the BLAKE3 of all before |

use super::name::{self, MAX_ADDRESSES};
use crate::identity::SiteId;
use crate::transport::fields::{FieldReader, put_text, put_texts};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::time::Duration;

/// How a token begins.
const PREFIX: &str = "tern1-";

/// What every version's prefix begins with.
const FAMILY: &str = "tern";

/// Longest token, in characters.
const MAX_TOKEN_CHARS: usize = 4096;

const LEN_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;

/// Length of a [`Secret`].
pub(super) const SECRET_BYTES: usize = 16;

/// What proves that a site was invited.
#[derive(Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Secret(pub(super) [u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The site that invites.
    pub inviter: SiteId,
    /// Its name.
    pub name: String,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// When the token ceases to be good, seconds since 1970.
    pub expires_at: u64,
    pub(super) secret: Secret,
}

/// Why a text is no token that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is no token: one begins with {PREFIX}")]
    NotAToken,
    /// A later release made it.
    #[error("the token was made by a later release: upgrade this site first")]
    Newer,
    /// Its end is missing.
    #[error("the token is cut short: copy the whole line")]
    CutShort,
    /// Something in it was changed.
    #[error("the token is damaged: copy it again")]
    Damaged,
    /// It is too old.
    #[error("the token expired {} ago: make a new one with tern peer invite", in_words(*ago))]
    Expired {
        /// Since when.
        ago: Duration,
    },
}

impl Token {
    /// The text to paste.
    pub fn encode(&self) -> String {
        let mut bytes = vec![0; LEN_BYTES];
        bytes.extend_from_slice(self.inviter.as_bytes());
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.expires_at.to_le_bytes());
        put_text(&mut bytes, &self.name);
        put_texts(&mut bytes, &self.addresses, MAX_ADDRESSES);
        let len = (bytes.len() + CHECKSUM_BYTES) as u16;
        bytes[..LEN_BYTES].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a pasted text; white space in it does not count.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN_CHARS {
            return Err(TokenError::NotAToken);
        }
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let body = text.strip_prefix(PREFIX).ok_or_else(|| without_prefix(&text))?;
        let bytes = whole(body)?;
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if *sum != checksum(content) {
            return Err(TokenError::Damaged);
        }
        Self::fields(&content[LEN_BYTES..]).ok_or(TokenError::Damaged)
    }

    /// Fails if the token is too old at `now`, seconds since 1970.
    pub fn check_age(&self, now: u64) -> Result<(), TokenError> {
        match now.checked_sub(self.expires_at) {
            Some(seconds) => Err(TokenError::Expired { ago: Duration::from_secs(seconds) }),
            None => Ok(()),
        }
    }

    fn fields(content: &[u8]) -> Option<Self> {
        let mut reader = FieldReader::new(content);
        let inviter = SiteId::from_bytes(reader.array("inviter").ok()?);
        let secret = Secret(reader.array("secret").ok()?);
        let expires_at = reader.u64("expiry").ok()?;
        let name = reader.text("name").ok()?;
        let addresses = reader.texts("addresses", MAX_ADDRESSES).ok()?;
        name::is_site_name(&name).then_some(Self { inviter, name, addresses, expires_at, secret })
    }
}

/// The token's bytes, if all are there.
fn whole(body: &str) -> Result<Vec<u8>, TokenError> {
    let start = body.as_bytes().get(..4).ok_or(TokenError::CutShort)?;
    let start = URL_SAFE_NO_PAD.decode(start).map_err(|_| TokenError::Damaged)?;
    let len = usize::from(u16::from_le_bytes([start[0], start[1]]));
    let chars = (len * 4).div_ceil(3);
    match body.len() {
        have if have < chars => Err(TokenError::CutShort),
        have if have > chars || len < LEN_BYTES + CHECKSUM_BYTES => Err(TokenError::Damaged),
        _ => URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged),
    }
}

fn without_prefix(text: &str) -> TokenError {
    let version = text.strip_prefix(FAMILY).and_then(|rest| rest.split_once('-'));
    match version {
        Some((digits, _)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => TokenError::Newer,
        _ if !text.is_empty() && PREFIX.starts_with(text) => TokenError::CutShort,
        _ => TokenError::NotAToken,
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(content);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash.as_bytes()[..CHECKSUM_BYTES]);
    sum
}

/// A span as a person says it.
pub(super) fn in_words(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{PROTOCOL, example};
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            inviter: SiteId::of_public_key(b"osaka"),
            name: "osaka".into(),
            addresses: vec!["192.0.2.1:7447".into(), "[2001:db8::1]:7447".into()],
            expires_at: 1_000_000,
            secret: Secret([7; SECRET_BYTES]),
        }
    }

    #[test]
    fn a_token_is_one_line_and_comes_back() {
        let text = token().encode();
        assert!(text.starts_with(PREFIX) && text.len() < 250, "{text}");
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(Token::decode(&text), Ok(token()));
        assert_eq!(Token::decode(&format!("  {}\n {}\r\n", &text[..50], &text[50..])), Ok(token()));
    }

    #[test]
    fn a_token_has_the_documented_bytes() {
        let token = Token { addresses: vec!["192.0.2.1:7447".into()], expires_at: 1_800_000_000, ..token() };
        assert_eq!(token.encode(), format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(example(PROTOCOL, "token"))));
        assert!(PROTOCOL.contains(&token.encode()));
    }

    #[test]
    fn a_token_cut_short_anywhere_is_told_so() {
        let text = token().encode();
        for len in 1..text.len() {
            assert_eq!(Token::decode(&text[..len]), Err(TokenError::CutShort), "{len}");
        }
    }

    #[test]
    fn a_token_with_any_character_altered_is_damaged() {
        let text = token().encode();
        for at in PREFIX.len() + 4..text.len() {
            for other in ['A', 'b', '7', '!'] {
                let mut altered: Vec<char> = text.chars().collect();
                if altered[at] == other {
                    continue;
                }
                altered[at] = other;
                assert_eq!(Token::decode(&altered.into_iter().collect::<String>()), Err(TokenError::Damaged), "{at}");
            }
        }
        assert_eq!(Token::decode(&format!("{text}A")), Err(TokenError::Damaged));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in ["", "hello", "tern-", "ternx-abc", &"tern1".repeat(1000), "é"] {
            assert_eq!(Token::decode(text), Err(TokenError::NotAToken), "{text}");
        }
        assert_eq!(Token::decode("tern2-AAAA"), Err(TokenError::Newer));
    }

    #[test]
    fn an_old_token_says_how_old_it_is() {
        assert_eq!(token().check_age(999_999), Ok(()));
        let error = token().check_age(1_000_000 + 600).unwrap_err();
        assert_eq!(error, TokenError::Expired { ago: Duration::from_secs(600) });
        assert!(error.to_string().contains("10 min"), "{error}");
    }

    #[test]
    fn the_secret_stays_out_of_logs() {
        assert!(!format!("{:?}", token()).contains('7'.to_string().repeat(2).as_str()) || format!("{:?}", token().secret) == "Secret(…)");
        assert_eq!(format!("{:?}", token().secret), "Secret(…)");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = Token::decode(&text);
        }

        #[test]
        fn no_body_panics(body in "[A-Za-z0-9_-]{0,300}") {
            let _ = Token::decode(&format!("{PREFIX}{body}"));
        }

        #[test]
        fn no_content_with_a_good_checksum_panics(content in proptest::collection::vec(any::<u8>(), 2..300)) {
            let mut bytes = content;
            let len = (bytes.len() + CHECKSUM_BYTES) as u16;
            bytes[..LEN_BYTES].copy_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&checksum(&bytes));
            let _ = Token::decode(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)));
        }

        #[test]
        fn every_token_comes_back(
            key in any::<[u8; 32]>(), secret in any::<[u8; 16]>(), expires_at in any::<u64>(),
            name in "[a-z0-9][a-z0-9._-]{0,63}", addresses in proptest::collection::vec("[a-z0-9.]{1,60}:[0-9]{1,5}", 0..=MAX_ADDRESSES),
        ) {
            let token = Token { inviter: SiteId::from_bytes(key), name, addresses, expires_at, secret: Secret(secret) };
            prop_assert_eq!(Token::decode(&token.encode()), Ok(token));
        }
    }
}
