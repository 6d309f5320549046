//! The exchange of hellos on a connection's first stream: the dialling side speaks first.

use super::close::{CloseCode, Closed};
use super::fields::FieldError;
use super::hello::{Hello, MAX_HELLO_BYTES, VersionRange};
use super::link::{Agreement, Direction, Link, accept_stream, open_stream};
use super::settings::Settings;
use super::stream::{RecvHalf, StreamError};
use crate::identity::SiteId;
use bytes::Bytes;
use quinn::Connection;
use std::sync::Arc;

/// Why two sites do not talk.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    /// No protocol version in common.
    #[error("the peer speaks protocol {theirs}")]
    NoCommonVersion {
        /// The peer's versions.
        theirs: VersionRange,
    },
    /// What came is no hello.
    #[error("bad hello: {0}")]
    BadHello(#[from] FieldError),
    /// The connection ended before.
    #[error("{0}")]
    Lost(#[source] Closed),
}

impl GreetingError {
    /// Tells the other side.
    pub(super) fn close(&self, connection: &Connection, ours: VersionRange) {
        match self {
            Self::NoCommonVersion { theirs } => {
                let reason = format!("this site speaks protocol {ours}, yours {theirs}");
                connection.close(CloseCode::NoCommonVersion.number(), reason.as_bytes());
            }
            Self::BadHello(error) => connection.close(CloseCode::BadHello.number(), error.to_string().as_bytes()),
            Self::Lost(_) => connection.close(CloseCode::Done.number(), b""),
        }
    }
}

/// The dialling side's part.
pub(super) async fn greet(connection: &Connection, ours: &Hello) -> Result<Agreement, GreetingError> {
    let (mut send, recv) = open_stream(connection).await.map_err(lost)?;
    send.send(Bytes::from(ours.encode())).await.map_err(lost)?;
    let agreement = agree(ours, read_hello(recv).await?)?;
    send.finish();
    Ok(agreement)
}

/// The accepting side's part.
pub(super) async fn answer(connection: &Connection, ours: &Hello) -> Result<Agreement, GreetingError> {
    let (mut send, recv) = accept_stream(connection).await.map_err(lost)?;
    let agreement = agree(ours, read_hello(recv).await?)?;
    send.send(Bytes::from(ours.encode())).await.map_err(lost)?;
    send.finish();
    Ok(agreement)
}

/// The link that a dialled connection becomes.
pub(super) fn dialled(connection: Connection, peer: SiteId, agreement: Agreement, settings: Arc<Settings>) -> Link {
    Link::new(connection, peer, Direction::Dialled, agreement, settings)
}

fn agree(ours: &Hello, theirs: Hello) -> Result<Agreement, GreetingError> {
    let version = ours.versions.highest_common(theirs.versions).ok_or(GreetingError::NoCommonVersion { theirs: theirs.versions })?;
    Ok(Agreement { version, features: ours.features & theirs.features, hello: theirs })
}

async fn read_hello(mut recv: RecvHalf) -> Result<Hello, GreetingError> {
    recv.set_limit(MAX_HELLO_BYTES);
    let message = recv.recv().await.map_err(lost)?.ok_or(FieldError::CutShort("hello"))?;
    Ok(Hello::decode(&message)?)
}

fn lost(error: StreamError) -> GreetingError {
    match error {
        StreamError::Closed(closed) => GreetingError::Lost(closed),
        StreamError::TooLong { .. } => GreetingError::BadHello(FieldError::Invalid("length")),
        StreamError::CutShort => GreetingError::BadHello(FieldError::CutShort("hello")),
        StreamError::GivenUp(_) | StreamError::Ended => GreetingError::BadHello(FieldError::CutShort("stream")),
    }
}
