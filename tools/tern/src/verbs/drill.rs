//! `tern drill`

use super::Context;
use crate::{
    cli::{DrillArgs, DrillAt},
    report::Report,
    table::{Align, Table},
};
use blockd_api::{
    ApiError, BeginDrill, Done, Drill, DrillList, DrillState, ErrorCode, Export, ExportAccess, human_bytes, human_seconds,
    routes::{self, VolumeOp},
};

/// `tern drill NAME`: begins or ends one, and tells of all.
pub async fn drill(context: &Context<'_>, arguments: DrillArgs) -> Result<Report, ApiError> {
    let DrillArgs { volume, nbd, vhost_user, at, end, report } = arguments;
    let access = ExportAccess::ReadWrite;
    let nbd = nbd.map(|address| Export::Nbd { address, access });
    let export = nbd.or(vhost_user.map(|path| Export::VhostUser { path, access }));
    let point = if let Some(DrillAt::Point(epoch)) = at { Some(epoch) } else { None };
    let mut done = None;
    if let Some(export) = export {
        let document =
            context.client.post(&VolumeOp::Drill.path(&volume), &BeginDrill { export, at: point, kept: at == Some(DrillAt::Kept) }).await?;
        done = Some(Report::of(document, context.format, begun)?);
    } else if end {
        let document = context.client.post(&VolumeOp::EndDrill.path(&volume), &Done {}).await?;
        done = Some(Report::of(document, context.format, ended)?);
    }
    let Some(file) = report else { return done.ok_or_else(|| ApiError::new(ErrorCode::Internal, "nothing is to be done")) };
    let document = context.client.get(&routes::drills(&volume)).await?;
    if let Some(path) = file {
        let written = serde_json::to_string_pretty(&document).map_err(std::io::Error::other);
        let written = written.and_then(|text| std::fs::write(&path, text + "\n"));
        written.map_err(|error| ApiError::new(ErrorCode::Io, format!("--report {}: {error}", path.display())))?;
    }
    Report::of(document, context.format, table)
}

fn begun(drill: Drill) -> String {
    let Drill { volume, point, ready_seconds, .. } = drill;
    let at = match drill.export {
        Export::Nbd { address, .. } => address.uri(&volume),
        Export::VhostUser { path, .. } => format!("vhost-user:{}", path.as_str()),
    };
    format!("{volume}: a copy of recovery point {point} at {at}, ready in {}", human_seconds(ready_seconds))
}

fn ended(drill: Drill) -> String {
    let Drill { volume, point, changed_bytes, .. } = drill;
    let first =
        drill.first_read_seconds.map_or_else(|| "never read".to_owned(), |seconds| format!("read after {}", human_seconds(seconds)));
    format!("{volume}: the copy of recovery point {point} is gone; {first}, {} written", human_bytes(changed_bytes))
}

fn table(list: DrillList) -> String {
    if list.drills.is_empty() {
        return "no drills yet: begin one with `tern drill NAME --nbd unix:PATH`".to_owned();
    }
    let columns = [
        ("BEGAN", Align::Left),
        ("POINT", Align::Right),
        ("CUT", Align::Left),
        ("READY", Align::Right),
        ("FIRST READ", Align::Right),
        ("WRITTEN", Align::Right),
        ("ENDED", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for drill in list.drills {
        let cut = drill.point_time.map_or_else(|| "-".to_owned(), |time| time.to_string());
        let first_read = drill.first_read_seconds.map_or_else(|| "-".to_owned(), human_seconds);
        let ended = match (drill.state, drill.ended) {
            (DrillState::Running, _) => "running".to_owned(),
            (_, Some(time)) => time.to_string(),
            (_, None) => "with blockd".to_owned(),
        };
        let (began, ready) = (drill.began.to_string(), human_seconds(drill.ready_seconds));
        table.row([began, drill.point.to_string(), cut, ready, first_read, human_bytes(drill.changed_bytes), ended]);
    }
    table.render()
}
