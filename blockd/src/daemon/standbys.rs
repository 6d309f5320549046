//! Several standbys of one volume: one more, one less, and which of them is meant.

use super::Daemon;
use super::handover::{DRAIN_DEADLINE, wrong_state};
use super::part::{Base, Part, peer_site, volume_id};
use super::volumes::io_error;
use crate::admin::Outcome;
use crate::catalogue::{PeerRecord, VolumeRecord};
use blockd_api::*;
use replicator::primary::memory;
use replicator::site_link::request::{self, Question};
use replicator_engine::tracker::{LaneId, MAX_LANES};
use std::time::Duration;

/// How often it is looked whether an epoch has closed.
const CLOSING_POLL: Duration = Duration::from_millis(2);
/// For a site that is no standby any more to hear of it.
const DETACH_DEADLINE: Duration = Duration::from_secs(30);

/// What a volume of a group is not, by itself.
pub(super) const SECOND_SITE: &str = "replicated to a second site";

/// The standby at this site; without a site, the only one.
pub(super) fn standby_named<'a>(record: &'a VolumeRecord, to: Option<&SiteName>) -> Outcome<&'a PeerRecord> {
    let name = &record.name;
    let all = || record.peers().map(|peer| peer.name.to_string()).collect::<Vec<_>>().join(" and ");
    match (to, &record.peer) {
        (Some(to), _) => {
            let error = || ApiError::new(ErrorCode::NotFound, format!("{name} is not replicated to {to}, but to {}", all()));
            record.peers().find(|peer| peer.name == *to).ok_or_else(error)
        }
        (None, Some(peer)) if record.others.is_empty() => Ok(peer),
        (None, Some(_)) => {
            let error = ApiError::new(ErrorCode::InvalidRequest, format!("{name} is replicated to {}", all()));
            Err(error.with_hint("say which one is meant with --to SITE"))
        }
        (None, None) => Err(wrong_state(format!("{name} is not replicated from here"), "`tern replicate --to SITE` begins that")),
    }
}

/// Whether a primary may have all that is recorded, and this standby beside.
pub(super) fn check_several(record: &VolumeRecord, peer: &PeerRecord) -> Outcome<()> {
    let others = || record.peers().filter(|other| other.site != peer.site);
    let count = others().count() + 1;
    if count > MAX_LANES {
        let error =
            wrong_state(format!("{} has {MAX_LANES} standbys already", record.name), "end one with `tern replicate --stop --to SITE`");
        return Err(error);
    }
    if count > 1 && (peer.lease.is_some() || others().any(|other| other.lease.is_some())) {
        // Two standbys that stand for promotion need a witness that tells them apart; ours knows one.
        let message = format!("{}: leases are for a volume with one standby", record.name);
        return Err(wrong_state(message, "`--fence none` at its standby, or replicate to one site only"));
    }
    Ok(())
}

impl Daemon {
    /// Begins to replicate to one more site.
    pub(super) async fn add_standby(&self, name: &VolumeName, peer: PeerRecord) -> Outcome<()> {
        let lane = self.begin_lane(name).await?;
        let mut volumes = self.volumes.lock().await;
        let volume = volumes.get(name)?.volume.clone();
        // It may have become a member of a group since it was asked.
        let alone = volumes.groups.check_alone(&volumes.get(name)?.record, SECOND_SITE);
        let id = volume_id(&volumes.get(name)?.record)?;
        let added = alone.and_then(|()| memory::forget_site(&*volumes.catalogue, id, &peer.site).map_err(io_error));
        let added = added.and_then(|()| volumes.change(name, |record| record.others.push(peer.clone()))).and_then(|()| {
            let open = volumes.get(name)?;
            let Part::Primary(primary) = &open.part else { return Err(ApiError::new(ErrorCode::Internal, "no primary any more")) };
            volumes.start_replica(primary, &volume, &open.record, (&peer, lane), Base::default())
        });
        match added {
            Ok(replica) => {
                if let Some(Part::Primary(primary)) = volumes.open.get_mut(name).map(|open| &mut open.part) {
                    primary.replicas.push(replica);
                }
                volumes.tell_standbys(name);
                Ok(())
            }
            Err(error) => {
                volume.intake.end_lane(lane);
                let _ = volumes.change(name, |record| record.forget_peer(&peer.site));
                Err(error)
            }
        }
    }

    /// A lane in which every write from now on leaves its mark.
    async fn begin_lane(&self, name: &VolumeName) -> Outcome<LaneId> {
        let (lane, volume) = {
            let volumes = self.volumes.lock().await;
            let open = volumes.get(name)?;
            let Part::Primary(primary) = &open.part else {
                return Err(wrong_state(format!("{name} is not primary here"), "ask its primary"));
            };
            (primary.free_lane().expect("it was counted"), open.volume.clone())
        };
        let begun = async {
            let epoch = loop {
                let volumes = self.volumes.lock().await;
                let Part::Primary(primary) = &volumes.get(name)?.part else { return Err(ApiError::new(ErrorCode::Internal, "no primary")) };
                if let Some(epoch) = primary.begin_lane(&volume, lane)? {
                    break epoch;
                }
                drop(volumes);
                tokio::time::sleep(CLOSING_POLL).await;
            };
            // What is written by requests that began before is on the disk by then, where the first sync finds it.
            while !volume.intake.tracker().has_closed(epoch) {
                tokio::time::sleep(CLOSING_POLL).await;
            }
            Ok(lane)
        };
        let begun = tokio::time::timeout(DRAIN_DEADLINE, begun).await;
        begun
            .unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Timeout, format!("{name}: requests of clients do not complete"))))
            .inspect_err(|_| {
                volume.intake.end_lane(lane);
            })
    }

    /// Ends replication to one of several sites.
    pub(super) async fn remove_standby(&self, record: &VolumeRecord, peer: &PeerRecord) -> Outcome<()> {
        let name = &record.name;
        self.promise_nothing(name, peer).await?;
        let (volume, removed) = {
            let mut volumes = self.volumes.lock().await;
            volumes.change(name, |record| record.forget_peer(&peer.site))?;
            let open = volumes.open.get_mut(name).expect("it was just changed");
            let Part::Primary(primary) = &mut open.part else { return Ok(()) };
            let at = primary.replicas.iter().position(|part| part.site == peer.site);
            (open.volume.clone(), at.map(|at| primary.replicas.remove(at)))
        };
        if let Some(part) = removed {
            tokio::task::block_in_place(|| part.replica.stop());
            volume.intake.end_lane(part.lane);
        }
        let volumes = self.volumes.lock().await;
        volumes.tell_standbys(name);
        memory::forget_site(&*volumes.catalogue, volume_id(record)?, &peer.site).map_err(io_error)?;
        let (links, site, question) = (self.sites.links.clone(), peer_site(peer)?, Question::Detach { volume: record.id.clone() });
        tokio::spawn(async move { drop(request::ask(&links, &site, &question, DETACH_DEADLINE).await) });
        Ok(())
    }
}
