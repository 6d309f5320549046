//! Consistency groups: several volumes that are cut at one instant, and go on from one.
//!
//! ```text
//!   primary: record ──► cutter (one cut for all) ──► each member's commit names it ──► standby: record ──► board (which are complete)
//! ```
//!
//! The primary says which groups there are; its standby site keeps the same record. A member has its place in the cutter while this site is its
//! primary, and on the board while it is its standby.

mod changing;
mod giving_back;
mod points;
mod promotion;
mod record;
mod snapshot;
mod status;
mod telling;
mod waiting;

pub(super) use record::GroupRecord;
pub(super) use status::statuses;
pub(super) use telling::Told;

use super::Daemon;
use super::handover::client_active;
use super::part::Part;
use super::volumes::{OpenVolume, Volumes, io_error};
use crate::admin::Outcome;
use crate::catalogue::{RecordedRole, VolumeRecord};
use crate::metrics::Metrics;
use blockd_api::{ApiError, ErrorCode, VolumeName};
use replicator::primary::group::Cutter;
use replicator::site_link::request::parse_id;
use replicator::standby::Board;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Most groups of a site.
const MAX_GROUPS: usize = 64;

/// A group and what runs for it.
pub(super) struct OpenGroup {
    pub record: GroupRecord,
    pub cutter: Arc<Cutter>,
    pub board: Arc<Board>,
}

/// The groups of a site, by name.
#[derive(Default)]
pub(super) struct Groups(BTreeMap<VolumeName, OpenGroup>);

impl Groups {
    /// All of the catalogue. Before any volume is opened.
    pub fn open(records: Vec<GroupRecord>, metrics: &Metrics) -> io::Result<Self> {
        let mut groups = Self::default();
        for record in records {
            let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: group {} has no proper id", record.name));
            groups.begin(record.clone(), metrics).ok_or_else(damaged)?;
        }
        Ok(groups)
    }

    /// Nobody has a place in it yet.
    fn begin(&mut self, record: GroupRecord, metrics: &Metrics) -> Option<()> {
        let (id, members, holds) = (parse_id(&record.id)?, record.members.len(), metrics.group(&record.name));
        let cutter = Arc::new(Cutter::new(id, members, Box::new(move |held| holds.observe(held))));
        let open = OpenGroup { cutter, board: Arc::new(Board::new(id, members)), record };
        self.0.insert(open.record.name.clone(), open);
        Some(())
    }

    pub fn get(&self, name: &VolumeName) -> Option<&OpenGroup> {
        self.0.get(name)
    }

    pub fn all(&self) -> impl Iterator<Item = &OpenGroup> {
        self.0.values()
    }

    /// The group of the volume with this id, and which of its members that is.
    pub fn place_of(&self, id: &str) -> Option<(&OpenGroup, usize)> {
        self.all().find_map(|group| Some((group, group.record.members.iter().position(|member| member == id)?)))
    }

    /// A volume of a group is not changed by itself.
    pub fn check_alone(&self, record: &VolumeRecord, what: &str) -> Outcome<()> {
        let Some((group, _)) = self.place_of(&record.id) else { return Ok(()) };
        let (name, group) = (&record.name, &group.record.name);
        let error = ApiError::new(ErrorCode::WrongState, format!("{name} is a member of group {group}: it is not {what} by itself"));
        Err(error.with_hint(format!("act on {group}; or `tern group remove {group} {name}` where it is primary, first")))
    }
}

impl Volumes {
    /// The members of a group that are open here, in its order; an error names one that is not.
    pub fn members(&self, group: &GroupRecord) -> Outcome<Vec<&OpenVolume>> {
        let missing =
            || ApiError::new(ErrorCode::WrongState, format!("a member of group {} is not here, or could not be opened", group.name));
        group.members.iter().map(|id| self.by_id(id).ok_or_else(missing)).collect()
    }

    /// Gives a volume its place in its group, or none.
    pub fn seat(&self, open: &OpenVolume) {
        let place = self.groups.place_of(&open.record.id);
        match &open.part {
            Part::Primary(primary) => primary.first().replica.join(place.map(|(group, member)| (&group.cutter, member))),
            Part::Standby(standby) => standby.regroup(place.map(|(group, member)| (group.board.clone(), member))),
            Part::Idle => {}
        }
    }

    /// Gives a volume its place again that it left to be handed over.
    pub fn seat_again(&self, name: &VolumeName) {
        self.get(name).into_iter().for_each(|open| self.seat(open));
    }

    /// Records a group, in place of one of that name, and gives its members their places.
    fn put_group(&mut self, record: GroupRecord) -> Outcome<()> {
        record.store(&self.catalogue).map_err(io_error)?;
        let mut concerned = record.members.clone();
        if let Some(old) = self.groups.get(&record.name) {
            if old.record == record {
                return Ok(());
            }
            concerned.extend(old.record.members.iter().cloned());
        }
        let (groups, metrics) = (&mut self.groups, &self.metrics);
        groups.begin(record, metrics).ok_or_else(|| ApiError::new(ErrorCode::Internal, "a group without a proper id"))?;
        concerned.iter().filter_map(|id| self.by_id(id)).for_each(|open| self.seat(open));
        Ok(())
    }

    /// Changes what is recorded of a group and concerns no member's place, durably.
    fn change_group(&mut self, name: &VolumeName, change: impl FnOnce(&mut GroupRecord)) -> Outcome<()> {
        let group = self.groups.0.get_mut(name).ok_or_else(|| no_group(name))?;
        let mut record = group.record.clone();
        change(&mut record);
        record.store(&self.catalogue).map_err(io_error)?;
        group.record = record;
        Ok(())
    }

    /// Once all are open: a promotion that had taken no member when the daemon stopped has come to nothing.
    pub fn forget_idle_promotions(&mut self) -> Outcome<()> {
        let is_standby = |id: &String| self.by_id(id).is_some_and(|open| open.record.role == RecordedRole::Standby);
        let is_idle = |group: &&OpenGroup| group.record.promoting.is_some() && group.record.members.iter().all(is_standby);
        let idle: Vec<VolumeName> = self.groups.all().filter(is_idle).map(|group| group.record.name.clone()).collect();
        idle.iter().try_for_each(|name| self.change_group(name, |record| record.promoting = None))
    }

    /// Its members are by themselves from now on.
    fn remove_group(&mut self, name: &VolumeName) -> Outcome<()> {
        let group = self.groups.get(name).ok_or_else(|| no_group(name))?;
        group.record.forget(&self.catalogue).map_err(io_error)?;
        let members = group.record.members.clone();
        self.groups.0.remove(name);
        self.metrics.remove_group(name);
        members.iter().filter_map(|id| self.by_id(id)).for_each(|open| self.seat(open));
        Ok(())
    }
}

fn no_group(name: &VolumeName) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no group {name} here")).with_hint("`tern group list` shows those there are")
}

impl Daemon {
    /// The group of that name, if it is one.
    pub(super) async fn group_named(&self, name: &VolumeName) -> Option<GroupRecord> {
        self.volumes.lock().await.groups.get(name).map(|group| group.record.clone())
    }

    /// Refuses for a member of a group.
    pub(super) async fn check_alone(&self, record: &VolumeRecord, what: &str) -> Outcome<()> {
        self.volumes.lock().await.groups.check_alone(record, what)
    }

    /// The group of a volume is handed over as a whole: its clients are looked for at all members before the first one stops.
    pub(super) async fn check_clients_of_group(&self, record: &VolumeRecord, force: bool) -> Outcome<()> {
        let here = self.volumes.lock().await;
        let Some((group, _)) = here.groups.place_of(&record.id).filter(|_| !force) else { return Ok(()) };
        for open in group.record.members.iter().filter_map(|id| here.by_id(id)) {
            let attached = open.volume.clients.attached();
            if open.record.role == RecordedRole::Primary && !attached.is_empty() {
                return Err(client_active(&open.record.name, &attached));
            }
        }
        Ok(())
    }
}
