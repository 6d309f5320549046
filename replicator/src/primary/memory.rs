//! What a primary remembers across restarts.
//!
//! - Epoch numbers are reserved in chunks, durably, before the first of a chunk is used: none is ever used twice.
//! - Which copy the standby has, or that nobody knows: durable, before anything is sent on the strength of it. What that copy acknowledged: an
//!   older value is safe, because what changed since is marked.
//! - Which promise holds for what was acknowledged: durable, before a weaker one comes into force.
//! - When the newest recovery point was cut, where cuts are made by the clock: an older value makes the next one come earlier.
//! - After a clean stop, exactly which blocks the standby lacks. Read once, and gone before the next write.

use crate::catalogue::{Catalogue, Change, Persist};
use crate::intake::Intake;
use replicator_engine::acknowledgement::Promise;
use replicator_engine::block::runs;
use replicator_engine::generation::Id;
use replicator_engine::sender::Known;
use replicator_engine::tracker::Epoch;
use roaring::RoaringBitmap;
use std::io;
use std::sync::Arc;

/// Epoch numbers that are reserved at once.
const RESERVED_EPOCHS: u64 = 1024;

/// The numbers that a volume's epochs may have.
pub struct EpochNumbers {
    catalogue: Arc<dyn Catalogue>,
    key: Vec<u8>,
    /// Durably reserved: every number below.
    end: Epoch,
}

impl EpochNumbers {
    /// The first number that was never used.
    pub fn first_unused(catalogue: &dyn Catalogue, volume: Id) -> io::Result<Epoch> {
        let key = key(volume);
        Ok(catalogue.get(&key)?.map(|value| number(&key, &value)).transpose()?.unwrap_or(1))
    }

    /// Goes on from the open epoch, which is durably reserved on return.
    pub fn open(catalogue: Arc<dyn Catalogue>, volume: Id, open: Epoch) -> io::Result<Self> {
        let unused = Self::first_unused(&*catalogue, volume)?;
        let mut numbers = Self { catalogue, key: key(volume), end: 0 };
        numbers.cover(open.max(unused))?;
        Ok(numbers)
    }

    /// Makes sure that `epoch` and the one after it are reserved.
    pub fn cover(&mut self, epoch: Epoch) -> io::Result<()> {
        if epoch + 1 < self.end {
            return Ok(());
        }
        let end = epoch + RESERVED_EPOCHS;
        self.catalogue.apply(&[(self.key.clone(), Some(end.to_le_bytes().to_vec()))], Persist::Synced)?;
        self.end = end;
        Ok(())
    }
}

fn key(volume: Id) -> Vec<u8> {
    format!("epoch/{volume}").into_bytes()
}

fn number(key: &[u8], value: &[u8]) -> io::Result<u64> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| damaged(key))
}

fn damaged(key: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: {} cannot be read", String::from_utf8_lossy(key)))
}

/// The key of what a site is known to have of a volume.
pub fn known_key(volume: Id, site: &str) -> Vec<u8> {
    format!("known/{volume}/{site}").into_bytes()
}

/// What the standby is known to have.
pub fn load_known(catalogue: &dyn Catalogue, key: &[u8]) -> io::Result<Option<Known>> {
    let Some(value) = catalogue.get(key)? else { return Ok(None) };
    let (acked, replica) = value.split_first_chunk().ok_or_else(|| damaged(key))?;
    let replica = match replica {
        [] => None,
        id => Some(Id(id.try_into().map_err(|_| damaged(key))?)),
    };
    Ok(Some(Known { replica, acked: u64::from_le_bytes(*acked) }))
}

/// Records what the standby is known to have.
pub fn store_known(catalogue: &dyn Catalogue, key: &[u8], known: Option<Known>, persist: Persist) -> io::Result<()> {
    catalogue.apply(&[(key.to_vec(), known.map(encode_known))], persist)
}

fn encode_known(known: Known) -> Vec<u8> {
    let mut value = known.acked.to_le_bytes().to_vec();
    value.extend(known.replica.iter().flat_map(|id| id.0));
    value
}

/// Records what is known now if that is something else than what is `stored`. Fails only where the stream has to end: content that was sent
/// because nobody knew the copy would not be sent again by a primary that wakes up and believes that it does.
pub fn remember_known(catalogue: &dyn Catalogue, key: &[u8], stored: &mut Option<Known>, known: Option<Known>) -> io::Result<()> {
    if known == *stored {
        return Ok(());
    }
    let copy = |known: Option<Known>| known.map(|known| known.replica);
    let is_same = copy(known) == copy(*stored);
    match store_known(catalogue, key, known, if is_same { Persist::Eventually } else { Persist::Synced }) {
        Ok(()) => *stored = known,
        Err(error) if is_same => tracing::warn!(%error, "the catalogue cannot be written"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What a promotion writes down before the role: a crash in between leaves a standby, and a crash behind it a primary whose numbers are its
/// own. The copy stands at `epoch`, and nobody writes to it yet. Of each other site with this volume: what it is known to have at least; what
/// may have changed since then is `owed`, which the activity log has from now on.
pub fn prepare_promotion(
    catalogue: &Arc<dyn Catalogue>,
    volume: Id,
    epoch: Epoch,
    sites: &[(&str, Known)],
    owed: &RoaringBitmap,
    intake: &Intake,
) -> io::Result<()> {
    let first = EpochNumbers::first_unused(&**catalogue, volume)?.max(epoch + 1);
    EpochNumbers::open(catalogue.clone(), volume, first)?;
    intake.restart(first)?;
    intake.log().heat(runs(owed))?;
    // What was known at an earlier time as primary is known no more.
    let known = catalogue.scan(&known_key(volume, ""))?.into_iter().map(|(key, _)| (key, None));
    let changed = load_changed(&**catalogue, volume)?;
    let mut changes: Vec<Change> = known.chain(changed.keys(volume).map(|key| (key, None))).collect();
    changes.extend(sites.iter().map(|(site, known)| (known_key(volume, site), Some(encode_known(*known)))));
    catalogue.apply(&changes, Persist::Synced)
}

/// The key of what holds for a volume and its standby at a site.
pub fn promise_key(volume: Id, site: &str) -> Vec<u8> {
    format!("promise/{volume}/{site}").into_bytes()
}

/// What holds.
pub fn load_promise(catalogue: &dyn Catalogue, key: &[u8]) -> io::Result<Promise> {
    let Some(value) = catalogue.get(key)? else { return Ok(Promise::Local) };
    let [number] = value[..] else { return Err(damaged(key)) };
    Promise::from_number(number).ok_or_else(|| damaged(key))
}

/// Records what holds, durably.
pub fn store_promise(catalogue: &dyn Catalogue, key: &[u8], promise: Promise) -> io::Result<()> {
    let value = (promise > Promise::Local).then(|| vec![promise as u8]);
    catalogue.apply(&[(key.to_vec(), value)], Persist::Synced)
}

/// The key of when the newest recovery point of a volume at a site was cut.
pub fn point_key(volume: Id, site: &str) -> Vec<u8> {
    format!("point/{volume}/{site}").into_bytes()
}

/// When it was cut, in milliseconds since 1970.
pub fn load_point(catalogue: &dyn Catalogue, key: &[u8]) -> io::Result<Option<u64>> {
    catalogue.get(key)?.map(|value| number(key, &value)).transpose()
}

/// Records when it was cut.
pub fn store_point(catalogue: &dyn Catalogue, key: &[u8], unix_ms: u64, persist: Persist) -> io::Result<()> {
    catalogue.apply(&[(key.to_vec(), Some(unix_ms.to_le_bytes().to_vec()))], persist)
}

/// Forgets what was promised by a site that is primary no more, and what it knew of recovery points.
pub fn forget_promises(catalogue: &dyn Catalogue, volume: Id) -> io::Result<()> {
    let keys = catalogue.scan(&promise_key(volume, ""))?.into_iter().chain(catalogue.scan(&point_key(volume, ""))?);
    let changes: Vec<_> = keys.map(|(key, _)| (key, None)).collect();
    if changes.is_empty() { Ok(()) } else { catalogue.apply(&changes, Persist::Synced) }
}

/// The key of which blocks a site lacks after a clean stop; without a site, of what was written down when a volume had one standby.
fn changed_key(volume: Id, site: &str) -> Vec<u8> {
    let site = if site.is_empty() { String::new() } else { format!("/{site}") };
    format!("changed/{volume}{site}").into_bytes()
}

/// What a clean stop wrote down: which blocks each standby lacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CleanStop(Vec<(String, RoaringBitmap)>);

impl CleanStop {
    /// Which blocks the standby at this site lacks.
    pub fn of(&self, site: &str) -> Option<&RoaringBitmap> {
        self.0.iter().find(|(of, _)| of == site || of.is_empty()).map(|(_, changed)| changed)
    }

    fn keys(&self, volume: Id) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(move |(site, _)| changed_key(volume, site))
    }
}

/// Takes what a clean stop wrote down; it is gone afterwards, durably.
pub fn take_changed(catalogue: &dyn Catalogue, volume: Id) -> io::Result<CleanStop> {
    let changed = load_changed(catalogue, volume)?;
    let gone: Vec<_> = changed.keys(volume).map(|key| (key, None)).collect();
    if !gone.is_empty() {
        catalogue.apply(&gone, Persist::Synced)?;
    }
    Ok(changed)
}

/// What a clean stop wrote down.
pub fn load_changed(catalogue: &dyn Catalogue, volume: Id) -> io::Result<CleanStop> {
    let prefix = changed_key(volume, "");
    let decode = |(key, value): (Vec<u8>, Vec<u8>)| {
        let site = String::from_utf8(key[prefix.len()..].to_vec()).map_err(|_| damaged(&key))?;
        let blocks = RoaringBitmap::deserialize_from(&value[..]).map_err(|_| damaged(&key))?;
        Ok((site.trim_start_matches('/').to_owned(), blocks))
    };
    Ok(CleanStop(catalogue.scan(&prefix)?.into_iter().map(decode).collect::<io::Result<_>>()?))
}

/// Writes down, durably and together, which blocks each standby lacks. No write may follow before they were taken.
pub fn store_changed<'a>(
    catalogue: &dyn Catalogue,
    volume: Id,
    changed: impl IntoIterator<Item = (&'a str, &'a RoaringBitmap)>,
) -> io::Result<()> {
    let encode = |(site, blocks): (&str, &RoaringBitmap)| {
        let mut value = Vec::with_capacity(blocks.serialized_size());
        blocks.serialize_into(&mut value)?;
        Ok((changed_key(volume, site), Some(value)))
    };
    let changes = changed.into_iter().map(encode).collect::<io::Result<Vec<_>>>()?;
    catalogue.apply(&changes, Persist::Synced)
}

/// Forgets everything of one site, which is no standby of the volume any more, or becomes one.
pub fn forget_site(catalogue: &dyn Catalogue, volume: Id, site: &str) -> io::Result<()> {
    let keys = [known_key(volume, site), promise_key(volume, site), point_key(volume, site), changed_key(volume, site)];
    catalogue.apply(&keys.map(|key| (key, None)), Persist::Synced)
}

/// Forgets everything of a volume that is deleted or begins anew.
pub fn forget(catalogue: &dyn Catalogue, volume: Id) -> io::Result<()> {
    let mut keys = Vec::new();
    for prefix in [changed_key(volume, ""), known_key(volume, ""), promise_key(volume, ""), point_key(volume, "")] {
        keys.extend(catalogue.scan(&prefix)?.into_iter().map(|(key, _)| key));
    }
    let changes: Vec<_> = keys.into_iter().map(|key| (key, None)).collect();
    catalogue.apply(&changes, Persist::Synced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairing::tests::MemoryCatalogue;

    #[test]
    fn keys_and_values_are_the_documented_ones() {
        let (catalogue, volume) = (Arc::new(MemoryCatalogue::default()), Id([0x77; 16]));
        let hex = volume.to_string();
        let value = |key: &str| catalogue.get(key.as_bytes()).unwrap().unwrap();
        EpochNumbers::open(catalogue.clone(), volume, 5).unwrap();
        assert_eq!(value(&format!("epoch/{hex}")), (5 + RESERVED_EPOCHS).to_le_bytes());
        let key = known_key(volume, "SITE");
        for replica in [None, Some(Id([0x88; 16]))] {
            let known = Known { replica, acked: 17 };
            store_known(&*catalogue, &key, Some(known), Persist::Synced).unwrap();
            let id: Vec<u8> = replica.iter().flat_map(|id| id.0).collect();
            assert_eq!(value(&format!("known/{hex}/SITE")), [&17_u64.to_le_bytes()[..], &id].concat());
            assert_eq!(load_known(&*catalogue, &key).unwrap(), Some(known));
        }
        let key = promise_key(volume, "SITE");
        store_promise(&*catalogue, &key, Promise::Sync).unwrap();
        assert_eq!((value(&format!("promise/{hex}/SITE")), load_promise(&*catalogue, &key).unwrap()), (vec![2], Promise::Sync));
        store_promise(&*catalogue, &key, Promise::Local).unwrap();
        assert_eq!((catalogue.get(&key).unwrap(), load_promise(&*catalogue, &key).unwrap()), (None, Promise::Local));
        let key = point_key(volume, "SITE");
        store_point(&*catalogue, &key, 1_800_000_000_000, Persist::Synced).unwrap();
        assert_eq!(value(&format!("point/{hex}/SITE")), 1_800_000_000_000_u64.to_le_bytes());
        assert_eq!(load_point(&*catalogue, &key).unwrap(), Some(1_800_000_000_000));
        forget_promises(&*catalogue, volume).unwrap();
        assert_eq!(load_point(&*catalogue, &key).unwrap(), None);
        let changed = RoaringBitmap::from_iter([3, 4, 70_000]);
        store_changed(&*catalogue, volume, [("SITE", &changed)]).unwrap();
        assert_eq!(RoaringBitmap::deserialize_from(&value(&format!("changed/{hex}/SITE"))[..]).unwrap(), changed);
        let taken = take_changed(&*catalogue, volume).unwrap();
        assert_eq!((taken.of("SITE"), taken.of("ELSEWHERE")), (Some(&changed), None));
        assert_eq!(take_changed(&*catalogue, volume).unwrap(), CleanStop::default());
        store_changed(&*catalogue, volume, [("", &changed)]).unwrap();
        assert_eq!(take_changed(&*catalogue, volume).unwrap().of("SITE"), Some(&changed), "of a time with one standby");
        assert_eq!(take_changed(&*catalogue, volume).unwrap(), CleanStop::default());
    }

    #[test]
    fn another_copy_is_remembered_or_the_stream_ends_and_its_progress_can_wait() {
        let (catalogue, volume) = (MemoryCatalogue::default(), Id([0x77; 16]));
        let key = known_key(volume, "SITE");
        let recorded = || load_known(&catalogue, &key).unwrap();
        let [own, first, later] =
            [(None, 5), (Some(Id([1; 16])), 6), (Some(Id([1; 16])), 7)].map(|(replica, acked)| Some(Known { replica, acked }));
        let mut stored = None;
        remember_known(&catalogue, &key, &mut stored, own).unwrap();
        catalogue.fill();
        for other in [None, first] {
            assert!(remember_known(&catalogue, &key, &mut stored, other).is_err());
            assert_eq!((stored, recorded()), (own, own));
        }
        catalogue.make_room();
        remember_known(&catalogue, &key, &mut stored, first).unwrap();
        catalogue.fill();
        remember_known(&catalogue, &key, &mut stored, later).unwrap();
        assert_eq!((stored, recorded()), (first, first), "it is tried again with the next");
    }

    #[test]
    fn values_that_cannot_be_read_are_an_error_with_their_key() {
        let (catalogue, volume) = (MemoryCatalogue::default(), Id([0x77; 16]));
        let (epoch, known, promise) = (key(volume), known_key(volume, "SITE"), promise_key(volume, "SITE"));
        let bad = [epoch, known.clone(), promise.clone(), changed_key(volume, "SITE")].map(|key| (key, Some(vec![1, 2, 3])));
        catalogue.apply(&bad, Persist::Synced).unwrap();
        let errors = [
            EpochNumbers::first_unused(&catalogue, volume).unwrap_err(),
            load_known(&catalogue, &known).unwrap_err(),
            load_promise(&catalogue, &promise).unwrap_err(),
            load_changed(&catalogue, volume).unwrap_err(),
        ];
        for (error, key) in errors.iter().zip(["epoch/", "known/", "promise/", "changed/"]) {
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
