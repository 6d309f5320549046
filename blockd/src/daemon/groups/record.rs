//! What is remembered of a consistency group, at both sites.

use crate::catalogue::RocksCatalogue;
use blockd_api::{SiteName, VolumeName};
use replicator::catalogue::{Catalogue, Persist};
use replicator::site_link::request::GroupTold;
use serde::{Deserialize, Serialize};
use std::io;

const GROUPS: &str = "group/";

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRecord {
    /// Its name, unique among groups and volumes.
    pub name: VolumeName,
    /// Its id with these members, in hexadecimal.
    pub id: String,
    /// Their ids, in hexadecimal, in the order of the primary's.
    pub members: Vec<String>,
    /// The other site's id.
    pub site: String,
    /// The other site's name.
    pub peer: SiteName,
    /// Where a promotion that has begun goes to: until it has ended, every member that is left goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoting: Option<Promoting>,
}

/// Where the members of a group are promoted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promoting {
    /// All were handed over: each goes on from its newest point.
    HandedOver,
    /// To the group's recovery point with this number.
    To(u64),
}

impl GroupRecord {
    /// As the other site is told of it.
    pub fn told(&self) -> GroupTold {
        GroupTold { name: self.name.to_string(), id: self.id.clone(), members: self.members.clone() }
    }

    /// Every group's record, by name.
    pub fn load_all(catalogue: &RocksCatalogue) -> io::Result<Vec<Self>> {
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: a group's record: {error}"));
        catalogue.scan(GROUPS.as_bytes())?.into_iter().map(|(_, value)| serde_json::from_slice(&value).map_err(damaged)).collect()
    }

    /// Records it, durably.
    pub fn store(&self, catalogue: &RocksCatalogue) -> io::Result<()> {
        let value = serde_json::to_vec(self).map_err(io::Error::other)?;
        catalogue.apply(&[(key(&self.name), Some(value))], Persist::Synced)
    }

    /// Forgets it, durably.
    pub fn forget(&self, catalogue: &RocksCatalogue) -> io::Result<()> {
        catalogue.apply(&[(key(&self.name), None)], Persist::Synced)
    }
}

fn key(name: &VolumeName) -> Vec<u8> {
    format!("{GROUPS}{name}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_documented_document() {
        let id = |digit: &str| digit.repeat(32);
        let (name, peer) = ("shop".parse().unwrap(), "oregon".parse().unwrap());
        let record = GroupRecord { name, id: id("9"), members: vec![id("7"), id("8")], site: "SITE".into(), peer, promoting: None };
        let json = serde_json::to_string(&record).unwrap();
        assert!(include_str!("../../../../docs/formats.md").contains(&json), "{json}");
        for promoting in [None, Some(Promoting::HandedOver), Some(Promoting::To(21))] {
            let record = GroupRecord { promoting, ..record.clone() };
            assert_eq!(serde_json::from_str::<GroupRecord>(&serde_json::to_string(&record).unwrap()).unwrap(), record);
        }
    }
}
