//! What a primary promises of each of its standbys, and whether that holds: one that is broken hides no other.

use super::Kind;
use super::watch::Level;
use blockd_api::{Mode, Role, SiteName, State, VolumeStatus, human_seconds};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// By the standby's site.
#[derive(Debug, Default)]
pub(super) struct Promises(BTreeMap<Option<SiteName>, Level>);

struct Standby {
    site: Option<SiteName>,
    mode: Mode,
    state: State,
    is_held: bool,
    rpo_seconds: Option<f64>,
}

impl Promises {
    /// Looks at a volume; returns what happened, and in words.
    pub fn see(&mut self, volume: &VolumeStatus, lasting: Duration, now: Instant) -> Vec<(Kind, String)> {
        let mut standbys = standbys(volume);
        let is_one = standbys.len() == 1;
        // Who promises nothing keeps nothing, either.
        standbys.retain(|of| !matches!(of.state, State::InitialSync | State::Fenced | State::SplitBrain | State::Trial));
        self.0.retain(|site, _| standbys.iter().any(|of| of.site == *site));
        let mut happened = Vec::new();
        for of in standbys {
            let level = self.0.entry(of.site.clone()).or_default();
            if level.see(!of.is_held, lasting, now) {
                let at = of.site.as_ref().filter(|_| !is_one).map_or_else(String::new, |site| format!("{site}: "));
                happened.push(if level.told {
                    (Kind::RpoBroken, format!("{at}{}", broken(&of)))
                } else {
                    (Kind::RpoKept, format!("{at}the promise holds again"))
                });
            }
        }
        happened
    }
}

/// Nobody's, unless the volume is served here.
fn standbys(volume: &VolumeStatus) -> Vec<Standby> {
    if volume.role != Role::Primary || matches!(volume.state, State::Fenced | State::Trial) {
        return Vec::new();
    }
    let mut all: Vec<Standby> = volume
        .replicas
        .iter()
        .map(|replica| Standby {
            site: Some(replica.site.clone()),
            mode: replica.mode,
            state: replica.state,
            is_held: replica.promise_held,
            rpo_seconds: replica.rpo_seconds,
        })
        .collect();
    if all.is_empty() {
        let VolumeStatus { mode, state, promise_held: is_held, rpo_seconds, .. } = *volume;
        all.push(Standby { site: volume.peer.clone(), mode, state, is_held, rpo_seconds });
    }
    all
}

fn broken(of: &Standby) -> String {
    let age = of.rpo_seconds.map_or_else(|| "not known how old".to_owned(), |age| format!("{} old", human_seconds(age)));
    format!("mode {}, {}: what the standby lacks is {age}", of.mode, of.state)
}
