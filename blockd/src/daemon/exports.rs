//! Where volumes are served.

use super::Daemon;
use super::volumes::{OpenVolume, Volumes};
use crate::admin::Outcome;
use crate::metrics::VolumeMetrics;
use crate::nbd::NbdService;
use crate::request::Access;
use crate::vhost_user::VhostUserService;
use crate::volume::Volume;
use blockd_api::{ApiError, ErrorCode, Export, ExportAccess, NbdAddress, VolumeName};
use std::path::Path;
use std::sync::Arc;

/// By which protocols volumes are served.
pub(super) struct FrontEnds {
    pub nbd: NbdService,
    pub vhost_user: VhostUserService,
}

impl FrontEnds {
    /// Ends one export. Returns when its clients' requests are complete: never with the volumes locked.
    pub async fn end(&self, name: &VolumeName, export: &Export) {
        match export {
            Export::Nbd { address, .. } => drop(self.nbd.unexport(name.as_str(), address).await),
            Export::VhostUser { path, .. } => drop(self.vhost_user.unexport(name.as_str(), path.as_path()).await),
        }
    }

    /// Ends every export of a volume. Returns when its clients' requests are complete: never with the volumes locked.
    pub async fn end_all(&self, name: &VolumeName) {
        self.nbd.unexport_everywhere(name.as_str()).await;
        self.vhost_user.unexport_everywhere(name.as_str()).await;
    }
}

impl Volumes {
    /// Serves a volume wherever its record says.
    pub async fn serve_all(&self, name: &VolumeName) {
        let Some(open) = self.open.get(name) else { return };
        for export in &open.record.exports {
            if let Err(error) = self.serve(open, export).await {
                tracing::error!(volume = %name, ?export, %error, "the volume is not served there");
            }
        }
    }

    async fn serve(&self, open: &OpenVolume, export: &Export) -> Result<(), ApiError> {
        self.serve_at(open.volume.clone(), self.metrics.volume(&open.record.name), export).await
    }

    /// Serves what is no volume of the catalogue, perhaps.
    pub async fn serve_at(&self, volume: Arc<Volume>, metrics: Arc<VolumeMetrics>, export: &Export) -> Result<(), ApiError> {
        let failed = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Io, error.to_string());
        if let Some(path) = socket_of(export) {
            self.roots.admit(path)?;
        }
        let access = match export.access() {
            ExportAccess::ReadWrite => Access::ReadWrite,
            ExportAccess::ReadOnly => Access::ReadOnly,
        };
        match export {
            Export::Nbd { address, .. } => {
                let served = self.front_ends.nbd.export(volume, metrics, address, access).await;
                served.map(drop).map_err(|error| failed(&error))
            }
            Export::VhostUser { path, .. } => {
                let served = self.front_ends.vhost_user.export(volume, metrics, path.as_path(), access);
                served.map_err(|error| failed(&error))
            }
        }
    }

    /// Serves a volume at one more place, from now on.
    pub async fn export(&mut self, name: &VolumeName, export: Export) -> Result<(), ApiError> {
        let open = self.get(name)?;
        if let Some(existing) = open.record.exports.iter().find(|existing| existing.is_at(&export)) {
            return if *existing == export { Ok(()) } else { Err(otherwise_served(name, existing)) };
        }
        self.serve(open, &export).await?;
        self.change(name, |record| record.exports.push(export))
    }
}

fn otherwise_served(name: &VolumeName, existing: &Export) -> ApiError {
    ApiError::new(ErrorCode::AlreadyExists, format!("{name} is served there already, as {existing}"))
        .with_hint("end that export first, with --remove")
}

fn socket_of(export: &Export) -> Option<&Path> {
    match export {
        Export::Nbd { address: NbdAddress::Tcp(_), .. } => None,
        Export::Nbd { address: NbdAddress::Unix(path), .. } | Export::VhostUser { path, .. } => Some(path.as_path()),
    }
}

impl Daemon {
    /// Ends one export, or all.
    pub(super) async fn end_exports(&self, name: &VolumeName, export: Option<Export>) -> Outcome<()> {
        let (front_ends, gone) = {
            let mut volumes = self.volumes.lock().await;
            let is_meant = |has: &Export| export.as_ref().is_none_or(|export| export.is_at(has));
            let (gone, kept): (Vec<_>, Vec<_>) = volumes.get(name)?.record.exports.iter().cloned().partition(is_meant);
            if gone.is_empty() && export.is_some() {
                return Err(ApiError::new(ErrorCode::NotFound, format!("{name} is not served there")));
            }
            volumes.change(name, |record| record.exports = kept)?;
            (volumes.front_ends.clone(), gone)
        };
        for export in gone {
            front_ends.end(name, &export).await;
        }
        Ok(())
    }
}
