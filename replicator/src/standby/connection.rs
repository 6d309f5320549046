//! Serves a replication stream that a primary opened.

use super::service::{Input, Session, StandbyService};
use crate::counters::Counters;
use crate::site_link;
use crate::transport::{IncomingStream, StreamError, WireMeter};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::sync::{Semaphore, mpsc};

/// Bytes of frames that wait for the thread: then the stream waits.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What a frame that waits takes beside its bytes: many small ones are not free.
const WAITING_OVERHEAD_BYTES: usize = 256;

/// Answers that the primary does not take: more than it ever waits for, so it breaks the protocol.
const MAX_UNREAD_ANSWERS: usize = 128;

/// Numbers connections, over all standbys.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

impl StandbyService {
    /// A number for the next stream.
    pub fn next_session() -> Session {
        NEXT_SESSION.fetch_add(1, Relaxed)
    }

    /// One stream, from its beginning to its end.
    pub async fn serve(&self, session: Session, mut stream: IncomingStream, counters: &Counters) -> Result<(), StreamError> {
        let (sink, mut answers) = mpsc::channel::<Bytes>(MAX_UNREAD_ANSWERS);
        let meter = WireMeter::new(&stream.link);
        let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        self.tell(Input::Connected(session, sink));
        let (send, recv) = (&mut stream.send, &mut stream.recv);
        let write = async {
            while let Some(frame) = answers.recv().await {
                let len_bytes = frame.len();
                send.send(frame).await?;
                meter.sent(len_bytes);
            }
            Ok(())
        };
        let read = async {
            while let Some(frame) = recv.recv().await? {
                meter.received(frame.len());
                let Ok(place) = room.clone().acquire_many_owned((frame.len() + WAITING_OVERHEAD_BYTES) as u32).await else { break };
                self.tell(Input::Frame(session, frame, place));
            }
            Ok(())
        };
        let mut is_let_go = false;
        let mut ended = tokio::select! {
            ended = write => {
                is_let_go = ended.is_ok();
                ended
            }
            ended = read => ended,
            () = site_link::account(&meter, counters) => Ok(()),
        };
        if is_let_go {
            // What it still brings, or how it ends, is nobody's business. Its last answer may be a refusal: that must arrive.
            stream.send.finish();
            ended = stream.send.stopped().await;
        }
        self.tell(Input::Disconnected(session));
        site_link::account_once(&meter, counters);
        ended
    }
}
