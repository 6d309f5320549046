//! Consistency groups: several volumes whose recovery points are of one instant.

use crate::{Role, SiteName, State, VolumeName};
use serde::{Deserialize, Serialize};

/// Makes a group of volumes whose primary is this site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Its name: no volume has it.
    pub name: VolumeName,
    /// Its members, replicated to the same site.
    pub volumes: Vec<VolumeName>,
}

/// Changes a group's members. Its recovery points begin anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeGroup {
    /// These come.
    #[serde(default)]
    pub add: Vec<VolumeName>,
    /// These go.
    #[serde(default)]
    pub remove: Vec<VolumeName>,
}

/// The groups of a site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupList {
    /// By name.
    pub groups: Vec<GroupStatus>,
}

/// A group at this site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: VolumeName,
    /// Its members.
    pub volumes: Vec<VolumeName>,
    /// This site's part in it; `null` if that is not the same for all members.
    pub role: Option<Role>,
    /// The worst of its members'; at best `catching-up` while they are not cut together.
    pub state: State,
    /// Whether every member's promise holds, and they are cut together.
    pub promise_held: bool,
    /// The other site.
    pub peer: SiteName,
    /// The number of its newest recovery point; `null` where none is known.
    pub point: Option<u64>,
    /// When that was cut, as an age.
    pub point_age_seconds: Option<f64>,
    /// Why there is no newer one, or what is to be done.
    pub reason: Option<String>,
    /// Counter: cuts of all members since the daemon started.
    pub cuts: u64,
    /// Counter: cuts that were given up, because writes would have been held for too long.
    pub cuts_given_up: u64,
    /// The longest that writes were held for a cut since the daemon started.
    pub longest_hold_seconds: f64,
}
