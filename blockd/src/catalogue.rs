//! The site's catalogue: RocksDB behind replication's narrow trait, and the records of volumes in it.

use blockd_api::{Export, VolumeName};
use replicator::catalogue::{Catalogue, Change, Persist};
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

impl RocksCatalogue {
    /// Opens the catalogue in `dir`, or makes it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_keep_log_file_num(4);
        options.set_max_open_files(64);
        options.set_paranoid_checks(true);
        DB::open(&options, dir).map(Self).map_err(io::Error::other)
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

fn volume_key(name: &VolumeName) -> Vec<u8> {
    [VOLUMES, name.as_str().as_bytes()].concat()
}

impl Catalogue for RocksCatalogue {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.get(key).map_err(io::Error::other)
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
        self.0.write_opt(batch, &options).map_err(io::Error::other)
    }

    fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs = Vec::new();
        for pair in self.0.iterator(IteratorMode::From(prefix, Direction::Forward)) {
            let (key, value) = pair.map_err(io::Error::other)?;
            if !key.starts_with(prefix) {
                break;
            }
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> VolumeRecord {
        let backing = PathBuf::from("/nowhere");
        let (name, id) = (name.parse().unwrap(), "00".into());
        VolumeRecord { name, id, size_bytes: 4096, backing, made_by: MadeBy::Daemon, exports: Vec::new() }
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
    fn a_scan_ends_with_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = RocksCatalogue::open(dir.path()).unwrap();
        let changes: Vec<Change> = ["a/1", "b/1", "b/2", "c/1"].iter().map(|key| (key.as_bytes().to_vec(), Some(vec![1]))).collect();
        catalogue.apply(&changes, Persist::Eventually).unwrap();
        let keys: Vec<_> = catalogue.scan(b"b/").unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, [b"b/1", b"b/2"]);
    }
}
