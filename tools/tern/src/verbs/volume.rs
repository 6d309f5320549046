//! `tern volume …`

use super::Context;
use crate::{
    app::Format,
    attach,
    cli::{CreateArgs, ExportArgs, ShowArgs, VolumeVerb},
    client::decode,
    qemu_version::QemuVersion,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{
    ApiError, CreateVolume, DeleteVolume, Done, ErrorCode, Export, ExportAccess, ResizeVolume, Size, Unexport, VolumeInfo, VolumeList,
    VolumeName, human_bytes, routes, routes::VolumeOp,
};

/// Runs the verb.
pub async fn run(context: &Context<'_>, verb: VolumeVerb) -> Result<Report, ApiError> {
    match verb {
        VolumeVerb::Create(arguments) => create(context, arguments).await,
        VolumeVerb::List => Report::of(context.client.get(routes::VOLUMES).await?, context.format, table),
        VolumeVerb::Show(arguments) => show(context, arguments).await,
        VolumeVerb::Delete { volume, yes } => delete(context, volume, DeleteVolume { yes }).await,
        VolumeVerb::Resize { volume, size, yes } => resize(context, volume, size, yes).await,
        VolumeVerb::Export(arguments) => export(context, arguments).await,
    }
}

async fn create(context: &Context<'_>, arguments: CreateArgs) -> Result<Report, ApiError> {
    let CreateArgs { volume: name, size, backing, import } = arguments;
    let request = CreateVolume { name, size_bytes: size.map(Size::bytes), backing, import };
    let document = context.client.follow(routes::VOLUMES, &request, |progress| context.progress.tell(&progress)).await?;
    Report::of(document, context.format, |volume: VolumeInfo| {
        format!("{}: {} in {}", volume.name, Size(volume.size_bytes), volume.backing.display())
    })
}

async fn show(context: &Context<'_>, arguments: ShowArgs) -> Result<Report, ApiError> {
    let document = context.client.get(&routes::volume(&arguments.volume)).await?;
    if arguments.qemu.is_none() && !arguments.libvirt {
        return Report::of(document, context.format, |volume: VolumeInfo| details(&volume));
    }
    let volume: VolumeInfo = decode(document)?;
    let export = attach::preferred(&volume)?;
    let (key, value, text) = if let Some(version) = arguments.qemu {
        if arguments.memory.bytes() >> 20 == 0 || !arguments.memory.bytes().is_multiple_of(1 << 20) {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "--memory: give a whole number of MiB, such as 2GiB"));
        }
        let version = version.or_else(QemuVersion::installed).unwrap_or(QemuVersion::OLDEST);
        let words = attach::qemu(&volume.name, export, arguments.memory, version);
        ("qemu", serde_json::json!(words), attach::for_shell(&words))
    } else {
        let xml = attach::libvirt(export, &volume.name);
        ("libvirt", serde_json::json!(xml), xml)
    };
    Ok(Report::done(match context.format {
        Format::Text => text,
        Format::Json => serde_json::json!({ key: value }).to_string(),
    }))
}

async fn delete(context: &Context<'_>, volume: VolumeName, request: DeleteVolume) -> Result<Report, ApiError> {
    let document = context.client.delete(&routes::delete_volume(&volume, &request)).await?;
    Report::of(document, context.format, |Done {}| format!("{volume} is deleted"))
}

async fn resize(context: &Context<'_>, volume: VolumeName, size: Size, yes: bool) -> Result<Report, ApiError> {
    let request = ResizeVolume { size_bytes: size.bytes(), yes };
    let document = context.client.post(&VolumeOp::Resize.path(&volume), &request).await?;
    Report::of(document, context.format, |volume: VolumeInfo| format!("{}: {}", volume.name, Size(volume.size_bytes)))
}

async fn export(context: &Context<'_>, arguments: ExportArgs) -> Result<Report, ApiError> {
    let ExportArgs { volume, nbd, vhost_user, read_only, remove } = arguments;
    let access = if read_only { ExportAccess::ReadOnly } else { ExportAccess::ReadWrite };
    let nbd = nbd.map(|address| Export::Nbd { address, access });
    let exports: Vec<_> = nbd.into_iter().chain(vhost_user.map(|path| Export::VhostUser { path, access })).collect();
    let mut document = serde_json::Value::Null;
    if remove {
        let path = VolumeOp::Unexport.path(&volume);
        let chosen: Vec<_> = if exports.is_empty() { vec![None] } else { exports.into_iter().map(Some).collect() };
        for export in chosen {
            document = context.client.post(&path, &Unexport { export }).await?;
        }
    } else {
        for export in exports {
            document = context.client.post(&VolumeOp::Export.path(&volume), &export).await?;
        }
    }
    Report::of(document, context.format, |volume: VolumeInfo| details(&volume))
}

fn details(volume: &VolumeInfo) -> String {
    let allocated = volume.allocated_bytes.map_or_else(|| "-".to_owned(), human_bytes);
    let mut text = format!(
        "name       {}\nsize       {} ({} bytes)\nallocated  {allocated}\nrole       {}\nbacking    {}\n",
        volume.name,
        Size(volume.size_bytes),
        volume.size_bytes,
        volume.role,
        volume.backing.display()
    );
    for export in &volume.exports {
        let access = if export.access() == ExportAccess::ReadOnly { " (read-only)" } else { "" };
        text.push_str(&format!("export     {}{access}\n", attachable(&volume.name, export)));
    }
    text
}

/// An export as clients take it.
fn attachable(volume: &VolumeName, export: &Export) -> String {
    match export {
        Export::Nbd { address, .. } => address.uri(volume),
        Export::VhostUser { path, .. } => format!("vhost-user:{}", path.as_str()),
    }
}

fn table(list: VolumeList) -> String {
    if list.volumes.is_empty() {
        return "no volumes yet: make one with `tern volume create NAME --size 10G`".to_owned();
    }
    let columns =
        [("NAME", Align::Left), ("SIZE", Align::Right), ("ROLE", Align::Left), ("EXPORTS", Align::Left), ("BACKING", Align::Left)];
    let mut table = Table::new(&columns);
    for volume in list.volumes {
        let exports = volume.exports.iter().map(Export::to_string).collect::<Vec<_>>().join(" ");
        let exports = if exports.is_empty() { "-".to_owned() } else { exports };
        let backing = volume.backing.display().to_string();
        table.row([volume.name.to_string(), human_bytes(volume.size_bytes), volume.role.to_string(), exports, backing]);
    }
    table.render()
}
