//! Whose stream each standby has: the site that is attached says how the volume is replicated, and no other one does.

use super::Daemon;
use super::handover::wrong_state;
use super::part::Part;
use super::volumes::OpenVolume;
use crate::admin::Outcome;
use blockd_api::{ApiError, ErrorCode};
use replicator::standby::{Session, StandbyService};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// From which site each stream comes.
#[derive(Default)]
pub(super) struct Streams(Mutex<HashMap<Session, String>>);

/// A stream that goes on until this is dropped.
pub(super) struct Stream<'a> {
    streams: &'a Streams,
    pub session: Session,
}

impl Streams {
    /// A stream of this site begins.
    pub fn begin(&self, site: &str) -> Stream<'_> {
        let session = StandbyService::next_session();
        self.0.lock().expect("no panic under this lock").insert(session, site.to_owned());
        Stream { streams: self, session }
    }

    fn is_of(&self, session: Session, site: &str) -> bool {
        self.0.lock().expect("no panic under this lock").get(&session).is_some_and(|from| from == site)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.streams.0.lock().expect("no panic under this lock").remove(&self.session);
    }
}

impl Daemon {
    /// The standby of a volume whose primary, the one that is attached, is this site.
    pub(super) fn standby_of<'a>(&self, site: &str, open: Option<&'a OpenVolume>) -> Outcome<&'a Arc<StandbyService>> {
        let Some(Part::Standby(standby)) = open.filter(|open| open.record.peer_at(site).is_some()).map(|open| &open.part) else {
            return Err(ApiError::new(ErrorCode::NotFound, "this site has no standby of the volume"));
        };
        let session = standby.status().borrow().session;
        if session.is_some_and(|session| self.streams.is_of(session, site)) {
            Ok(standby)
        } else {
            Err(wrong_state("another site is the primary of the volume's standby here, or none".into(), "tell it once it is attached"))
        }
    }
}
