//! The record of a volume's handovers, at each site that took part: what was forecast when it was ordered, and how long it took.
//!
//! The site that steps down notes it before the grant, with which it becomes durable; the one that takes over once it serves, and tells the
//! other. An entry without its end is of a handover that was not finished, or of which this site has not heard.

use blockd_api::SiteName;
use replicator::catalogue::{Catalogue, Persist};
use replicator::site_link::forecast::HandedOver;
use serde::{Deserialize, Serialize};
use std::io;

/// Handovers of one volume that are remembered.
pub const MAX_ENTRIES: usize = 100;
/// What the next one costs beside sending is what the middle one of so many did.
const RECENT: usize = 7;

/// One handover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The site that stepped down.
    pub from: SiteName,
    /// The site that took over, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SiteName>,
    /// The new primary's generation, in hexadecimal, where it asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// The volume's last epoch before.
    pub epoch: u64,
    /// How it went for who stepped down.
    pub handed: HandedOver,
    /// From the order until the new primary had its answer, at that site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_ms: Option<u64>,
    /// How long it took in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record(Vec<Entry>);

impl Record {
    /// A volume's record; empty if it has none, or none that can be read.
    pub fn load(catalogue: &dyn Catalogue, volume: &str) -> Self {
        let read = || -> io::Result<Self> {
            let Some(value) = catalogue.get(&key(volume))? else { return Ok(Self::default()) };
            serde_json::from_slice(&value).map_err(io::Error::from)
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(%error, volume, "catalogue: the record of handovers cannot be read");
            Self::default()
        })
    }

    /// Writes it down.
    pub fn store(&self, catalogue: &dyn Catalogue, volume: &str, persist: Persist) -> io::Result<()> {
        let value = serde_json::to_vec(self).map_err(io::Error::other)?;
        catalogue.apply(&[(key(volume), Some(value))], persist)
    }

    /// The handovers, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// One more; or the same again, as it is known now.
    pub fn note(&mut self, entry: Entry) {
        let is_same = |known: &Entry| known.is_open() && known.epoch == entry.epoch && known.from == entry.from;
        self.0.retain(|known| !is_same(known));
        if self.0.len() >= MAX_ENTRIES {
            self.0.drain(..=self.0.len() - MAX_ENTRIES);
        }
        self.0.push(entry);
    }

    /// The one that has not ended, so far as is known, and left the volume at this epoch.
    pub fn open_at(&mut self, epoch: u64) -> Option<&mut Entry> {
        self.0.iter_mut().rev().find(|entry| entry.is_open() && entry.epoch == epoch)
    }

    /// What handovers cost beside sending, lately.
    pub fn fixed_ms(&self) -> Option<u64> {
        middle(self.0.iter().rev().filter_map(|entry| Some(entry.took_ms?.saturating_sub(entry.handed.sending_ms))))
    }

    /// How long this site took, lately, from the grant on.
    pub fn promotion_ms(&self) -> Option<u64> {
        middle(self.0.iter().rev().filter_map(|entry| Some(entry.took_ms?.saturating_sub(entry.granted_ms?))))
    }
}

impl Entry {
    fn is_open(&self) -> bool {
        self.took_ms.is_none()
    }
}

fn middle(newest_first: impl Iterator<Item = u64>) -> Option<u64> {
    let mut recent: Vec<u64> = newest_first.take(RECENT).collect();
    recent.sort_unstable();
    recent.get(recent.len().checked_sub(1)? / 2).copied()
}

/// The volume is deleted.
pub fn forget(catalogue: &dyn Catalogue, volume: &str) -> io::Result<()> {
    catalogue.apply(&[(key(volume), None)], Persist::Eventually)
}

fn key(volume: &str) -> Vec<u8> {
    format!("handovers/{volume}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64) -> Entry {
        let handed = HandedOver { began_unix_ms: epoch, forecast_ms: None, forecast_bytes: None, sending_ms: 100, took_ms: 150 };
        let from = "osaka".parse().unwrap();
        Entry { from, to: None, generation: None, epoch, handed, granted_ms: Some(200), took_ms: None }
    }

    #[test]
    fn the_last_hundred_are_kept_and_the_same_is_noted_once() {
        let mut record = Record::default();
        (0..250).for_each(|epoch| record.note(entry(epoch)));
        record.note(entry(249));
        let epochs: Vec<u64> = record.entries().iter().map(|entry| entry.epoch).collect();
        assert_eq!(epochs, (150..250).collect::<Vec<_>>());
    }

    #[test]
    fn only_handovers_that_have_ended_say_what_one_costs_and_the_middle_one_counts() {
        let mut record = Record::default();
        record.note(entry(1));
        assert_eq!((record.fixed_ms(), record.promotion_ms()), (None, None));
        for (epoch, took_ms) in [(2, 350), (3, 60_000), (4, 340)] {
            record.note(Entry { took_ms: Some(took_ms), ..entry(epoch) });
        }
        assert_eq!((record.fixed_ms(), record.promotion_ms()), (Some(250), Some(150)));
        assert!(record.open_at(2).is_none());
        record.open_at(1).unwrap().took_ms = Some(300);
        assert!(record.open_at(1).is_none());
    }
}
