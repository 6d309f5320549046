//! The daemon: what is started, in which order, and how it ends.
//!
//! Start: state directory (locked) → key → catalogue → NBD threads → sockets → volumes → admin API → metrics → `ready`. End, on SIGTERM or
//! SIGINT: the admin API first, then the front ends, which complete what they began. A signal during the start is heeded after it, and
//! whatever can be taken by somebody else is bound before the first guest is served: volumes that were opened are closed in order.

mod attached;
mod control;
mod create;
mod divergence;
mod drills;
mod events;
mod exports;
mod forecast;
mod going_back;
mod groups;
mod handover;
mod incoming;
mod lease;
mod limit;
mod mode;
mod old;
mod overtaken;
mod part;
mod points;
mod promotion;
mod proof;
mod replication;
mod rivals;
mod settings;
mod sites;
mod standbys;
pub(crate) mod state_dir;
mod status;
mod trial;
mod volumes;

use crate::admin::{self, AdminSocket};
use crate::catalogue::RocksCatalogue;
use crate::config::Config;
use crate::events::Teller;
use crate::metrics::{self, Metrics};
use crate::nbd::{NbdOptions, NbdService, Reach, STALL_TIMEOUT, Tls};
use crate::sandbox::Roots;
use crate::supervisor::{self, Inherited};
use crate::vhost_user::{VhostUserOptions, VhostUserService};
use anyhow::{Context, Result};
use blockd_api::SiteName;
use exports::FrontEnds;
use groups::{GroupRecord, Groups, Told};
use lease::{Duty, Grants};
use replicator::codec::BasesMemory;
use replicator::identity::Identity;
use sites::Sites;
use state_dir::StateDir;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ChildStdin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use volumes::Volumes;

/// Threads that serve NBD connections.
const NBD_THREADS: usize = 2;
/// Threads for the queues of each vhost-user client.
const VHOST_USER_THREADS: usize = 2;

/// See the module's documentation.
pub struct Daemon {
    site: SiteName,
    id: String,
    sites: Arc<Sites>,
    volumes: Arc<Mutex<Volumes>>,
    grants: Arc<Grants>,
    /// Whose stream each standby has.
    streams: attached::Streams,
    /// Held by whoever makes or changes groups here, or tells other sites of them.
    group_operation: Mutex<Told>,
    /// Other sites are to hear of that.
    regrouped: Notify,
    /// Closed when the daemon stops.
    stopped: watch::Receiver<()>,
}

/// Runs until a signal ends it. An error is one line that names what is wrong and the cure.
pub async fn run(config: Config, inherited: Inherited, roots: Roots, runner: Option<ChildStdin>) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let state_dir = StateDir::open(&config.state_dir)?;
    let identity = Identity::load_or_create(state_dir.path())?;
    let cure = || format!("state_dir {}: the catalogue cannot be opened", config.state_dir.display());
    let catalogue = Arc::new(RocksCatalogue::open(&state_dir.catalogue()).with_context(cure)?);
    let nbd = NbdService::start(nbd_options(&config)?).context("nbd: its threads cannot be started")?;
    let vhost_user = VhostUserService::start(VhostUserOptions {
        access: config.export_access,
        threads: VHOST_USER_THREADS,
        cpus: config.vhost_user.cpus.as_slice().into(),
        poll: config.vhost_user.poll,
    });
    let teller = Arc::new(Teller::start(runner).context("on_event")?);
    let registry = Arc::new(Metrics::new(teller.clone()));
    let id = identity.id().to_string();
    let (sites, streams) = Sites::start(&config, identity, catalogue.clone())?;
    let sites = Arc::new(sites);
    let duty = if config.witness { Duty::Witness } else { Duty::Data };
    let grants = Arc::new(Grants::open(catalogue.clone(), duty).context("catalogue: the leases cannot be read")?);
    let (overtaken, news) = mpsc::unbounded_channel();
    let front_ends = Arc::new(FrontEnds { nbd, vhost_user });
    let recorded = GroupRecord::load_all(&catalogue).context("catalogue: the groups cannot be read")?;
    let groups = Groups::open(recorded, &registry)?;
    let volumes = Arc::new(Mutex::new(Volumes {
        state_dir,
        roots,
        catalogue,
        front_ends: front_ends.clone(),
        sites: sites.clone(),
        overtaken,
        metrics: registry.clone(),
        spill_quota_bytes: config.spill_quota.bytes(),
        spill_memory_bytes: config.spill_memory.bytes(),
        bases: BasesMemory::new(config.delta_memory.map(|size| size.bytes())),
        journal_quota_bytes: config.journal_quota.bytes(),
        keep: config.keep,
        scrub: config.proof.scrub,
        scrub_budget: Default::default(),
        grants: grants.clone(),
        open: BTreeMap::new(),
        drills: BTreeMap::new(),
        unopened: BTreeMap::new(),
        reserved: BTreeSet::new(),
        groups,
    }));
    let (stop, stopped) = watch::channel(());
    let (site, stopping) = (config.site.clone(), stopped.clone());
    let daemon = Arc::new(Daemon {
        site,
        id: id.clone(),
        sites: sites.clone(),
        volumes: volumes.clone(),
        grants,
        streams: Default::default(),
        group_operation: Mutex::default(),
        regrouped: Notify::new(),
        stopped: stopping,
    });

    let socket = match inherited.admin {
        Some(listener) => AdminSocket::inherited(listener).context("socket activation: admin")?,
        None => AdminSocket::bind(&config.admin, config.admin_access).context("admin")?,
    };
    let metrics_socket = metrics_listener(inherited.metrics, config.metrics).await?;
    volumes.lock().await.open_all().await.context("catalogue: the volumes cannot be read")?;
    volumes.lock().await.forget_idle_promotions().context("catalogue: the groups cannot be written")?;
    let wait = |mut stopped: watch::Receiver<()>| async move { drop(stopped.changed().await) };
    let admin = tokio::spawn(admin::serve(socket, daemon.clone(), wait(stopped.clone())));
    if let Some(listener) = metrics_socket {
        tokio::spawn(metrics::serve(listener, registry, daemon.clone(), wait(stopped)));
    }
    let incoming = tokio::spawn(daemon.clone().take_streams(streams, news));
    let events = tokio::spawn(daemon.clone().watch_events(teller));
    let verifies = tokio::spawn(daemon.clone().verify_in_time(config.proof.clone()));
    let teller = tokio::spawn(daemon.clone().tell_groups());
    let everywhere = tokio::spawn(daemon.clone().tell_everywhere());
    let standbys = tokio::spawn(daemon.clone().watch_standbys());
    let trials = tokio::spawn(daemon.watch_trials());

    tracing::info!(site = %config.site, %id, admin = %config.admin.display(), "ready");
    supervisor::ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = supervisor::keep_alive(&front_ends.nbd) => {}
    }
    tracing::info!("stopping");
    supervisor::stopping();
    drop(stop);
    let _ = admin.await;
    incoming.abort();
    verifies.abort();
    events.abort();
    standbys.abort();
    teller.abort();
    trials.abort();
    everywhere.abort();
    volumes.lock().await.stop().await;
    sites.stop().await;
    Ok(())
}

async fn metrics_listener(inherited: Option<std::net::TcpListener>, address: Option<SocketAddr>) -> Result<Option<TcpListener>> {
    if let Some(listener) = inherited {
        return TcpListener::from_std(listener).map(Some).context("socket activation: metrics");
    }
    let Some(address) = address else { return Ok(None) };
    TcpListener::bind(address).await.map(Some).with_context(|| format!("metrics {address}: choose an address that is free"))
}

fn nbd_options(config: &Config) -> Result<NbdOptions> {
    let tls = config.nbd.tls.as_ref().map(|(files, policy)| Tls::load(files, *policy)).transpose()?;
    Ok(NbdOptions {
        max_connections: config.nbd.max_connections,
        handshake_timeout: config.nbd.handshake_timeout,
        stall_timeout: STALL_TIMEOUT,
        access: config.export_access,
        reach: if config.danger_zone.plain_nbd_anywhere { Reach::Anywhere } else { Reach::Loopback },
        tls,
        threads: NBD_THREADS,
    })
}
