//! A long path in virtual time: real QUIC connections, a bottleneck with a bounded queue, delay and random loss. Deterministic, apart from
//! the keys, and a minute of it takes a second: the place to choose and to watch over a congestion controller.

use super::super::send_window::{self, SendWindow};
use super::super::settings::{Reach, Settings, Trust};
use super::super::tls::{self, Purpose};
use super::Congestion;
use crate::identity::Identity;
use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event, ServerConfig, StreamId,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// IPv4 and UDP.
const HEADER_BYTES: u64 = 28;

/// Timers of a real runtime fire up to this late.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// One direction of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathShape {
    pub(super) rate_bits: u64,
    pub(super) round_trip: Duration,
    /// Share of packets that get lost at random.
    pub(super) loss: f64,
    /// Share of what the path holds that may wait before the bottleneck.
    pub(super) queue: f64,
}

impl PathShape {
    pub(super) fn queue_bytes(&self) -> u64 {
        (self.rate_bits as f64 / 8.0 * self.round_trip.as_secs_f64() * self.queue).max(16_384.0) as u64
    }
}

struct Direction {
    shape: PathShape,
    random: StdRng,
    free_at: Instant,
    wire: VecDeque<(Instant, Vec<u8>)>,
    sent_bytes: u64,
    dropped_bytes: u64,
    delivered_bytes: u64,
    most_queued: Duration,
}

impl Direction {
    fn new(shape: PathShape, seed: u64, start: Instant) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self {
            shape,
            random,
            free_at: start,
            wire: VecDeque::new(),
            sent_bytes: 0,
            dropped_bytes: 0,
            delivered_bytes: 0,
            most_queued: Duration::ZERO,
        }
    }

    fn send(&mut self, now: Instant, datagram: &[u8]) {
        let bytes = datagram.len() as u64 + HEADER_BYTES;
        self.sent_bytes += bytes;
        let waiting = self.free_at.saturating_duration_since(now);
        let waiting_bytes = (waiting.as_secs_f64() * self.shape.rate_bits as f64 / 8.0) as u64;
        if waiting_bytes + bytes > self.shape.queue_bytes() {
            self.dropped_bytes += bytes;
            return;
        }
        self.most_queued = self.most_queued.max(waiting);
        self.free_at = self.free_at.max(now) + Duration::from_secs_f64(bytes as f64 * 8.0 / self.shape.rate_bits as f64);
        if self.random.random_bool(self.shape.loss) {
            self.dropped_bytes += bytes;
            return;
        }
        self.delivered_bytes += bytes;
        self.wire.push_back((self.free_at + self.shape.round_trip / 2, datagram.to_vec()));
    }
}

struct Side {
    address: SocketAddr,
    endpoint: Endpoint,
    connections: BTreeMap<usize, Connection>,
    flows: BTreeMap<usize, Flow>,
}

#[derive(Default)]
struct Flow {
    stream: Option<StreamId>,
    received_bytes: u64,
    window: SendWindow,
    window_set_at: Option<Instant>,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Share of the path's rate that the application got, per flow.
    pub(super) goodput: Vec<f64>,
    /// Wire bytes sent for each byte that the application got.
    pub(super) wire_per_byte: f64,
    /// Share of the sent packets' bytes that got lost.
    pub(super) lost: f64,
    /// Longest wait in the queue.
    pub(super) most_queued: Duration,
    /// Wire bytes of the way back, for each byte that the application got.
    pub(super) back_per_byte: f64,
}

/// See the module's documentation.
pub(super) struct Simulation {
    start: Instant,
    now: Instant,
    settings: Settings,
    ways: [Direction; 2],
    sides: [Side; 2],
    client_config: ClientConfig,
}

impl Simulation {
    pub(super) fn new(settings: Settings, shape: PathShape, seed: u64) -> Self {
        let start = Instant::now();
        let identity = Identity::ephemeral().unwrap();
        let found = Arc::new(OnceLock::new());
        let client_config = ClientConfig::new(Arc::new(tls::client(&identity, Purpose::Link, identity.id(), found).unwrap()));
        let mut server_config = ServerConfig::with_crypto(Arc::new(tls::server(&identity).unwrap()));
        server_config.transport_config(settings.quic(Trust::Checked, Reach::Network));
        let side = |port, server: Option<ServerConfig>| Side {
            address: SocketAddr::from(([192, 0, 2, 1], port)),
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), server.map(Arc::new), true, Some([seed as u8; 32])),
            connections: BTreeMap::new(),
            flows: BTreeMap::new(),
        };
        let back = PathShape { loss: shape.loss, ..shape };
        let ways = [Direction::new(shape, seed, start), Direction::new(back, !seed, start)];
        Self { start, now: start, settings, ways, sides: [side(1, None), side(2, Some(server_config))], client_config }
    }

    /// Another connection that sends as much as it can.
    pub(super) fn add_flow(&mut self, congestion: Congestion) {
        let remote = self.sides[1].address;
        let settings = Settings { congestion, ..self.settings.clone() };
        let mut config = self.client_config.clone();
        config.transport_config(settings.quic(Trust::Checked, Reach::Network));
        let (handle, connection) = self.sides[0].endpoint.connect(self.now, config, remote, "any").unwrap();
        self.sides[0].connections.insert(handle.0, connection);
        self.sides[0].flows.insert(handle.0, Flow::default());
    }

    /// Runs for `span`, and says what came of this span.
    pub(super) fn run(&mut self, span: Duration) -> Outcome {
        let end = self.now + span;
        let before: Vec<u64> = self.received();
        let (sent, dropped, back) = (self.ways[0].sent_bytes, self.ways[0].dropped_bytes, self.ways[1].sent_bytes);
        self.ways[0].most_queued = Duration::ZERO;
        while self.now < end {
            self.step();
            self.now = self.next_event().map_or(end, |next| next.max(self.now + Duration::from_nanos(1)).min(end));
        }
        let got: Vec<u64> = self.received().iter().enumerate().map(|(n, bytes)| bytes - before.get(n).copied().unwrap_or(0)).collect();
        let total = got.iter().sum::<u64>().max(1) as f64;
        let capacity = self.ways[0].shape.rate_bits as f64 / 8.0 * span.as_secs_f64();
        let sent = (self.ways[0].sent_bytes - sent) as f64;
        Outcome {
            goodput: got.iter().map(|bytes| *bytes as f64 / capacity).collect(),
            wire_per_byte: sent / total,
            lost: (self.ways[0].dropped_bytes - dropped) as f64 / sent.max(1.0),
            most_queued: self.ways[0].most_queued,
            back_per_byte: (self.ways[1].sent_bytes - back) as f64 / total,
        }
    }

    /// The path is like this from now on.
    pub(super) fn reshape(&mut self, shape: PathShape) {
        self.ways.iter_mut().for_each(|way| way.shape = shape);
    }

    fn received(&self) -> Vec<u64> {
        self.sides[1].flows.values().map(|flow| flow.received_bytes).collect()
    }

    fn next_event(&mut self) -> Option<Instant> {
        let arrivals = self.ways.iter().filter_map(|way| way.wire.front().map(|(at, _)| *at)).min();
        let start = self.start;
        let timers = self.sides.iter_mut().flat_map(|side| side.connections.values_mut()).filter_map(|connection| {
            let since = connection.poll_timeout()?.saturating_duration_since(start);
            let grains = since.as_nanos().div_ceil(TIMER_GRAIN.as_nanos());
            Some(start + TIMER_GRAIN * u32::try_from(grains).unwrap_or(u32::MAX))
        });
        timers.chain(arrivals).min()
    }

    fn step(&mut self) {
        let now = self.now;
        for (way, to) in [(0, 1), (1, 0)] {
            while self.ways[way].wire.front().is_some_and(|(at, _)| *at <= now) {
                let Some((_, datagram)) = self.ways[way].wire.pop_front() else { break };
                let from = self.sides[1 - to].address;
                self.sides[to].receive(now, from, &datagram);
            }
        }
        for (index, way) in [(0, 0), (1, 1)] {
            self.sides[index].drive(now, &self.settings, &mut self.ways[way]);
        }
    }
}

impl Side {
    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut reply = Vec::new();
        match self.endpoint.handle(now, from, None, None, BytesMut::from(datagram), &mut reply) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connections.get_mut(&handle.0) {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                if let Ok((handle, connection)) = self.endpoint.accept(incoming, now, &mut reply, None) {
                    self.connections.insert(handle.0, connection);
                    self.flows.insert(handle.0, Flow::default());
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn drive(&mut self, now: Instant, settings: &Settings, way: &mut Direction) {
        for (handle, connection) in &mut self.connections {
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(ConnectionHandle(*handle), event) {
                    connection.handle_event(event);
                }
            }
            let flow = self.flows.entry(*handle).or_default();
            while let Some(event) = connection.poll() {
                match event {
                    Event::Connected if connection.side().is_client() => flow.stream = connection.streams().open(Dir::Bi),
                    Event::ConnectionLost { reason } => panic!("connection lost: {reason}"),
                    _ => {}
                }
            }
            flow.exchange(connection, now, settings);
            let mut buffer = Vec::new();
            while let Some(transmit) = connection.poll_transmit(now, 10, &mut buffer) {
                for datagram in buffer[..transmit.size].chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                    way.send(now, datagram);
                }
                buffer.clear();
            }
        }
    }
}

impl Flow {
    fn exchange(&mut self, connection: &mut Connection, now: Instant, settings: &Settings) {
        if connection.side().is_client() {
            if self.window_set_at.is_none_or(|at| now - at >= send_window::INTERVAL) {
                self.window_set_at = Some(now);
                if let Some(wanted) = self.window.follow(settings, &connection.stats().path) {
                    connection.set_send_window(wanted);
                }
            }
            if let Some(stream) = self.stream {
                static CONTENT: [u8; 65_536] = [0x5a; 65_536];
                while connection.send_stream(stream).write(&CONTENT).is_ok_and(|written| written > 0) {}
            }
        } else {
            if self.stream.is_none() {
                self.stream = connection.streams().accept(Dir::Bi);
            }
            if let Some(stream) = self.stream {
                let mut recv = connection.recv_stream(stream);
                if let Ok(mut chunks) = recv.read(false) {
                    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
                        self.received_bytes += chunk.bytes.len() as u64;
                    }
                    let _ = chunks.finalize();
                }
            }
        }
    }
}
