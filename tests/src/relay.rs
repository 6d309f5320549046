//! A link that can be cut, or made slow: passes datagrams on to one site, and their answers back.

use crate::{Pair, Site};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How soon a thread notices that the relay is gone.
const TICK: Duration = Duration::from_millis(200);
const MAX_DATAGRAM_BYTES: usize = 65536;

/// See the module's documentation. Dropped, it ends.
pub struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
}

#[derive(Default)]
struct Link {
    cut: AtomicBool,
    /// How long a datagram is under way, each way.
    delay_ms: AtomicU64,
    over: AtomicBool,
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
        let front = Arc::new(socket());
        let relay = Self { address: front.local_addr().expect("a bound socket"), link: Arc::default() };
        let (receiver, link, mut backs) = (front.clone(), relay.link.clone(), HashMap::<SocketAddr, Arc<UdpSocket>>::new());
        let to_target = move |datagram: &[u8], from| {
            let back = backs.entry(from).or_insert_with(|| {
                let (back, front) = (Arc::new(socket()), front.clone());
                pass(back.clone(), link.clone(), move |datagram, _| drop(front.send_to(datagram, from)));
                back
            });
            let _ = back.send_to(datagram, target);
        };
        pass(receiver, relay.link.clone(), to_target);
        relay
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Drops everything from now on, and what is under way.
    pub fn cut(&self) {
        self.link.cut.store(true, SeqCst);
    }

    /// Passes on again.
    pub fn heal(&self) {
        self.link.cut.store(false, SeqCst);
    }

    /// Lets what comes from now on be under way for so long; what comes later never overtakes it.
    pub fn delay(&self, span: Duration) {
        self.link.delay_ms.store(span.as_millis() as u64, SeqCst);
    }
}

/// Hands on what comes, one way, until it is over.
fn pass(socket: Arc<UdpSocket>, link: Arc<Link>, mut hand_on: impl FnMut(&[u8], SocketAddr) + Send + 'static) {
    let (under_way, arriving) = mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>();
    let its_link = link.clone();
    std::thread::spawn(move || {
        for (due, datagram, from) in arriving {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if !its_link.cut.load(SeqCst) {
                hand_on(&datagram, from);
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        while !link.over.load(SeqCst) {
            // A timeout, or a port that nobody listens at yet.
            let Ok((len_bytes, from)) = socket.recv_from(&mut buffer) else { continue };
            let due = Instant::now() + Duration::from_millis(link.delay_ms.load(SeqCst));
            if !link.cut.load(SeqCst) {
                let _ = under_way.send((due, buffer[..len_bytes].to_vec(), from));
            }
        }
    });
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.over.store(true, SeqCst);
    }
}

/// A pair whose link can be cut, or made slow.
pub struct Linked {
    /// The sites.
    pub pair: Pair,
    relays: [Relay; 2],
}

impl Linked {
    /// Starts both sites, with a volume of so many MiB, and the replication over the link.
    pub fn start(size_mib: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (a, b) = (Site::start("osaka", directory.path()), Site::start("oregon", directory.path()));
        let relays = [Relay::to(a.listen()), Relay::to(b.listen())];
        let addresses = relays.each_ref().map(Relay::address);
        a.tern(&["volume", "create", "vm1", "--size", &format!("{size_mib}M")]);
        Self { pair: Pair::of(directory, a, b, addresses.each_ref().map(String::as_str), "1s"), relays }
    }

    /// Drops everything from now on.
    pub fn cut(&self) {
        self.relays.iter().for_each(Relay::cut);
    }

    /// Passes on again.
    pub fn heal(&self) {
        self.relays.iter().for_each(Relay::heal);
    }

    /// Lets a question and its answer be under way for so long together.
    pub fn delay(&self, round_trip: Duration) {
        self.relays.iter().for_each(|relay| relay.delay(round_trip / 2));
    }
}
