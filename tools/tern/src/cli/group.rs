//! Verbs about consistency groups.

use blockd_api::VolumeName;
use clap::Subcommand;

/// Cuts several volumes at one instant.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Make a group of volumes that are primary here
    Create {
        /// Its name: `tern snapshot`, `points`, `promote` and `drill` take it in place of a volume's
        name: VolumeName,
        /// Its volumes, replicated to the same site
        #[arg(value_name = "VOLUME", required = true, num_args = 2..)]
        volumes: Vec<VolumeName>,
    },
    /// List the groups
    List,
    /// Show a group
    Show {
        /// Which one
        name: VolumeName,
    },
    /// Put volumes into a group: its recovery points begin anew
    Add {
        /// Which one
        name: VolumeName,
        /// These volumes
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<VolumeName>,
    },
    /// Take volumes out of a group: its recovery points begin anew
    Remove {
        /// Which one
        name: VolumeName,
        /// These volumes
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<VolumeName>,
    },
    /// End a group: its volumes go on by themselves
    Delete {
        /// Which one
        name: VolumeName,
    },
}
