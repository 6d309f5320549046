//! `tern status`

use super::{Context, group, proof};
use crate::{
    cli::StatusArgs,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{
    Alone, ApiError, Bandwidth, Divergence, FrontEnd, GoingBack, Mode, ReplicaStatus, Role, Status, TrialStatus, VolumeStatus, human_bytes,
    human_rate, human_seconds, routes,
};

/// `tern status [NAME]`.
pub async fn status(context: &Context<'_>, arguments: &StatusArgs) -> Result<Report, ApiError> {
    let document = context.client.get(&routes::status(arguments.volume.as_ref())).await?;
    Report::of(document, context.format, |status: Status| table(&status))
}

fn table(status: &Status) -> String {
    if status.volumes.is_empty() {
        return format!("{} has no volumes yet: make one with `tern volume create NAME --size 10G`", status.site);
    }
    let columns = [
        ("VOLUME", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("MODE", Align::Left),
        ("PEER", Align::Left),
        ("RPO", Align::Right),
        ("BACKLOG", Align::Right),
        ("EVACUATION", Align::Right),
        ("ATTACHED", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for volume in &status.volumes {
        table.row(row(volume));
    }
    let mut text = table.render();
    if !status.groups.is_empty() {
        text.push_str(&format!("\n{}\n", group::table(&status.groups)));
    }
    for volume in &status.volumes {
        if volume.replicas.len() > 1 {
            volume.replicas.iter().for_each(|replica| text.push_str(&format!("{}: {}\n", volume.name, standby(replica))));
        }
        if let Some(said) = cuts(volume) {
            text.push_str(&format!("{}: {said}\n", volume.name));
        }
        if let Some(said) = limit(volume).filter(|_| volume.role == Role::Primary) {
            text.push_str(&format!("{}: {said}\n", volume.name));
        }
        if let Some(scrub) = volume.scrub.as_ref().filter(|scrub| scrub.last.is_some() || scrub.found_blocks > 0 || scrub.error.is_some()) {
            text.push_str(&format!("{}: image {}\n", volume.name, proof::said(scrub)));
        }
        if volume.kept_bytes > 0 {
            text.push_str(&format!("{}: keeps its old state, in {}\n", volume.name, human_bytes(volume.kept_bytes)));
        }
        if let Some(verified) = &volume.verified {
            text.push_str(&format!("{}: {}\n", volume.name, proof::verified(verified)));
        }
        if let Some(said) = going_back(volume) {
            text.push_str(&format!("{}: {said}\n", volume.name));
        }
        if let Some(said) = on_trial(volume) {
            text.push_str(&format!("{}: {said}\n", volume.name));
        }
        if let Some(error) = &volume.last_error {
            // The error may quote what others sent.
            let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            text.push_str(&format!("{}: {error}\n", volume.name));
        }
        if let Some(Divergence { here, there }) = &volume.diverged {
            let peer = volume.peer.as_ref().map_or("the other site", |peer| peer.as_str());
            text.push_str(&format!("{}: only here: {}; only at {peer}: {}\n", volume.name, alone(here), alone(there)));
        }
    }
    text
}

/// One standby of several, in words.
fn standby(replica: &ReplicaStatus) -> String {
    let ReplicaStatus { site, mode, state, promise_held: _, epoch_committed, rpo_seconds, backlog_bytes, evacuation_seconds } = replica;
    let behind = rpo_seconds.map_or_else(|| "nobody knows how far behind".to_owned(), |rpo| format!("{} behind", human_seconds(rpo)));
    let there = evacuation_seconds.map_or_else(String::new, |seconds| format!(", there in {}", human_seconds(seconds)));
    format!("{site} {mode}, {state}, recovery point {epoch_committed}, {behind}, {} to go{there}", human_bytes(*backlog_bytes))
}

/// The cuts of a volume in mode `snapshot`, in words.
pub fn cuts(volume: &VolumeStatus) -> Option<String> {
    if volume.role != Role::Primary || volume.mode != Mode::Snapshot {
        return None;
    }
    let last =
        volume.point_age_seconds.map_or_else(|| "no recovery point yet".to_owned(), |age| format!("last cut {} ago", human_seconds(age)));
    let next = volume.next_cut.map_or_else(|| "cut only when asked".to_owned(), |time| format!("next one at {time}"));
    Some(format!("{last}, {next}"))
}

/// Most that may be sent, in words.
fn limit(volume: &VolumeStatus) -> Option<String> {
    let now = volume.bandwidth_bits_per_second.map(|limit| format!("sends at most {}", human_rate(limit as f64)));
    let Some(Bandwidth::By(calendar)) = &volume.bandwidth else { return now };
    Some(format!("{} now, by {calendar} in UTC", now.unwrap_or_else(|| "sends without a limit".into())))
}

/// How far the image has been led back, in words.
pub fn going_back(volume: &VolumeStatus) -> Option<String> {
    let GoingBack { point, bytes_left, bytes_total, lost_blocks, .. } = volume.going_back?;
    let (left, total) = (human_bytes(bytes_left), human_bytes(bytes_total));
    let lost = if lost_blocks > 0 { format!("; {lost_blocks} blocks of that cannot be had") } else { String::new() };
    Some(format!("shows recovery point {point}; {left} of {total} of its image are still to be led back to it{lost}"))
}

/// A promotion that can be taken back, in words.
pub fn on_trial(volume: &VolumeStatus) -> Option<String> {
    let TrialStatus { point, left_seconds, taken_back } = volume.trial?;
    if taken_back {
        return Some(format!("the trial from recovery point {point} is being taken back"));
    }
    let left = if left_seconds > 0.0 { format!("in {}", human_seconds(left_seconds)) } else { "now".to_owned() };
    Some(format!("on trial from recovery point {point}: `tern commit`, or `tern rollback`, as {left} if no client is attached"))
}

fn alone(what: &Option<Alone>) -> String {
    let Some(Alone { blocks, bytes, since, exact }) = what else { return "not known".into() };
    let most = if *exact { "" } else { "at most " };
    let (Some(blocks), Some(bytes)) = (blocks, bytes) else {
        return "what it wrote since the recovery point that the other one went back to".into();
    };
    let since = since.map_or_else(String::new, |since| format!(" since {since}"));
    format!("{most}{blocks} blocks ({}){since}", human_bytes(*bytes))
}

fn row(volume: &VolumeStatus) -> [String; 9] {
    let none = || "-".to_owned();
    let replicated = volume.role != Role::Standalone;
    let attached = volume.attached.iter().map(|front_end: &FrontEnd| front_end.as_str()).collect::<Vec<_>>().join(",");
    [
        volume.name.to_string(),
        volume.role.to_string(),
        if replicated { volume.state.to_string() } else { none() },
        if replicated { volume.mode.to_string() } else { none() },
        volume.peer.as_ref().map_or_else(none, ToString::to_string),
        volume.rpo_seconds.filter(|_| replicated).map_or_else(none, human_seconds),
        if replicated { human_bytes(volume.backlog_bytes) } else { none() },
        volume.evacuation_seconds.map_or_else(none, human_seconds),
        if attached.is_empty() { none() } else { attached },
    ]
}
