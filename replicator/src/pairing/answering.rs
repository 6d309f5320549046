//! Answering the sites that bring a token.

use super::desk::{PairingDesk, refused};
use super::messages::{Answer, Join, MAX_MESSAGE_BYTES, Refusal};
use crate::transport::{CloseCode, LogLimit, PairingConnection, StreamError, Transport};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Sites that are answered at once.
const MAX_ANSWERING: usize = 4;

/// From the end of the handshake to the end of the connection.
const PAIRING_DEADLINE: Duration = Duration::from_secs(10);

/// A wrong guess of a secret holds its place for so long: four guesses in a second, and no more log lines than that.
const GUESS_DELAY: Duration = Duration::from_secs(1);

impl PairingDesk {
    /// Answers until the transport stops. A transport has one desk: a second one ends at once.
    pub fn serve(self: &Arc<Self>, transport: &Transport) -> JoinHandle<()> {
        let (desk, transport) = (self.clone(), transport.clone());
        tokio::spawn(async move {
            let Some(mut pairings) = transport.pairings().await else { return };
            drop(transport);
            let log_limit = Arc::new(LogLimit::new());
            let places = Arc::new(Semaphore::new(MAX_ANSWERING));
            while let Some(connection) = pairings.recv().await {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let (desk, log_limit) = (desk.clone(), log_limit.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(PAIRING_DEADLINE, desk.answer(&connection)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            if let Some(left_out) = log_limit.admit(Instant::now()) {
                                warn!(site = %connection.peer(), address = %connection.remote_address(), %error, left_out, "pairing broken off");
                            }
                        }
                        Err(_) => connection.close(CloseCode::Deadline, "the pairing took too long"),
                    }
                    drop(place);
                });
            }
        })
    }

    async fn answer(self: Arc<Self>, connection: &PairingConnection) -> Result<(), StreamError> {
        let (mut send, mut recv) = connection.accept().await?;
        recv.set_limit(MAX_MESSAGE_BYTES);
        let message = recv.recv().await?.ok_or(StreamError::CutShort)?;
        let binding = connection.binding().map_err(StreamError::Closed)?;
        let (joiner, address) = (connection.peer(), connection.remote_address());
        let deciding = tokio::task::spawn_blocking(move || match Join::decode(&message) {
            Ok(join) => self.decide(joiner, join.seen_at(address.ip()), &binding),
            Err(error) => refused(Refusal::Malformed, format!("bad request: {error}")),
        });
        let answer = deciding.await.unwrap_or_else(|_| refused(Refusal::Failed, "it is stopping".to_owned()));
        match &answer {
            Answer::Welcome => info!(site = %joiner, %address, "peer joined"),
            Answer::Refused { text, .. } => warn!(site = %joiner, %address, reason = text, "pairing refused"),
        }
        if matches!(answer, Answer::Refused { refusal: Refusal::Unknown, .. }) {
            tokio::time::sleep(GUESS_DELAY).await;
        }
        send.send(Bytes::from(answer.encode())).await?;
        send.finish();
        // The joiner closes when it has read the answer.
        connection.closed().await;
        Ok(())
    }
}
