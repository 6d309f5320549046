//! The state of a site as `tern status --json` prints it.
//!
//! The scalar fields of a volume describe the replica that is furthest behind its promise; `replicas` has each. Counters are totals
//! since the volume was made.

use crate::{Bandwidth, Divergence, GroupStatus, LastVerify, ScrubStatus, SiteName, UtcTime, VolumeName};
use serde::{Deserialize, Serialize};

/// The whole document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This site.
    pub site: SiteName,
    /// Its id, which its key proves.
    pub id: String,
    /// Its volumes by name, or the one that was asked for.
    pub volumes: Vec<VolumeStatus>,
    /// Its consistency groups by name, or the one that was asked for.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// Space for epochs on their way into this site's standby images.
    #[serde(default)]
    pub journal: Usage,
    /// Space for old content of frozen blocks that do not fit in memory.
    #[serde(default)]
    pub spill: Usage,
}

/// How much of a quota is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// The most that may be.
    pub quota_bytes: u64,
}

/// A volume at this site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub size_bytes: u64,
    /// This site's part in it.
    pub role: Role,
    /// How replication goes.
    pub state: State,
    /// Whether a disaster now would cost no more than the mode says.
    pub promise_held: bool,
    /// When writes and flushes are acknowledged.
    pub mode: Mode,
    /// The other site; `null` for a standalone volume.
    pub peer: Option<SiteName>,
    /// The counter of the newest generation that this site knows.
    pub generation: u64,
    /// The epoch that collects changes.
    pub epoch_open: u64,
    /// The newest recovery point; 0 before the first.
    pub epoch_committed: u64,
    /// Age of the oldest acknowledged write that is not in a committed epoch; 0 when there is none, `null` where only the primary knows.
    pub rpo_seconds: Option<f64>,
    /// What was asked for; `null` for a standalone volume.
    #[serde(default)]
    pub rpo_target_seconds: Option<f64>,
    /// When the newest recovery point was cut, as an age; `null` if that is not known, or before the first.
    #[serde(default)]
    pub point_age_seconds: Option<f64>,
    /// When mode `snapshot` cuts: a span or cron syntax; `null` in other modes, and if only when asked.
    #[serde(default)]
    pub schedule: Option<String>,
    /// When the next cut is due by that schedule.
    #[serde(default)]
    pub next_cut: Option<UtcTime>,
    /// Most that may be sent, as it was set: a rate, or a calendar; `null` for no limit.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// Most that may be sent now; `null` for no limit.
    #[serde(default)]
    pub bandwidth_bits_per_second: Option<u64>,
    /// What is still to send, uncompressed.
    pub backlog_bytes: u64,
    /// Blocks of 4 KiB that may differ from the standby.
    pub dirty_blocks: u64,
    /// Counter: what clients wrote.
    pub changed_bytes: u64,
    /// Counter: what went out for this volume, headers included.
    pub wire_bytes_sent: u64,
    /// Counter: what came in for this volume, headers included.
    pub wire_bytes_received: u64,
    /// Counter: blocks that were sent as zeroes.
    pub zero_blocks: u64,
    /// Counter: blocks that the standby had already.
    pub duplicate_blocks: u64,
    /// Counter: blocks that were sent as a difference.
    pub delta_blocks: u64,
    /// Counter: blocks that were sent whole.
    pub full_blocks: u64,
    /// How long an evacuation would take now; `null` when nobody can tell.
    pub evacuation_seconds: Option<f64>,
    /// Front ends with a client now.
    pub attached: Vec<FrontEnd>,
    /// The last thing that went wrong and still matters.
    pub last_error: Option<String>,
    /// Each standby, seen from the primary.
    pub replicas: Vec<ReplicaStatus>,
    /// The lease that this primary needs, or that this standby grants; `null` where there is none.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
    /// Recovery points that a standby holds.
    #[serde(default)]
    pub points: u64,
    /// What the older ones take on its disk.
    #[serde(default)]
    pub undo_bytes: u64,
    /// What this site's old state takes that is kept since it became a standby; 0 if none is.
    #[serde(default)]
    pub kept_bytes: u64,
    /// How a standby's image fares; `null` elsewhere.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// What the last `tern verify`, or one by the schedule, found here; `null` before the first.
    #[serde(default)]
    pub verified: Option<LastVerify>,
    /// What either site has that the other lacks, once both were primary and until one follows; else `null`.
    #[serde(default)]
    pub diverged: Option<Divergence>,
    /// How far its image has been led back to the older recovery point that it was promoted at; `null` once it is there.
    #[serde(default)]
    pub going_back: Option<GoingBack>,
    /// The promotion that can be taken back; `null` where there is none.
    #[serde(default)]
    pub trial: Option<TrialStatus>,
}

/// A volume that was promoted on trial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// The recovery point that it goes on from.
    pub point: u64,
    /// Until it is taken back, if no client is attached then.
    pub left_seconds: f64,
    /// Whether it is being taken back.
    pub taken_back: bool,
}

/// A volume that shows an older recovery point, while its image is still being led back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoingBack {
    /// The point.
    pub point: u64,
    /// What is not there for good yet.
    pub bytes_left: u64,
    /// Of how much.
    pub bytes_total: u64,
    /// Blocks of 4 KiB among what is left that cannot be had: the undo of them is damaged, and whoever reads them gets an error.
    #[serde(default)]
    pub lost_blocks: u64,
    /// The first of them.
    #[serde(default)]
    pub first_lost_block: Option<u64>,
}

/// How a primary is kept from acknowledging beside another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// How long a lease is.
    pub seconds: f64,
    /// At a primary: what is left of it; 0: nothing is acknowledged.
    pub left_seconds: Option<f64>,
    /// At a primary: whether the standby grants it.
    pub standby_grants: Option<bool>,
    /// The third site, if there is one.
    pub witness: Option<String>,
    /// At a primary: whether the witness grants it.
    pub witness_grants: Option<bool>,
    /// After how much silence the standby is promoted without the operator; `null`: never.
    pub auto_promote_seconds: Option<f64>,
    /// At a primary: whether the standby is promoted without the operator if this site is lost now.
    pub ready: Option<bool>,
    /// At a standby: whether it has stopped granting, to be promoted.
    pub standing: bool,
}

/// One standby, seen from the primary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Where it is.
    pub site: SiteName,
    /// Its mode.
    pub mode: Mode,
    /// How replication to it goes.
    pub state: State,
    /// Whether a disaster now would cost no more than its mode says.
    #[serde(default)]
    pub promise_held: bool,
    /// Its newest recovery point; 0 before the first.
    pub epoch_committed: u64,
    /// Age of the oldest acknowledged write that it does not have; 0 when there is none.
    pub rpo_seconds: Option<f64>,
    /// What it still has to get, uncompressed.
    pub backlog_bytes: u64,
    /// How long an evacuation to it would take now; `null` when nobody can tell.
    #[serde(default)]
    pub evacuation_seconds: Option<f64>,
}

/// Declares an enum of words with their list and their text.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that documents use.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let known = || Self::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(", ");
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| format!("{text:?} is none of {}", known()))
            }
        }
    };
}

words! {
    /// This site's part in a volume.
    Role {
        /// Serves clients and sends changes.
        Primary = "primary",
        /// Receives changes.
        Standby = "standby",
        /// Serves clients; there is no replica.
        Standalone = "standalone",
        /// Was primary; another site has a newer generation. Serves nobody.
        Stale = "stale",
    }
}

words! {
    /// How replication of a volume goes.
    State {
        /// The standby has no recovery point yet.
        InitialSync = "initial-sync",
        /// Behind, and getting closer.
        CatchingUp = "catching-up",
        /// Connected, no fuzzy backlog, the mode's promise held, computed now.
        InSync = "in-sync",
        /// Changes come faster than the link carries them.
        NotConverging = "not-converging",
        /// Works with less than was asked for: a weaker mode than promised, or fewer replicas.
        Degraded = "degraded",
        /// The other site does not answer; changes are tracked.
        Disconnected = "disconnected",
        /// Stopped by this site until somebody or something makes room.
        Suspended = "suspended",
        /// Another site has the disk: nothing is served here.
        Fenced = "fenced",
        /// Two sites were primary at once.
        SplitBrain = "split-brain",
        /// A writable copy of a recovery point is in use.
        Trial = "trial",
        /// A promotion is under way.
        Promoting = "promoting",
        /// It cannot go on; `last_error` says why.
        Error = "error",
    }
}

words! {
    /// When a primary stops acknowledging by itself.
    #[derive(Default)]
    Fence {
        /// Never.
        #[default]
        None = "none",
        /// When neither its standby nor the witness has granted it a lease.
        Lease = "lease",
    }
}

words! {
    /// When writes and flushes are acknowledged.
    #[derive(Default)]
    Mode {
        /// When they are locally done.
        #[default]
        Async = "async",
        /// Flushes when their epoch is durable at the standby.
        Barrier = "barrier",
        /// All when durable at the standby.
        Sync = "sync",
        /// When they are locally done; recovery points on a schedule.
        Snapshot = "snapshot",
    }
}

words! {
    /// What becomes of requests that wait for a standby which is gone, slow or full.
    OnDisconnect {
        /// They are acknowledged locally as soon as the connection is gone.
        Continue = "continue",
        /// They are acknowledged locally once one has waited for the time-out, until the standby keeps up again.
        Degrade = "degrade",
        /// They wait, for as long as it takes.
        Suspend = "suspend",
    }
}

impl Mode {
    /// What a mode does when the standby is gone, unless it is told otherwise.
    pub fn on_disconnect(self) -> OnDisconnect {
        match self {
            Self::Async | Self::Snapshot => OnDisconnect::Continue,
            Self::Barrier | Self::Sync => OnDisconnect::Degrade,
        }
    }
}

words! {
    /// How a client is attached.
    FrontEnd {
        /// vhost-user-blk.
        VhostUser = "vhost-user",
        /// NBD.
        Nbd = "nbd",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field names of the contract, in its order.
    const CONTRACT: &[&str] = &[
        "name",
        "size_bytes",
        "role",
        "state",
        "promise_held",
        "mode",
        "peer",
        "generation",
        "epoch_open",
        "epoch_committed",
        "rpo_seconds",
        "backlog_bytes",
        "dirty_blocks",
        "changed_bytes",
        "wire_bytes_sent",
        "wire_bytes_received",
        "zero_blocks",
        "duplicate_blocks",
        "delta_blocks",
        "full_blocks",
        "evacuation_seconds",
        "attached",
        "last_error",
        "replicas",
    ];

    fn example() -> serde_json::Value {
        serde_json::json!({"site": "osaka", "id": "5f", "volumes": [{"name": "vm1", "size_bytes": 4096, "role": "primary",
            "state": "in-sync", "promise_held": true, "mode": "async", "peer": "oregon", "generation": 3, "epoch_open": 812,
            "epoch_committed": 810, "rpo_seconds": 0.4, "backlog_bytes": 1, "dirty_blocks": 2, "changed_bytes": 3,
            "wire_bytes_sent": 4, "wire_bytes_received": 5, "zero_blocks": 6, "duplicate_blocks": 7, "delta_blocks": 8,
            "full_blocks": 9, "evacuation_seconds": 1.2, "attached": ["vhost-user", "nbd"], "last_error": null,
            "replicas": [{"site": "oregon", "mode": "async", "state": "in-sync", "epoch_committed": 810, "rpo_seconds": 0.4,
                "backlog_bytes": 1}]}]})
    }

    #[test]
    fn the_contracts_example_decodes_and_every_field_of_it_is_written() {
        let status: Status = serde_json::from_value(example()).unwrap();
        let written = serde_json::to_value(&status).unwrap();
        let (example, written_volume) = (example(), &written["volumes"][0]);
        for (key, value) in example["volumes"][0].as_object().unwrap().iter().filter(|(key, _)| *key != "replicas") {
            assert_eq!(&written_volume[key], value, "{key}");
        }
        // More may be written.
        for (key, value) in example["volumes"][0]["replicas"][0].as_object().unwrap() {
            assert_eq!(&written_volume["replicas"][0][key], value, "replicas: {key}");
        }
        let volume = written["volumes"][0].as_object().unwrap();
        assert!(CONTRACT.iter().all(|field| volume.contains_key(*field)));
    }

    #[test]
    fn words_are_the_same_in_json_and_in_text() {
        fn check<T: Copy + Serialize + std::fmt::Display + std::str::FromStr + PartialEq>(all: &[T]) {
            for word in all {
                assert_eq!(serde_json::to_value(word).unwrap(), word.to_string());
                assert!(word.to_string().parse::<T>().is_ok_and(|again| again == *word));
            }
        }
        check(Role::ALL);
        check(State::ALL);
        check(Mode::ALL);
        check(FrontEnd::ALL);
        check(OnDisconnect::ALL);
        assert_eq!((Role::ALL.len(), State::ALL.len(), Mode::ALL.len()), (4, 12, 4));
    }
}
