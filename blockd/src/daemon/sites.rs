//! The other sites: the transport, the links to peers, and pairing.

use crate::admin::Outcome;
use crate::config::{self, Config};
use anyhow::{Context, Result};
use blockd_api::{ApiError, ErrorCode, Invite, Peer as PeerInfo, PeerList, SiteName, Span, UtcTime};
use replicator::catalogue::Catalogue;
use replicator::identity::{Identity, SiteId};
use replicator::pairing::{PairingDesk, Peer, PeerBook};
use replicator::site_link::request::{self, Answer, AskError, Question};
use replicator::transport::{Congestion, IncomingStream, Links, PathPlan, Settings, Transport};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a token is good unless told otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);

/// See the module's documentation.
pub(super) struct Sites {
    transport: Transport,
    desk: Arc<PairingDesk>,
    pub links: Arc<Links>,
}

impl Sites {
    /// Begins to listen, to answer pairings, and to keep links. Streams that peers open come out of the receiver.
    pub fn start(config: &Config, identity: Identity, catalogue: Arc<dyn Catalogue>) -> Result<(Self, mpsc::Receiver<IncomingStream>)> {
        let site = identity.id();
        let book = Arc::new(PeerBook::open(catalogue.clone()).context("catalogue: the peers cannot be read")?);
        let desk = PairingDesk::open(site, config.site.to_string(), catalogue, book.clone());
        let desk = Arc::new(desk.context("catalogue: the invitations cannot be read")?);
        let settings = Settings {
            site_name: config.site.to_string(),
            plan: PathPlan {
                rate_bits: config.transport.bandwidth.bytes_per_second() * 8,
                round_trip_ms: config.transport.round_trip.as_millis() as u32,
            },
            congestion: match config.transport.congestion {
                config::Congestion::Tern => Congestion::Tern,
                config::Congestion::Cubic => Congestion::Cubic,
                config::Congestion::Bbr => Congestion::Bbr,
            },
            ..Settings::default()
        };
        let transport = Transport::bind(config.listen, identity, desk.clone(), settings)
            .with_context(|| format!("listen {}: choose an address of this host whose port is free", config.listen))?;
        desk.serve(&transport);
        let (links, streams) = Links::start(transport.clone(), book, rand_seed());
        Ok((Self { transport, desk, links }, streams))
    }

    /// A peer by its name.
    pub fn peer(&self, name: &SiteName) -> Outcome<Peer> {
        self.desk.book().find_by_name(name.as_str()).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("no site {name} is paired with this one")).with_hint(
                "`tern peer list` shows those there are; `tern peer invite` at one site and `tern peer join` at the other pair them",
            )
        })
    }

    /// A peer's name.
    pub fn peer_by_id(&self, site: &SiteId) -> Option<SiteName> {
        self.desk.book().find(site)?.name.parse().ok()
    }

    /// A peer's answer.
    pub async fn ask(&self, site: &SiteId, name: &SiteName, question: &Question, deadline: Duration) -> Outcome<Answer> {
        request::ask(&self.links, site, question, deadline).await.map_err(|error| {
            let failure = self.links.last_failure(site).filter(|_| error == AskError::NotConnected);
            let why = failure.unwrap_or_else(|| error.to_string());
            ApiError::new(ErrorCode::PeerUnreachable, format!("site {name} does not answer ({why})"))
                .with_hint("once `tern peer list` shows it connected, run the same command again: nothing is done twice")
        })
    }

    pub fn list(&self) -> PeerList {
        PeerList { peers: self.desk.book().peers().values().filter_map(|peer| self.info(peer)).collect() }
    }

    fn info(&self, peer: &Peer) -> Option<PeerInfo> {
        let link = self.links.get(&peer.id);
        Some(PeerInfo {
            name: peer.name.parse().ok()?,
            id: peer.id.to_string(),
            address: peer.addresses.first().cloned(),
            connected: link.is_some(),
            rtt_ms: link.map(|link| link.stats().round_trip.as_secs_f64() * 1000.0),
        })
    }

    pub async fn invite(&self, address: Option<String>, ttl: Option<Span>) -> Outcome<Invite> {
        let addresses = match address {
            Some(address) => vec![address],
            None => vec![self.public_address()?],
        };
        let desk = self.desk.clone();
        let made = tokio::task::spawn_blocking(move || desk.invite(addresses, ttl.map_or(DEFAULT_TTL, Span::duration))).await;
        let made = made.map_err(internal)?.map_err(|error| ApiError::new(ErrorCode::InvalidRequest, error.to_string()))?;
        let expires_at = i64::try_from(made.expires_at).ok().and_then(UtcTime::from_unix_seconds);
        let expires_at = expires_at.ok_or_else(|| ApiError::new(ErrorCode::Internal, "the clock is off"))?;
        Ok(Invite { token: made.token, expires_at })
    }

    /// What this site listens at, if that is an address that another host can use.
    fn public_address(&self) -> Outcome<String> {
        let address: SocketAddr = self.transport.local_address().map_err(internal)?;
        if address.ip().is_unspecified() {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("{address} is every address of this host"));
            return Err(error.with_hint("name the one that the other site reaches with --address HOST:PORT"));
        }
        Ok(address.to_string())
    }

    pub async fn join(&self, token: &str, address: Option<String>) -> Outcome<PeerInfo> {
        let addresses = address.into_iter().collect();
        let peer = self.desk.join(&self.transport, token, addresses).await;
        let peer = peer.map_err(|error| ApiError::new(ErrorCode::NotTrusted, error.to_string()))?;
        self.info(&peer).ok_or_else(|| ApiError::new(ErrorCode::NotTrusted, "the other site has an impossible name"))
    }

    pub async fn remove(&self, id: SiteId) -> Outcome<()> {
        let desk = self.desk.clone();
        tokio::task::spawn_blocking(move || desk.remove(&id)).await.map_err(internal)?.map_err(internal).map(drop)
    }

    pub async fn stop(&self) {
        self.transport.stop().await;
    }
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

/// Only spreads attempts to connect.
fn rand_seed() -> u64 {
    let mut seed = [0; 8];
    let _ = getrandom::fill(&mut seed);
    u64::from_le_bytes(seed)
}
