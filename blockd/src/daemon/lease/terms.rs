//! What the operator may ask for: when a primary fences itself, and whether its standby is promoted without him.

use super::keeper::{self, KeeperSetup};
use super::{Duty, Keeper};
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, VolumeRecord};
use crate::daemon::Daemon;
use crate::daemon::handover::wrong_state;
use crate::daemon::part::{PrimaryPart, volume_id};
use crate::daemon::status::is_in_time;
use crate::daemon::volumes::{Volumes, io_error};
use crate::volume::Volume;
use blockd_api::*;
use replicator::primary::PrimaryStatus;
use replicator::site_link::lease::{LeaseTerms, WitnessRecord};
use replicator::site_link::request::{SettingsRecord, lineage_of};
use replicator_engine::acknowledgement::Promise;
use replicator_engine::generation::Id;
use replicator_engine::lease::MAX_LEASE_MS;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::watch;

const DEFAULT_LEASE_MS: u64 = 10_000;
const LEASE_MS: RangeInclusive<u64> = 1_000..=MAX_LEASE_MS;
/// A standby waits for at least so many leases before it wants to be promoted.
const LEASES_OF_SILENCE: u64 = 2;
const MAX_AUTO_PROMOTE_MS: u64 = 86_400_000;

/// What was asked for, checked.
#[derive(Clone, Debug)]
pub struct Fencing {
    wanted: Option<Fence>,
    lease_ms: u64,
    witness: Option<SiteName>,
    auto_promote_ms: Option<u64>,
}

/// What a new primary has from its time as standby.
pub struct Inherited {
    /// The lease that it needs.
    pub lease: Option<LeaseTerms>,
    /// What it granted has run out then.
    pub not_before_ms: u64,
    /// The generation that the witness agreed to, or may agree to.
    pub stood_for: Option<Id>,
}

fn invalid(message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message.into()).with_hint(hint.into())
}

impl Fencing {
    pub fn of(request: &Replicate) -> Outcome<Self> {
        let ms = |span: Span| span.duration().as_millis() as u64;
        let Replicate { fence, lease, witness, auto_promote, .. } = request;
        if *fence != Some(Fence::Lease) && (lease.is_some() || witness.is_some() || auto_promote.is_some()) {
            return Err(invalid("leases, witnesses and automatic promotion are part of --fence lease", "add --fence lease"));
        }
        let lease_ms = lease.map_or(DEFAULT_LEASE_MS, ms);
        if !LEASE_MS.contains(&lease_ms) {
            return Err(invalid(format!("a lease of {lease_ms} ms is out of range"), "give --lease 1s or more, and 10m or less"));
        }
        let auto_promote_ms = auto_promote.map(ms);
        if let Some(auto_ms) = auto_promote_ms {
            if witness.is_none() {
                let message = "without a witness there is no automatic promotion: a lost link looks like a lost site";
                return Err(invalid(message, "name a third site with --witness SITE: `blockd --witness` makes one, which holds no data"));
            }
            let least_ms = LEASES_OF_SILENCE * lease_ms;
            if !(least_ms..=MAX_AUTO_PROMOTE_MS).contains(&auto_ms) {
                let hint = format!("give --auto-promote {} ms or more, twice the lease, and a day or less", least_ms);
                return Err(invalid(format!("{auto_ms} ms of silence are out of range"), hint));
            }
        }
        Ok(Self { wanted: *fence, lease_ms, witness: witness.clone(), auto_promote_ms })
    }
}

impl Daemon {
    /// What is to be recorded. Where nothing is said of it, a fence stays as it is.
    pub(in crate::daemon) fn lease_terms(&self, fencing: &Fencing, peer: &PeerRecord) -> Outcome<Option<LeaseTerms>> {
        match fencing.wanted {
            None => return Ok(peer.lease.clone()),
            Some(Fence::None) => return Ok(None),
            Some(Fence::Lease) => {}
        }
        let witness = match &fencing.witness {
            Some(name) if *name == peer.name => {
                return Err(invalid("the standby cannot be the witness, too", "a witness is a third site: `blockd --witness`"));
            }
            Some(name) => Some(WitnessRecord { site: self.sites.peer(name)?.id.to_string(), name: name.to_string() }),
            None => None,
        };
        let (lease_ms, auto_promote_ms) = (fencing.lease_ms, fencing.auto_promote_ms);
        Ok(Some(LeaseTerms { lease_ms, standby: peer.site.clone(), witness, auto_promote_ms }))
    }

    /// Before automatic promotion ends, or goes by another witness, the witness has to know.
    pub(in crate::daemon) async fn end_automatic(&self, record: &VolumeRecord, next: Option<&LeaseTerms>, force: bool) -> Outcome<()> {
        let old = record.peer.as_ref().and_then(|peer| peer.lease.as_ref());
        let witness = |terms: Option<&LeaseTerms>| terms.filter(|terms| terms.auto_promote_ms.is_some())?.witness.clone();
        let Some(of_old) = witness(old).filter(|of_old| witness(next).as_ref() != Some(of_old)) else { return Ok(()) };
        let catalogue = self.volumes.lock().await.catalogue.clone();
        let ended = keeper::end_automatic(&self.sites.links, &*catalogue, volume_id(record)?, record).await.map_err(io_error)?;
        if ended || force {
            return Ok(());
        }
        let message = format!("{}: the witness {} has not agreed: the standby may be promoted, or may have been", record.name, of_old.name);
        Err(wrong_state(message, "try again once `tern peer list` shows it connected; if the standby is not promoted, --force goes on"))
    }

    /// What a standby that is promoted has from its time as one. From here on it grants nothing.
    pub(in crate::daemon) fn inherited(&self, record: &VolumeRecord, how: PromotionKind) -> Inherited {
        let (until_ms, stood_for) = self.grants.close(&record.id);
        let peer = record.peer.as_ref();
        let terms = self.grants.terms(&record.id).or_else(|| peer?.lease.clone());
        let lease = terms.and_then(|terms| Some(LeaseTerms { standby: peer?.site.clone(), ..terms }));
        match how {
            PromotionKind::Handover => Inherited { lease, not_before_ms: 0, stood_for: None },
            // Without a witness nobody is left who could grant it a lease, and nobody is promoted but by the operator.
            PromotionKind::Failover => {
                Inherited { lease: lease.filter(|terms| terms.witness.is_some()), not_before_ms: until_ms, stood_for }
            }
        }
    }

    /// A witness keeps no data.
    pub(in crate::daemon) fn check_holds_data(&self) -> Outcome<()> {
        match self.grants.duty() {
            Duty::Data => Ok(()),
            Duty::Witness => Err(wrong_state(format!("site {} is a witness: it holds no volumes", self.site), "use another site")),
        }
    }
}

/// Goes by what is set at the moment.
fn is_in_time_now(peer: PeerRecord, settings: watch::Receiver<SettingsRecord>) -> Box<dyn Fn(&PrimaryStatus) -> bool + Send> {
    Box::new(move |seen| {
        let now = settings.borrow();
        let peer = PeerRecord { mode: now.mode.parse().unwrap_or(peer.mode), rpo_ms: now.rpo_ms, ..peer.clone() };
        seen.promise.wanted > Promise::Local || is_in_time(seen, &peer)
    })
}

impl Volumes {
    /// Has a primary that begins ask for leases, if that is wanted; nothing is acknowledged before.
    pub(in crate::daemon) fn keep_lease(
        &self,
        volume: &Arc<Volume>,
        record: &VolumeRecord,
        part: &mut PrimaryPart,
        not_before_ms: u64,
    ) -> Outcome<()> {
        let lease = volume.intake.held().lease();
        let Some((terms, peer)) = record.peer.as_ref().and_then(|peer| Some((peer.lease.clone()?, peer.clone()))) else {
            part.lease = None;
            part.first().told.need(false);
            lease.lift();
            return Ok(());
        };
        lease.set_until(0);
        part.lease = None;
        let id = volume_id(record)?;
        let lineage = lineage_of(&record.lineage).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a primary without a lineage"))?;
        let first = part.first();
        let keeper = Keeper::start(KeeperSetup {
            name: record.name.clone(),
            volume: volume.clone(),
            id,
            lineage,
            terms,
            links: self.sites.links.clone(),
            told: first.told.clone(),
            status: first.replica.status(),
            is_in_time: is_in_time_now(peer, first.settings.subscribe()),
            overtaken: self.overtaken.clone(),
            first_number: keeper::first_number(&*self.catalogue, id).map_err(io_error)?,
            not_before_ms,
        });
        part.lease = Some(keeper);
        Ok(())
    }
}
