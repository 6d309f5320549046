//! Verbs about volumes.

use super::values;
use crate::qemu_version::QemuVersion;
use blockd_api::{NbdAddress, Size, SocketPath, VolumeName};
use clap::{ArgGroup, Args, Subcommand};
use std::path::PathBuf;

/// Makes, serves and deletes volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a volume
    Create(CreateArgs),
    /// List the volumes
    List,
    /// Show a volume, or how to attach it
    Show(ShowArgs),
    /// Delete a volume and what it holds
    Delete {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
        /// Accept the loss of what it holds
        #[arg(long)]
        yes: bool,
    },
    /// Change a volume's size
    Resize {
        /// Which volume
        #[arg(value_name = "NAME")]
        volume: VolumeName,
        /// The new size, such as 20G
        size: Size,
        /// Accept the loss of what lies beyond a smaller size
        #[arg(long)]
        yes: bool,
    },
    /// Serve a volume at an address from now on, restarts included
    Export(ExportArgs),
}

/// Makes a volume.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Its size, such as 10G [default: that of the import or of the backing]
    #[arg(long, required_unless_present_any = ["backing", "import"])]
    pub size: Option<Size>,
    /// File or block device that holds it [default: a sparse file in the state directory]
    #[arg(long, value_name = "PATH", value_parser = values::absolute)]
    pub backing: Option<PathBuf>,
    /// Raw or qcow2 image with its first content
    #[arg(long, value_name = "FILE", value_parser = values::absolute)]
    pub import: Option<PathBuf>,
}

/// Shows a volume.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Print the QEMU arguments that attach it [default version: that of the QEMU on this host]
    #[arg(long, value_name = "VERSION", require_equals = true, conflicts_with = "libvirt")]
    pub qemu: Option<Option<QemuVersion>>,
    /// Print the libvirt domain XML that attaches it
    #[arg(long)]
    pub libvirt: bool,
    /// Memory of the VM that QEMU's arguments are for
    #[arg(long, default_value = "1GiB", requires = "qemu")]
    pub memory: Size,
}

/// Serves a volume.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("export").args(["nbd", "vhost_user", "remove"]).required(true).multiple(true))]
pub struct ExportArgs {
    /// Which volume
    #[arg(value_name = "NAME")]
    pub volume: VolumeName,
    /// Serve NBD at unix:PATH or tcp:IP:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = values::nbd_address)]
    pub nbd: Option<NbdAddress>,
    /// Serve vhost-user-blk on this socket
    #[arg(long, value_name = "PATH", value_parser = values::socket_path)]
    pub vhost_user: Option<SocketPath>,
    /// Let clients read, and refuse every change
    #[arg(long, conflicts_with = "remove")]
    pub read_only: bool,
    /// End these exports, or all of the volume's if none is given
    #[arg(long)]
    pub remove: bool,
}
