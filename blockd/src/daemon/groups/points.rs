//! The recovery points of a group at its standby, and drills on them.

use super::super::Daemon;
use super::super::handover::wrong_state;
use super::super::part::Part;
use super::super::points::point_time;
use super::super::volumes::io_error;
use super::{GroupRecord, no_group};
use crate::admin::Outcome;
use blockd_api::*;
use replicator::standby::{AllKept, StandbyService};
use replicator::undo::Kept;
use replicator_engine::generation::Id;
use replicator_engine::group::common_points;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A member's standby, by its volume's name.
pub(super) type Member = (VolumeName, Arc<StandbyService>);

/// A recovery point of a group.
pub(super) struct GroupPoint {
    pub number: u64,
    /// Each member's part.
    pub parts: Vec<Kept>,
    /// What changed until the next one, in all members.
    changed_bytes: u64,
}

/// What every member still has, the oldest first.
pub(super) async fn group_points(id: Id, members: &[Member]) -> Outcome<Vec<GroupPoint>> {
    let mut kept = Vec::new();
    for (_, standby) in members {
        kept.push(standby.points().await.map_err(io_error)?);
    }
    let cuts: Vec<_> = kept.iter().map(|points| points.iter().map(|kept| kept.point.group).collect()).collect();
    let common = common_points(id, &cuts);
    let end = |next: Option<&(u64, Vec<usize>)>, member: usize| next.map_or(kept[member].len(), |(_, places)| places[member]);
    let point = |(at, (number, places)): (usize, &(u64, Vec<usize>))| GroupPoint {
        number: *number,
        parts: places.iter().zip(&kept).map(|(place, points)| points[*place]).collect(),
        changed_bytes: places
            .iter()
            .enumerate()
            .map(|(member, place)| changed(&kept[member][*place..end(common.get(at + 1), member)]))
            .sum(),
    };
    Ok(common.iter().enumerate().map(point).collect())
}

fn changed(points: &[Kept]) -> u64 {
    points.iter().map(|kept| kept.changed_bytes).sum()
}

fn listed(point: &GroupPoint) -> Point {
    let time = point.parts.first().and_then(|kept| point_time(kept.point));
    let size_bytes = point.parts.iter().map(|kept| kept.point.size_bytes).sum();
    Point { epoch: point.number, time, bytes: point.changed_bytes, size_bytes, pinned: false, damaged_blocks: 0 }
}

pub(super) fn not_kept(group: &VolumeName, at: u64) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("not every member of {group} has recovery point {at}"))
        .with_hint(format!("`tern points {group}` lists those that all have"))
}

impl Daemon {
    /// The standbys of all members, in the group's order, and its id.
    pub(super) async fn group_standbys(&self, name: &VolumeName) -> Outcome<(Id, Vec<Member>)> {
        let here = self.volumes.lock().await;
        let group = here.groups.get(name).ok_or_else(|| no_group(name))?;
        let members = here.members(&group.record)?.into_iter().map(|open| match &open.part {
            Part::Standby(standby) => Ok((open.record.name.clone(), standby.clone())),
            _ => Err(wrong_state(format!("{} is no standby here", open.record.name), "ask at the site that has the group's standbys")),
        });
        let id = replicator::site_link::request::parse_id(&group.record.id);
        Ok((id.ok_or_else(|| no_group(name))?, members.collect::<Outcome<_>>()?))
    }

    /// No point of the group is thinned meanwhile.
    pub(super) async fn keep_all(&self, name: &VolumeName) -> Outcome<AllKept> {
        let here = self.volumes.lock().await;
        Ok(here.groups.get(name).ok_or_else(|| no_group(name))?.board.keep_all())
    }

    pub(in crate::daemon) async fn list_group_points(&self, group: &GroupRecord) -> Outcome<PointList> {
        let (id, members) = self.group_standbys(&group.name).await?;
        Ok(PointList { points: group_points(id, &members).await?.iter().map(listed).collect() })
    }

    /// A copy of each member, all of the same point.
    pub(in crate::daemon) async fn begin_group_drill(&self, group: &GroupRecord, request: BeginDrill) -> Outcome<Drill> {
        if request.kept {
            let hint = "drill the volume by itself";
            return Err(wrong_state("what an old primary was is kept of a volume, not of a group".into(), hint));
        }
        let (began, (id, members)) = (Instant::now(), self.group_standbys(&group.name).await?);
        let _kept = self.keep_all(&group.name).await?;
        let points = group_points(id, &members).await?;
        let point = match request.at {
            Some(at) => points.iter().find(|point| point.number == at).ok_or_else(|| not_kept(&group.name, at))?,
            None => points.last().ok_or_else(|| no_points(&group.name))?,
        };
        let mut drills: Vec<Drill> = Vec::new();
        for ((volume, _), kept) in members.iter().zip(&point.parts) {
            let one = BeginDrill { export: export_of(&request.export, volume)?, at: Some(kept.point.epoch), kept: false };
            match Self::begin_drill(self, volume, one).await {
                Ok(drill) => drills.push(drill),
                Err(error) => {
                    for drill in drills {
                        self.end_any_drill(&drill.volume).await;
                    }
                    return Err(ApiError { message: format!("{volume}: {}", error.message), ..error });
                }
            }
        }
        let ready_seconds = began.elapsed().as_secs_f64();
        of_all(group, drills).map(|drill| Drill { point: point.number, export: request.export, ready_seconds, ..drill })
    }

    pub(in crate::daemon) async fn end_group_drill(&self, group: &GroupRecord) -> Outcome<Drill> {
        let names = self.member_names(group).await?;
        let mut ended = Vec::new();
        for name in &names {
            ended.extend(self.end_any_drill(name).await.transpose()?);
        }
        of_all(group, ended)
    }

    pub(in crate::daemon) async fn list_group_drills(&self, group: &GroupRecord) -> Outcome<DrillList> {
        let mut drills = Vec::new();
        for name in self.member_names(group).await? {
            drills.extend(self.list_drills(&name).await?.drills);
        }
        drills.sort_by_key(|drill| drill.began.unix_seconds());
        Ok(DrillList { drills })
    }

    pub(super) async fn member_names(&self, group: &GroupRecord) -> Outcome<Vec<VolumeName>> {
        let here = self.volumes.lock().await;
        Ok(here.members(group)?.into_iter().map(|open| open.record.name.clone()).collect())
    }
}

pub(super) fn no_points(group: &VolumeName) -> ApiError {
    wrong_state(
        format!("{group} has no recovery point that all of its members have"),
        "`tern group show` at its primary says what is in the way",
    )
}

/// The drills of a group's members as one.
fn of_all(group: &GroupRecord, members: Vec<Drill>) -> Outcome<Drill> {
    let none = || ApiError::new(ErrorCode::NotFound, format!("no drill of {} is under way here", group.name));
    let first = members.first().cloned().ok_or_else(none)?;
    let first_read = members.iter().map(|drill| drill.first_read_seconds).collect::<Option<Vec<_>>>();
    Ok(Drill {
        volume: group.name.clone(),
        size_bytes: members.iter().map(|drill| drill.size_bytes).sum(),
        first_read_seconds: first_read.map(|seconds| seconds.into_iter().fold(0.0, f64::max)),
        changed_bytes: members.iter().map(|drill| drill.changed_bytes).sum(),
        members,
        ..first
    })
}

/// NBD clients choose a volume by its name; a vhost-user socket serves one.
fn export_of(export: &Export, volume: &VolumeName) -> Outcome<Export> {
    let Export::VhostUser { path, access } = export else { return Ok(export.clone()) };
    let path = SocketPath::try_from(PathBuf::from(format!("{}.{volume}", path.as_str())));
    let path = path.map_err(|error| ApiError::new(ErrorCode::InvalidRequest, format!("the socket of {volume}: {error}")))?;
    Ok(Export::VhostUser { path, access: *access })
}
