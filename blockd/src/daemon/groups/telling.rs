//! Both sites of a group have the same record of it: where its members are primary, the other site is told, until it has heard.
//!
//! What is told is always all groups of that site. So a record that a crash left behind goes, and one that a standby site lost comes back.

use super::super::Daemon;
use super::super::volumes::Volumes;
use super::{GroupRecord, MAX_GROUPS};
use crate::admin::Outcome;
use crate::catalogue::RecordedRole;
use blockd_api::{ApiError, ErrorCode, SiteName, VolumeName};
use replicator::identity::SiteId;
use replicator::site_link::request::{Answer, GroupRefused, GroupTold, Question, parse_id};
use replicator::transport::Link;
use replicator_engine::group::MAX_MEMBERS;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whether a site has to be told.
const LOOK: Duration = Duration::from_secs(1);
/// For a site to answer.
const TELL_DEADLINE: Duration = Duration::from_secs(5);

/// A site that has not noted all of them is told again after a while: this long in the end.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What each site was told.
#[derive(Default)]
pub(in crate::daemon) struct Told(BTreeMap<SiteId, Telling>);

/// What a site was told last.
struct Telling {
    /// Another may lead to a site that has forgotten.
    link: Link,
    groups: Vec<GroupTold>,
    /// Unless it has noted all of them: when it is told again, and how long it was waited for that.
    again: Option<(Instant, Duration)>,
}

impl Volumes {
    /// The groups that are shared with that site.
    fn groups_at(&self, site: &str) -> Vec<GroupTold> {
        self.groups.all().filter(|group| group.record.site == site).map(|group| group.record.told()).collect()
    }

    /// Whether another site may say which groups there are of these volumes.
    fn are_standbys_of(&self, members: &[String], site: &str) -> bool {
        members
            .iter()
            .filter_map(|id| self.by_id(id))
            .all(|open| open.record.role == RecordedRole::Standby && open.record.peer.as_ref().is_some_and(|peer| peer.site == site))
    }
}

impl Daemon {
    /// Tells sites what they have not heard, until it is aborted.
    pub(in crate::daemon) async fn tell_groups(self: Arc<Self>) {
        loop {
            let peers: Vec<(SiteId, SiteName)> =
                self.sites.list().peers.into_iter().filter_map(|peer| Some((peer.id.parse().ok()?, peer.name))).collect();
            for (site, name) in peers {
                self.tell_site(site, &name).await;
            }
            let _ = tokio::time::timeout(LOOK, self.regrouped.notified()).await;
        }
    }

    async fn tell_site(&self, site: SiteId, name: &SiteName) {
        let mut told = self.group_operation.lock().await;
        let Some(link) = self.sites.links.get(&site) else { return };
        let (groups, is_standby_site) = {
            let here = self.volumes.lock().await;
            let is_ours = |peer: &crate::catalogue::PeerRecord| peer.site == site.to_string();
            let has_standbys =
                here.all().any(|open| open.record.role == RecordedRole::Primary && open.record.peer.as_ref().is_some_and(is_ours));
            (here.groups_at(&site.to_string()), has_standbys)
        };
        if groups.is_empty() && !is_standby_site {
            return;
        }
        let before = told.0.get(&site).filter(|before| before.link.is(&link) && before.groups == groups);
        let wait = match before.map(|before| before.again) {
            Some(None) => return,
            Some(Some((due, _))) if Instant::now() < due => return,
            Some(Some((_, waited))) => (2 * waited).min(MAX_WAIT),
            None => LOOK,
        };
        let answer = self.sites.ask(&site, name, &Question::Groups { groups: groups.clone() }, TELL_DEADLINE).await;
        let again = match answer {
            Ok(Answer::Done) => None,
            Ok(answer) => {
                tracing::info!(site = %name, ?answer, "the site does not note all groups that there are");
                Some((Instant::now() + wait, wait))
            }
            Err(error) => {
                tracing::debug!(site = %name, %error, "the site has not heard which groups there are");
                Some((Instant::now() + wait, wait))
            }
        };
        told.0.insert(site, Telling { link, groups, again });
    }

    /// Tells the standby site of a group that is about to be made or changed. Whatever comes of that, it is told again what is recorded here: it may
    /// have noted what it did not answer.
    pub(super) async fn tell_with(&self, record: &GroupRecord, told: &mut Told) -> Outcome<()> {
        let mut groups = self.volumes.lock().await.groups_at(&record.site);
        groups.retain(|group| group.name != record.name.as_str());
        groups.push(record.told());
        let site = record.site.parse().map_err(|_| ApiError::new(ErrorCode::Internal, "a peer without a proper id"))?;
        told.0.remove(&site);
        match self.sites.ask(&site, &record.peer, &Question::Groups { groups }, TELL_DEADLINE).await? {
            Answer::Done => Ok(()),
            // Others concern this one only if they are in its way, and then it is refused, too.
            Answer::NotNoted { refused } => {
                let why = refused.into_iter().find(|refused| refused.name == record.name.as_str());
                let error = |refused: GroupRefused| ApiError::new(ErrorCode::WrongState, format!("{}: {}", record.peer, refused.message));
                why.map_or(Ok(()), |refused| Err(error(refused)))
            }
            Answer::Refused { message, .. } => Err(ApiError::new(ErrorCode::WrongState, format!("{}: {message}", record.peer))),
            other => Err(ApiError::new(ErrorCode::Internal, format!("{} answered {other:?}", record.peer))),
        }
    }

    /// The primary of standbys here says which groups they form.
    pub(in crate::daemon) async fn note_groups(&self, from: SiteId, told: Vec<GroupTold>) -> Outcome<Answer> {
        let peer = self.sites.peer_by_id(&from).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a site without a name"))?;
        let site = from.to_string();
        let mut here = self.volumes.lock().await;
        let ids: BTreeSet<&String> = told.iter().flat_map(|group| &group.members).collect();
        if told.len() > MAX_GROUPS || ids.len() < told.iter().map(|group| group.members.len()).sum() {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "too many groups, or a volume in two"));
        }
        let is_gone = |record: &GroupRecord| {
            record.site == site && record.promoting.is_none() && told.iter().all(|kept| kept.name != record.name.as_str())
        };
        let gone =
            here.groups.all().map(|group| &group.record).filter(|record| is_gone(record) && here.are_standbys_of(&record.members, &site));
        let gone: Vec<VolumeName> = gone.map(|record| record.name.clone()).collect();
        for name in gone {
            here.remove_group(&name)?;
            tracing::info!(group = %name, site = %peer, "the primary's site has ended this group");
        }
        let mut refused = Vec::new();
        for group in &told {
            let is_known = here.groups.all().any(|of| of.record.name.as_str() == group.name && of.record.id == group.id);
            match if is_known { Ok(None) } else { acceptable(&here, group, &site, &peer).map(Some) } {
                Ok(None) => {}
                Ok(Some(record)) => {
                    tracing::info!(group = %record.name, site = %peer, "the primary's site has made this group");
                    here.put_group(record)?;
                }
                Err(error) => refused.push(GroupRefused { name: group.name.clone(), message: error.to_string() }),
            }
        }
        Ok(if refused.is_empty() { Answer::Done } else { Answer::NotNoted { refused } })
    }
}

/// A group as it would be recorded here, if its members allow that.
fn acceptable(here: &Volumes, told: &GroupTold, site: &str, peer: &SiteName) -> Outcome<GroupRecord> {
    let invalid = |what: &str| ApiError::new(ErrorCode::InvalidRequest, format!("the question has no proper {what}"));
    let name: VolumeName = told.name.parse().map_err(|_| invalid("name"))?;
    parse_id(&told.id).ok_or_else(|| invalid("id"))?;
    if told.members.is_empty() || told.members.len() > MAX_MEMBERS {
        return Err(invalid("members"));
    }
    let exists = |what: &str| ApiError::new(ErrorCode::AlreadyExists, format!("a {what} {name} exists there already"));
    if here.records().any(|record| record.name == name) || here.reserved.contains(&name) {
        return Err(exists("volume"));
    }
    if here.groups.get(&name).is_some_and(|group| group.record.site != site || group.record.promoting.is_some()) {
        return Err(exists("group"));
    }
    let is_taken = |id: &String| here.groups.place_of(id).is_some_and(|(group, _)| group.record.name != name);
    if told.members.iter().any(is_taken) {
        return Err(exists("volume in another group than"));
    }
    if !told.members.iter().all(|id| here.by_id(id).is_some()) || !here.are_standbys_of(&told.members, site) {
        return Err(ApiError::new(ErrorCode::WrongState, format!("not all members of {name} are standbys there")));
    }
    let (id, members, site, peer) = (told.id.clone(), told.members.clone(), site.to_owned(), peer.clone());
    Ok(GroupRecord { name, id, members, site, peer, promoting: None })
}
