//! Volumes of this site.

use crate::{Export, Role, VolumeName};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Makes a volume. At least one of size, backing and import says how large it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: VolumeName,
    /// Its size; `None`: that of the import or of the backing.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// A raw file or a block device, absolute; `None`: a sparse file in the state directory.
    #[serde(default)]
    pub backing: Option<PathBuf>,
    /// A raw or qcow2 image, absolute, whose content the volume begins with.
    #[serde(default)]
    pub import: Option<PathBuf>,
}

/// Deletes a volume and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolume {
    /// Accepts the loss. Without it the daemon refuses and says how much it holds.
    #[serde(default)]
    pub yes: bool,
}

/// Changes a volume's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size.
    pub size_bytes: u64,
    /// Accepts the loss of what lies beyond a smaller size.
    #[serde(default)]
    pub yes: bool,
}

/// Ends exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unexport {
    /// Which one; `None`: all of the volume's.
    #[serde(default)]
    pub export: Option<Export>,
}

/// All volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// By name.
    pub volumes: Vec<VolumeInfo>,
}

/// A volume as it is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub size_bytes: u64,
    /// The file or device that holds it.
    pub backing: PathBuf,
    /// Where it can be attached.
    pub exports: Vec<Export>,
    /// This site's part in it.
    pub role: Role,
    /// What it takes of the file system; `null` for a device.
    pub allocated_bytes: Option<u64>,
}
