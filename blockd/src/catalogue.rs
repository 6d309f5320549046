//! The site's catalogue: RocksDB behind replication's narrow trait, and the records of volumes in it.

mod bandwidth;

use blockd_api::{Bandwidth, Export, Mode, OnDisconnect, SiteName, VolumeName};
use replicator::catalogue::{Catalogue, Change, Persist};
use replicator::site_link::lease::LeaseTerms;
use replicator::site_link::request::GenerationRecord;
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

const VOLUMES: &[u8] = b"volume/";
/// Enough for a few hundred volumes; the catalogue is small and written rarely.
const WRITE_BUFFER_BYTES: usize = 4 << 20;

/// See the module's documentation.
pub struct RocksCatalogue(DB);

/// What is remembered of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// Its name, unique at the site.
    pub name: VolumeName,
    /// Its id, in hexadecimal; the same at every site.
    pub id: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where its content lies.
    pub backing: PathBuf,
    /// Who made the backing.
    pub made_by: MadeBy,
    /// Where it is served.
    pub exports: Vec<Export>,
    /// This site's part in it.
    #[serde(default)]
    pub role: RecordedRole,
    /// The lineage of the generation that this site was primary of last; empty if it never was.
    #[serde(default)]
    pub lineage: Vec<GenerationRecord>,
    /// The other site: a primary's standby, the first of several; a standby's primary, as far as it knows.
    #[serde(default)]
    pub peer: Option<PeerRecord>,
    /// A primary's further standbys; the other standbys of a standby's primary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<PeerRecord>,
    /// The lineage that has overtaken this site's, while it is stale.
    #[serde(default)]
    pub successor: Vec<GenerationRecord>,
    /// The generation that this site asked to become, in hexadecimal: the same when it asks again.
    #[serde(default)]
    pub wanted_generation: Option<String>,
    /// The handover that this site granted, so that a repeated question gets the same answer.
    #[serde(default)]
    pub granted: Option<Granted>,
    /// Whether this primary serves nobody, because the other site was promoted by force, or was about to be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fenced: bool,
    /// Since when the sites differ, once both were primary; of no meaning once the other one follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parted: Option<Parted>,
    /// The promotion of this standby that may be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialRecord>,
    /// Generations of trials that this site took back, or never began, in hexadecimal, until the other site has heard of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voided: Vec<String>,
    /// The generation of the other site's trial, in hexadecimal, if it is for that alone that this primary is fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_for: Option<String>,
}

/// A promotion that may be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialRecord {
    /// The lineage that this site has once it is final.
    pub lineage: Vec<GenerationRecord>,
    /// After how long it is taken back.
    pub timeout_ms: u64,
    /// When it began, by this site's clock.
    pub began_unix_ms: u64,
    /// Whether it is being taken back: nothing leads out of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_back: bool,
}

/// When two sites went apart, as far as this one knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parted {
    /// The first write that only this site has, at the earliest.
    pub since_unix_ms: Option<u64>,
    /// The cut of the last epoch that both have, by the other site's clock.
    pub common_unix_ms: Option<u64>,
}

/// A site's part in a volume, as it is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordedRole {
    /// No other site has it.
    #[default]
    Standalone,
    /// Serves it and replicates it.
    Primary,
    /// Has a copy.
    Standby,
    /// Was primary until another site overtook it.
    Stale,
    /// Was primary while another site was, too.
    SplitBrain,
}

/// The other site of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRecord {
    /// Its id.
    pub site: String,
    /// Its name.
    pub name: SiteName,
    /// How much acknowledged data a disaster may cost, in milliseconds.
    pub rpo_ms: u64,
    /// Most that may be sent.
    #[serde(default, rename = "bandwidth_bits_per_second", with = "bandwidth")]
    pub bandwidth: Bandwidth,
    /// When requests are acknowledged.
    #[serde(default)]
    pub mode: Mode,
    /// What to do when the standby is gone; `None`: as the mode has it.
    #[serde(default)]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long a request waits for the standby; `None`: the default.
    #[serde(default)]
    pub ack_timeout_ms: Option<u64>,
    /// When mode `snapshot` cuts, as it was given; `None`: only when asked.
    #[serde(default)]
    pub schedule: Option<String>,
    /// The lease that a primary needs; `None`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseTerms>,
}

impl PeerRecord {
    /// A peer of which nothing is asked but that it is there.
    pub fn new(site: String, name: SiteName, rpo_ms: u64) -> Self {
        Self {
            site,
            name,
            rpo_ms,
            bandwidth: Bandwidth::Unlimited,
            mode: Mode::Async,
            on_disconnect: None,
            ack_timeout_ms: None,
            schedule: None,
            lease: None,
        }
    }
}

/// A handover that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granted {
    /// The new primary's generation, in hexadecimal.
    pub generation: String,
    /// The last epoch before it.
    pub epoch: u64,
}

/// Who made a volume's backing, and so who may remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MadeBy {
    /// The daemon.
    Daemon,
    /// The operator: it stays when the volume is deleted.
    Operator,
}

impl VolumeRecord {
    /// The record of a new volume.
    pub fn new(name: VolumeName, id: String, size_bytes: u64, backing: PathBuf, made_by: MadeBy) -> Self {
        Self {
            name,
            id,
            size_bytes,
            backing,
            made_by,
            exports: Vec::new(),
            role: RecordedRole::Standalone,
            lineage: Vec::new(),
            peer: None,
            others: Vec::new(),
            successor: Vec::new(),
            wanted_generation: None,
            granted: None,
            fenced: false,
            parted: None,
            trial: None,
            voided: Vec::new(),
            fenced_for: None,
        }
    }

    /// Every other site that has the volume.
    pub fn peers(&self) -> impl Iterator<Item = &PeerRecord> {
        self.peer.iter().chain(&self.others)
    }

    /// The same, to be changed.
    pub fn peers_mut(&mut self) -> impl Iterator<Item = &mut PeerRecord> {
        self.peer.iter_mut().chain(&mut self.others)
    }

    /// The other site with this id, if it has the volume.
    pub fn peer_at(&self, site: &str) -> Option<&PeerRecord> {
        self.peers().find(|peer| peer.site == site)
    }

    /// This one of the other sites is primary now. Whatever was granted to the one before is void: it may not have heard of that.
    pub fn follow(&mut self, site: &str) {
        if let (Some(at), Some(peer)) = (self.others.iter().position(|peer| peer.site == site), &mut self.peer) {
            std::mem::swap(peer, &mut self.others[at]);
            self.granted = None;
        }
    }

    /// This site does not have the volume any more.
    pub fn forget_peer(&mut self, site: &str) {
        self.others.retain(|peer| peer.site != site);
        if self.peer.as_ref().is_some_and(|peer| peer.site == site) {
            self.peer = if self.others.is_empty() { None } else { Some(self.others.remove(0)) };
        }
    }
}

impl RocksCatalogue {
    /// Opens the catalogue in `dir`, or makes it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_keep_log_file_num(4);
        options.set_max_open_files(64);
        options.set_paranoid_checks(true);
        DB::open(&options, dir).map(Self).map_err(io_error)
    }

    /// Every volume's record, by name.
    pub fn volumes(&self) -> io::Result<Vec<VolumeRecord>> {
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: a volume's record: {error}"));
        self.scan(VOLUMES)?.into_iter().map(|(_, value)| serde_json::from_slice(&value).map_err(damaged)).collect()
    }

    /// Records a volume, durably.
    pub fn put_volume(&self, record: &VolumeRecord) -> io::Result<()> {
        let value = serde_json::to_vec(record).map_err(io::Error::other)?;
        self.apply(&[(volume_key(&record.name), Some(value))], Persist::Synced)
    }

    /// Forgets a volume, durably.
    pub fn remove_volume(&self, name: &VolumeName) -> io::Result<()> {
        self.apply(&[(volume_key(name), None)], Persist::Synced)
    }
}

/// RocksDB says in words only that there is no room.
fn io_error(error: rocksdb::Error) -> io::Error {
    let full = error.to_string().contains("No space left on device");
    io::Error::new(if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other }, error)
}

fn volume_key(name: &VolumeName) -> Vec<u8> {
    [VOLUMES, name.as_str().as_bytes()].concat()
}

impl Catalogue for RocksCatalogue {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.get(key).map_err(io_error)
    }

    fn apply(&self, changes: &[Change], persist: Persist) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(persist == Persist::Synced);
        self.0.write_opt(batch, &options).map_err(io_error)
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs = Vec::new();
        for pair in self.0.iterator(IteratorMode::From(prefix, Direction::Forward)) {
            let (key, value) = pair.map_err(io_error)?;
            if !key.starts_with(prefix) {
                break;
            }
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
#[path = "../../tests/sim/src/storage/conformance.rs"]
mod conformance;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_conforms() {
        let dir = tempfile::tempdir().unwrap();
        conformance::conforms(|before: Option<RocksCatalogue>| {
            drop(before);
            RocksCatalogue::open(dir.path()).unwrap()
        });
    }

    /// As the next process finds it after a loss of power: its files, with the log cut off or damaged at one place.
    fn reopened(dir: &Path, damage: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let image = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let mut content = fs::read(entry.path()).unwrap();
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                damage(&mut content);
            }
            fs::write(image.path().join(entry.file_name()), content).unwrap();
        }
        let pairs = RocksCatalogue::open(image.path()).unwrap().scan(b"").unwrap();
        pairs.into_iter().map(|(_, value)| value[0]).collect()
    }

    #[test]
    fn cut_off_or_torn_at_any_sector_it_is_what_it_was_after_some_change() {
        const CHANGES: u8 = 24;
        let dir = tempfile::tempdir().unwrap();
        let catalogue = RocksCatalogue::open(dir.path()).unwrap();
        (0..CHANGES).for_each(|n| catalogue.apply(&[(vec![n], Some(vec![n; 200]))], Persist::Synced).unwrap());
        let all: Vec<u8> = (0..CHANGES).collect();
        assert_eq!(reopened(dir.path(), |_| {}), all);
        let mut lengths = std::collections::BTreeSet::new();
        for at in (0..u64::from(CHANGES) * 200).step_by(256) {
            let torn = |content: &mut Vec<u8>| content.iter_mut().skip(at as usize).take(256).for_each(|byte| *byte ^= 0x5a);
            for found in [reopened(dir.path(), |content| content.truncate(at as usize)), reopened(dir.path(), torn)] {
                assert_eq!(found, all[..found.len()], "cut off or torn at {at}");
                lengths.insert(found.len());
            }
        }
        assert!(lengths.len() > 10, "the log was cut between its records: {lengths:?}");
    }

    fn record(name: &str) -> VolumeRecord {
        let backing = PathBuf::from("/nowhere");
        let (name, id) = (name.parse().unwrap(), "00".into());
        VolumeRecord::new(name, id, 4096, backing, MadeBy::Daemon)
    }

    #[test]
    fn records_survive_a_restart_and_removal_too() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = RocksCatalogue::open(dir.path()).unwrap();
        ["vm2", "vm1", "vm3"].iter().for_each(|name| catalogue.put_volume(&record(name)).unwrap());
        catalogue.remove_volume(&"vm3".parse().unwrap()).unwrap();
        drop(catalogue);
        let names: Vec<_> =
            RocksCatalogue::open(dir.path()).unwrap().volumes().unwrap().into_iter().map(|record| record.name.to_string()).collect();
        assert_eq!(names, ["vm1", "vm2"]);
    }

    #[test]
    fn a_record_is_the_documented_document() {
        let id = |digit: &str| digit.repeat(32);
        let backing = PathBuf::from("/srv/vm1.raw");
        let mut record = VolumeRecord::new("vm1".parse().unwrap(), id("7"), 1 << 30, backing, MadeBy::Operator);
        record.exports = vec!["vhost-user:/run/tern/vm1.sock".parse().unwrap()];
        record.role = RecordedRole::Primary;
        record.lineage = vec![GenerationRecord { counter: 1, id: id("1"), branch_epoch: 0 }];
        let (site, name) = ("SITE".into(), "oregon".parse().unwrap());
        record.peer = Some(PeerRecord::new(site, name, 5000));
        let json = serde_json::to_string(&record).unwrap();
        assert!(include_str!("../../docs/formats.md").contains(&json), "{json}");
        assert_eq!(serde_json::from_str::<VolumeRecord>(&json).unwrap(), record);
    }

    #[test]
    fn a_limit_is_recorded_as_ever_and_a_calendar_as_its_text() {
        let with = |bandwidth: &str| PeerRecord {
            bandwidth: bandwidth.parse().unwrap(),
            ..PeerRecord::new("SITE".into(), "milan".parse().unwrap(), 5000)
        };
        let calendar = "08:00-18:00=20Mbit,else=200Mbit";
        for (bandwidth, recorded) in [("none", "null"), ("50Mbit", "50000000"), (calendar, "\"08:00-18:00=20Mbit,else=200Mbit\"")] {
            let json = serde_json::to_string(&with(bandwidth)).unwrap();
            assert!(json.contains(&format!("\"bandwidth_bits_per_second\":{recorded},")), "{json}");
            assert_eq!(serde_json::from_str::<PeerRecord>(&json).unwrap(), with(bandwidth));
        }
        let bad = serde_json::to_string(&with(calendar)).unwrap().replace("else", "elsewhere");
        assert!(serde_json::from_str::<PeerRecord>(&bad).unwrap_err().to_string().contains("is no entry of a calendar"));
    }

    #[test]
    fn whoever_is_followed_comes_first_and_whoever_is_forgotten_makes_room() {
        let mut volume = record("vm1");
        let peer = |name: &str| PeerRecord::new(name.to_uppercase(), name.parse().unwrap(), 5000);
        volume.peer = Some(peer("oregon"));
        volume.others = vec![peer("milan"), peer("lagos")];
        let names = |volume: &VolumeRecord| volume.peers().map(|peer| peer.name.to_string()).collect::<Vec<_>>();
        volume.granted = Some(Granted { generation: "22".repeat(16), epoch: 17 });
        volume.follow("OREGON");
        volume.follow("NOWHERE");
        assert!(volume.granted.is_some(), "it is told again to whoever it was told");
        volume.follow("LAGOS");
        assert_eq!(volume.granted, None, "another one was promoted");
        assert_eq!(names(&volume), ["lagos", "milan", "oregon"]);
        assert_eq!(serde_json::from_str::<VolumeRecord>(&serde_json::to_string(&volume).unwrap()).unwrap(), volume);
        volume.forget_peer("LAGOS");
        assert_eq!(names(&volume), ["milan", "oregon"]);
        volume.forget_peer("OREGON");
        volume.forget_peer("MILAN");
        assert_eq!(volume.peers().count(), 0);
    }

    #[test]
    fn a_scan_ends_with_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = RocksCatalogue::open(dir.path()).unwrap();
        let changes: Vec<Change> = ["a/1", "b/1", "b/2", "c/1"].iter().map(|key| (key.as_bytes().to_vec(), Some(vec![1]))).collect();
        catalogue.apply(&changes, Persist::Eventually).unwrap();
        let keys: Vec<_> = catalogue.scan(b"b/").unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"b/1", b"b/2"]);
    }
}
