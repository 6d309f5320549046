//! What either site has that the other lacks, once both were primary: counted here, and asked of the other site, each time somebody looks.

use super::Daemon;
use super::part::{Part, peer_site, volume_id};
use super::volumes::{OpenVolume, io_error};
use crate::admin::Outcome;
use crate::catalogue::{Parted, RecordedRole};
use crate::volume::Volume;
use blockd_api::*;
use replicator::catalogue::Catalogue;
use replicator::clock::unix_ms;
use replicator::identity::SiteId;
use replicator::intake::extent_blocks;
use replicator::primary::PrimaryStatus;
use replicator::primary::memory;
use replicator::site_link::request::{self, Answer, Question, lineage_of};
use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::generation::Id;
use replicator_engine::sender::Phase;
use roaring::RoaringBitmap;
use std::collections::HashMap;
use std::io;
use std::time::Duration;

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
    blocks: u64,
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
pub(super) fn changed_alone(catalogue: &dyn Catalogue, id: Id, volume: &Volume) -> io::Result<Changed> {
    let hot = || volume.intake.log().hot().iter().flat_map(|extent| extent_blocks(extent).blocks()).collect();
    let exact = memory::load_changed(catalogue, id)?;
    Ok(Changed { exact: exact.is_some(), blocks: exact.unwrap_or_else(hot) })
}

/// When the oldest write was made that the standby is not known to have.
pub(super) fn oldest_unsent_unix_ms(open: &OpenVolume) -> Option<u64> {
    let Part::Primary(primary) = &open.part else { return None };
    let age_ms = primary.replica.status().borrow().rpo_ms?;
    (age_ms > 0).then(|| unix_ms().saturating_sub(age_ms))
}

/// What this site has alone; `None` if the two are not apart.
fn own(open: &OpenVolume, catalogue: &dyn Catalogue) -> Outcome<Option<Own>> {
    let parted = open.record.parted.unwrap_or_default();
    match (open.record.role, &open.part) {
        (RecordedRole::Stale | RecordedRole::SplitBrain, _) => {
            let Changed { blocks, exact } = changed_alone(catalogue, volume_id(&open.record)?, &open.volume).map_err(io_error)?;
            Ok(Some(Own { blocks: blocks.len(), exact, parted }))
        }
        (RecordedRole::Primary, Part::Primary(primary)) if open.record.parted.is_some() => {
            let seen = primary.replica.status().borrow().clone();
            let branch = lineage_of(&open.record.lineage).map_or(0, |lineage| lineage.current().branch_epoch);
            Ok(is_apart(&seen, branch).then_some(Own { blocks: seen.backlog.in_doubt_blocks, exact: primary.marks_exactly, parted }))
        }
        _ => Ok(None),
    }
}

/// Whether the other site has not become the standby of this generation yet.
fn is_apart(seen: &PrimaryStatus, branch: u64) -> bool {
    seen.phase != Phase::Online && seen.committed() <= branch
}

fn alone(blocks: u64, exact: bool, since_unix_ms: Option<u64>) -> Alone {
    let since = since_unix_ms.and_then(|ms| UtcTime::from_unix_seconds((ms / 1000) as i64)).filter(|_| blocks > 0);
    Alone { blocks, bytes: blocks * BLOCK_BYTES as u64, since, exact }
}

impl Daemon {
    /// Another site that was primary, too, wants to know what this one has.
    pub(super) async fn tell_alone(&self, from: &str, volume: &str) -> Outcome<Answer> {
        let volumes = self.volumes.lock().await;
        let open = volumes.by_id(volume).filter(|open| open.record.peer.as_ref().is_some_and(|peer| peer.site == from));
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
        let mut found = HashMap::new();
        for apart in self.parted(only).await {
            let question = Question::Alone { volume: apart.id };
            let theirs = match request::ask(&self.sites.links, &apart.site, &question, PATIENCE).await {
                Ok(Answer::Alone { blocks, exact, since_unix_ms, common_unix_ms }) => Some((blocks, exact, since_unix_ms, common_unix_ms)),
                _ => None,
            };
            let Own { blocks, exact, parted } = apart.own;
            let here = alone(blocks, exact, parted.since_unix_ms.or(theirs.and_then(|(.., common)| common)));
            let there = theirs.map(|(blocks, exact, since, _)| alone(blocks, exact, since.or(parted.common_unix_ms)));
            found.insert(apart.name, Divergence { here: Some(here), there });
        }
        found
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
