//! `tern group …`

use super::Context;
use crate::{
    cli::GroupVerb,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{ApiError, ChangeGroup, CreateGroup, Done, GroupList, GroupStatus, human_seconds, routes};

/// Runs the verb.
pub async fn run(context: &Context<'_>, verb: GroupVerb) -> Result<Report, ApiError> {
    let (client, format) = (context.client, context.format);
    let change = async |name, request: ChangeGroup| client.post(&routes::group_members(&name), &request).await;
    match verb {
        GroupVerb::Create { name, volumes } => {
            let document = client.post(routes::GROUPS, &CreateGroup { name, volumes }).await?;
            Report::of(document, format, |group: GroupStatus| format!("{}: {} are cut together from now on", group.name, joined(&group)))
        }
        GroupVerb::List => Report::of(client.get(routes::GROUPS).await?, format, |list: GroupList| {
            if list.groups.is_empty() {
                return "no groups yet: make one with `tern group create NAME VOLUME VOLUME…`".to_owned();
            }
            table(&list.groups)
        }),
        GroupVerb::Show { name } => Report::of(client.get(&routes::group(&name)).await?, format, |group: GroupStatus| shown(&group)),
        GroupVerb::Add { name, volumes } => {
            let document = change(name, ChangeGroup { add: volumes, remove: Vec::new() }).await?;
            Report::of(document, format, |group: GroupStatus| format!("{}: {}", group.name, joined(&group)))
        }
        GroupVerb::Remove { name, volumes } => {
            let document = change(name, ChangeGroup { add: Vec::new(), remove: volumes }).await?;
            Report::of(document, format, |group: GroupStatus| format!("{}: {}", group.name, joined(&group)))
        }
        GroupVerb::Delete { name } => {
            let document = client.delete(&routes::group(&name)).await?;
            Report::of(document, format, |Done {}| format!("{name}: its volumes go on by themselves"))
        }
    }
}

fn joined(group: &GroupStatus) -> String {
    group.volumes.iter().map(|volume| volume.as_str()).collect::<Vec<_>>().join(", ")
}

/// This site's part in it.
pub fn role(group: &GroupStatus) -> String {
    group.role.map_or_else(|| "mixed".to_owned(), |role| role.to_string())
}

/// One line a group.
pub fn table(groups: &[GroupStatus]) -> String {
    let columns = [
        ("GROUP", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("PEER", Align::Left),
        ("POINT", Align::Right),
        ("AGE", Align::Right),
        ("VOLUMES", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for group in groups {
        let point = group.point.map_or_else(|| "-".to_owned(), |point| point.to_string());
        let age = group.point_age_seconds.map_or_else(|| "-".to_owned(), human_seconds);
        table.row([group.name.to_string(), role(group), group.state.to_string(), group.peer.to_string(), point, age, joined(group)]);
    }
    let mut text = table.render();
    for group in groups {
        if let Some(reason) = &group.reason {
            text.push_str(&format!("{}: {reason}\n", group.name));
        }
    }
    text
}

fn shown(group: &GroupStatus) -> String {
    let held = human_seconds(group.longest_hold_seconds);
    let cuts = format!("{} cuts, {} given up; writes held for {held} at most", group.cuts, group.cuts_given_up);
    format!("{}{}: {cuts}\n", table(std::slice::from_ref(group)), group.name)
}
