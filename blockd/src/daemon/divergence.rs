//! What either site has that the other lacks, once both were primary: counted here, and asked of the other site, each time somebody looks.

use super::Daemon;
use super::part::{Part, peer_site, volume_id};
use super::volumes::{OpenVolume, io_error};
use crate::admin::Outcome;
use crate::catalogue::{Parted, PeerRecord, RecordedRole, VolumeRecord};
use crate::volume::Volume;
use blockd_api::*;
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::following;
use replicator::identity::SiteId;
use replicator::intake::extent_blocks;
use replicator::primary::PrimaryStatus;
use replicator::primary::memory;
use replicator::site_link::request::{self, Answer, Question, lineage_of, parse_id};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::{Id, Relation};
use replicator_engine::sender::Phase;
use replicator_engine::tracker::Epoch;
use roaring::RoaringBitmap;
use std::collections::HashMap;
use std::io;
use std::time::Duration;
use tokio::task::JoinSet;

/// For the other site to say what it has; the status waits for that.
const PATIENCE: Duration = Duration::from_millis(500);

/// What changed at an old primary alone.
pub(super) struct Changed {
    pub blocks: RoaringBitmap,
    /// Otherwise it is all that the activity log has.
    pub exact: bool,
}

/// What this site has that the other one lacks.
#[derive(Clone, Copy)]
struct Own {
    /// `None`: beside what was not sent, also epochs that the other site had, and went back behind.
    blocks: Option<u64>,
    exact: bool,
    parted: Parted,
}

/// A volume of which both sites were primary.
struct Apart {
    name: VolumeName,
    id: String,
    site: SiteId,
    own: Own,
}

/// What an old primary has that the new one lacks.
pub(super) fn changed_alone(catalogue: &dyn Catalogue, record: &VolumeRecord, id: Id, volume: &Volume) -> io::Result<Changed> {
    let hot = || volume.intake.log().hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).collect();
    let site = match in_common(record, catalogue, id)? {
        Some((peer, _)) => Some(peer),
        None => record.peer.as_ref(),
    };
    let exact = memory::load_changed(catalogue, id)?;
    let exact = exact.of(site.map_or("", |peer| &peer.site));
    Ok(Changed { exact: exact.is_some(), blocks: exact.cloned().unwrap_or_else(hot) })
}

/// Whose acknowledgements say best what an old primary has alone, and the epoch at which the new one branched: see [`following::closest`].
pub(super) fn in_common<'a>(record: &'a VolumeRecord, catalogue: &dyn Catalogue, id: Id) -> io::Result<Option<(&'a PeerRecord, Epoch)>> {
    let Some((mine, theirs)) = lineage_of(&record.lineage).zip(lineage_of(&record.successor)) else { return Ok(None) };
    let known = |peer: &'a PeerRecord| Ok((peer, memory::load_known(catalogue, &memory::known_key(id, &peer.site))?));
    Ok(following::closest(&mine, &theirs, record.peers().map(known).collect::<io::Result<Vec<_>>>()?))
}

/// When the oldest write was made that the standby is not known to have.
pub(super) fn oldest_unsent_unix_ms(open: &OpenVolume) -> Option<u64> {
    let Part::Primary(primary) = &open.part else { return None };
    let ages = primary.replicas.iter().map(|part| part.replica.status().borrow().rpo_ms);
    let age_ms = ages.collect::<Option<Vec<_>>>()?.into_iter().max()?;
    (age_ms > 0).then(|| unix_ms().saturating_sub(age_ms))
}

/// What this site has alone; `None` if the two are not apart.
fn own(open: &OpenVolume, catalogue: &dyn Catalogue) -> Outcome<Option<Own>> {
    let parted = open.record.parted.unwrap_or_default();
    match (open.record.role, &open.part) {
        (RecordedRole::Stale | RecordedRole::SplitBrain, _) => {
            let Changed { blocks, exact } =
                changed_alone(catalogue, &open.record, volume_id(&open.record)?, &open.volume).map_err(io_error)?;
            if went_back(&open.record, catalogue).map_err(io_error)?.is_some() {
                // Older than what was not sent.
                let parted = Parted { since_unix_ms: None, ..parted };
                return Ok(Some(Own { blocks: None, exact: false, parted }));
            }
            Ok(Some(Own { blocks: Some(blocks.len()), exact, parted }))
        }
        (RecordedRole::Primary, Part::Primary(primary)) if open.record.parted.is_some() => {
            let seen = primary.first().replica.status().borrow().clone();
            let branch = lineage_of(&open.record.lineage).map_or(0, |lineage| lineage.current().branch_epoch);
            Ok(is_apart(&seen, branch).then_some(Own {
                blocks: Some(seen.backlog.in_doubt_blocks),
                exact: primary.first().marks_exactly,
                parted,
            }))
        }
        _ => Ok(None),
    }
}

/// Whether the other site has not become the standby of this generation yet.
fn is_apart(seen: &PrimaryStatus, branch: u64) -> bool {
    seen.phase != Phase::Online && seen.committed() <= branch
}

/// The recovery point that the new primary went back to, if this site has epochs beyond it that were acknowledged.
pub(super) fn went_back(record: &VolumeRecord, catalogue: &dyn Catalogue) -> io::Result<Option<Epoch>> {
    let (Some(mine), Some(theirs), Some(peer)) = (lineage_of(&record.lineage), lineage_of(&record.successor), &record.peer) else {
        return Ok(None);
    };
    let (Relation::TheirsAhead(branch), Some(id)) = (mine.relation(&theirs), parse_id(&record.id)) else { return Ok(None) };
    let known = memory::load_known(catalogue, &memory::known_key(id, &peer.site))?;
    let went_back = known.is_some_and(|known| known.acked > branch) && in_common(record, catalogue, id)?.is_none();
    Ok(went_back.then_some(branch))
}

fn alone(blocks: Option<u64>, exact: bool, since_unix_ms: Option<u64>) -> Alone {
    let since = since_unix_ms.and_then(|ms| UtcTime::from_unix_seconds((ms / 1000) as i64)).filter(|_| blocks != Some(0));
    Alone { blocks, bytes: blocks.map(|blocks| blocks.saturating_mul(BLOCK_BYTES as u64)), since, exact }
}

fn divergence(own: Own, answer: Option<Answer>) -> Divergence {
    let theirs = match answer {
        Some(Answer::Alone { blocks, exact, since_unix_ms, common_unix_ms }) => Some((blocks, exact, since_unix_ms, common_unix_ms)),
        _ => None,
    };
    let Own { blocks, exact, parted } = own;
    let here = alone(blocks, exact, parted.since_unix_ms.or(theirs.and_then(|(.., common)| common)));
    let there = theirs.map(|(blocks, exact, since, _)| alone(blocks, exact, since.or(parted.common_unix_ms)));
    Divergence { here: Some(here), there }
}

impl Daemon {
    /// Another site that was primary, too, wants to know what this one has.
    pub(super) async fn tell_alone(&self, from: &str, volume: &str) -> Outcome<Answer> {
        let volumes = self.volumes.lock().await;
        let open = volumes.by_id(volume).filter(|open| open.record.peer_at(from).is_some());
        let own = open.map(|open| own(open, &*volumes.catalogue)).transpose()?.flatten();
        Ok(own.map_or(Answer::Done, |Own { blocks, exact, parted: Parted { since_unix_ms, common_unix_ms } }| Answer::Alone {
            blocks,
            exact,
            since_unix_ms,
            common_unix_ms,
        }))
    }

    /// Of each volume, or of the one, whose sites went apart: what either has alone.
    pub(super) async fn ask_parted(&self, only: Option<&VolumeName>) -> HashMap<VolumeName, Divergence> {
        // All at once: one that does not answer is waited for once.
        let mut asked = JoinSet::new();
        for apart in self.parted(only).await {
            let links = self.sites.links.clone();
            asked.spawn(async move {
                let question = Question::Alone { volume: apart.id };
                let answer = request::ask(&links, &apart.site, &question, PATIENCE).await;
                (apart.name, divergence(apart.own, answer.ok()))
            });
        }
        asked.join_all().await.into_iter().collect()
    }

    async fn parted(&self, only: Option<&VolumeName>) -> Vec<Apart> {
        let volumes = self.volumes.lock().await;
        let chosen = volumes.all().filter(|open| only.is_none_or(|only| *only == open.record.name));
        let apart = chosen.filter_map(|open| {
            let (peer, own) = (open.record.peer.as_ref()?, own(open, &*volumes.catalogue).ok()??);
            Some(Apart { name: open.record.name.clone(), id: open.record.id.clone(), site: peer_site(peer).ok()?, own })
        });
        apart.collect()
    }
}
