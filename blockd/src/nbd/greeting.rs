//! Clients in the handshake: those that take long have half of the places.
//!
//! One that says nothing has its place until the deadline. So that some of them do not keep out everybody else, one client too many hangs up
//! on the one that has taken longest so far: a client that knows what it wants is through long before that.

use super::exports::ConnectionId;
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nobody is hung up on before: many clients may come at once, all of them in earnest.
const GRACE: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Greeting {
    limit: usize,
    /// In the order of arrival, without those that were hung up on.
    clients: Mutex<VecDeque<Client>>,
}

struct Client {
    id: ConnectionId,
    socket: Arc<OwnedFd>,
    since: Instant,
}

impl Greeting {
    /// For as many places as `max_connections`.
    pub(super) fn new(max_connections: usize) -> Self {
        Self { limit: max_connections.div_ceil(2), clients: Mutex::default() }
    }

    /// A client's handshake begins.
    pub(super) fn enter(&self, id: ConnectionId, socket: Arc<OwnedFd>) {
        let mut clients = self.lock();
        clients.push_back(Client { id, socket, since: Instant::now() });
        if clients.len() > self.limit {
            hang_up_on_the_first(&mut clients);
        }
    }

    /// It is over.
    pub(super) fn leave(&self, id: ConnectionId) {
        self.lock().retain(|client| client.id != id);
    }

    /// There was no place for a client: there is one soon, if somebody in the handshake has it.
    pub(super) fn make_room(&self) {
        hang_up_on_the_first(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hang_up_on_the_first(clients: &mut VecDeque<Client>) {
    if let Some(client) = clients.pop_front_if(|client| client.since.elapsed() >= GRACE) {
        // A client that is gone already needs no hanging up.
        let _ = shutdown(&client.socket, Shutdown::Both);
    }
}
