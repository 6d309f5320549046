//! A link that can be cut: passes datagrams on to one site, and their answers back.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// How soon a thread notices that the relay is gone.
const TICK: Duration = Duration::from_millis(200);
const MAX_DATAGRAM_BYTES: usize = 65536;

/// See the module's documentation. Dropped, it ends.
pub struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(TICK)).expect("a timeout");
    socket
}

impl Relay {
    /// Listens, and passes on to whoever listens at `target`.
    pub fn to(target: &str) -> Self {
        let target: SocketAddr = target.parse().expect("an address");
        let front = socket();
        let relay = Self { address: front.local_addr().expect("a bound socket"), cut: Arc::default(), over: Arc::default() };
        let (cut, over) = (relay.cut.clone(), relay.over.clone());
        std::thread::spawn(move || {
            let front = Arc::new(front);
            let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            pass(&front.clone(), &cut.clone(), &over.clone(), |datagram, from| {
                let back = backs.entry(from).or_insert_with(|| {
                    let back = Arc::new(socket());
                    let (receiver, front, cut, over) = (back.clone(), front.clone(), cut.clone(), over.clone());
                    std::thread::spawn(move || pass(&receiver, &cut, &over, |datagram, _| drop(front.send_to(datagram, from))));
                    back
                });
                let _ = back.send_to(datagram, target);
            });
        });
        relay
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Drops everything from now on.
    pub fn cut(&self) {
        self.cut.store(true, SeqCst);
    }

    /// Passes on again.
    pub fn heal(&self) {
        self.cut.store(false, SeqCst);
    }
}

/// Hands on what comes, one way, until it is over.
fn pass(socket: &UdpSocket, cut: &AtomicBool, over: &AtomicBool, mut hand_on: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    while !over.load(SeqCst) {
        // A timeout, or a port that nobody listens at yet.
        let Ok((len_bytes, from)) = socket.recv_from(&mut buffer) else { continue };
        if !cut.load(SeqCst) {
            hand_on(&buffer[..len_bytes], from);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}
