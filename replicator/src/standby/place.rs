//! Where a copy stands, as the catalogue remembers it.

use super::Rollback;
use crate::catalogue::{Catalogue, Change, Persist};
use crate::undo::Point;
use replicator_engine::generation::{Generation, Id, Lineage};
use replicator_engine::receiver::Receiver;
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Attach, Attached, Base, Commit, Envelope, Message};
use roaring::RoaringBitmap;
use std::io;

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The volume's id, the same at every site.
    pub volume: Id,
    /// Names this copy.
    pub replica: Id,
    /// The lineage that was last adopted.
    pub lineage: Lineage,
    /// Size at the committed epoch; before the first one, at least as far as content reaches.
    pub size_bytes: u64,
    /// The last committed epoch that is known here; the journal may hold a later one.
    pub committed: Epoch,
    /// The last epoch that is durable in the image.
    pub folded: Epoch,
    /// What the copy holds.
    pub base: Base,
}

impl Place {
    /// The place of a new, empty copy.
    pub fn blank(volume: Id, replica: Id, lineage: Lineage, size_bytes: u64) -> Self {
        Self { volume, replica, lineage, size_bytes, committed: 0, folded: 0, base: Base::Blank }
    }

    /// Reads the place of a volume's copy. It is kept in the wire's own messages: one format, one decoder.
    pub fn load(volume: Id, catalogue: &dyn Catalogue) -> io::Result<Option<Self>> {
        let message = |part: &str| -> io::Result<Option<Message>> {
            let Some(bytes) = catalogue.get(&key(volume, part))? else { return Ok(None) };
            let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: place of volume {volume}: {error}"));
            Ok(Some(Envelope::decode(bytes.into()).map_err(damaged)?.message))
        };
        match (message("line")?, message("copy")?, message("fold")?) {
            (Some(Message::Attach(line)), Some(Message::Attached(copy)), Some(Message::Committed(folded))) => Ok(Some(Self {
                volume,
                replica: copy.replica,
                lineage: line.lineage,
                size_bytes: line.size_bytes,
                committed: copy.committed,
                folded,
                base: copy.base,
            })),
            _ => Ok(None),
        }
    }

    /// Records the place.
    pub fn store(&self, catalogue: &dyn Catalogue, persist: Persist) -> io::Result<()> {
        catalogue.apply(&self.changes(), persist)
    }

    /// Records the place of a copy whose image has just become durable at a recovery point.
    pub(super) fn store_folded(&self, point: Option<Point>, catalogue: &dyn Catalogue) -> io::Result<()> {
        let mut changes = self.changes();
        changes.push((key(self.volume, "point"), point.map(|point| self.encode(commit_of(point)))));
        catalogue.apply(&changes, Persist::Synced)
    }

    /// The recovery point that is durable in the image; `None` if nobody wrote down when it was cut.
    pub(super) fn load_point(&self, catalogue: &dyn Catalogue) -> io::Result<Option<Point>> {
        let point = load_commit(self.volume, "point", catalogue)?.map(|(_, point)| point);
        Ok(point.filter(|point| point.epoch == self.folded))
    }

    /// Records that what there is of undo leads nowhere: the image is written to without it.
    pub(super) fn store_void(&self, catalogue: &dyn Catalogue) -> io::Result<()> {
        catalogue.apply(&[(key(self.volume, "void"), Some(Vec::new()))], Persist::Synced)
    }

    /// Whether [`Self::store_void`] was.
    pub(super) fn load_void(&self, catalogue: &dyn Catalogue) -> io::Result<bool> {
        Ok(catalogue.get(&key(self.volume, "void"))?.is_some())
    }

    /// The undo that led nowhere is gone.
    pub(super) fn forget_void(&self, catalogue: &dyn Catalogue) -> io::Result<()> {
        catalogue.apply(&[(key(self.volume, "void"), None)], Persist::Synced)
    }

    fn encode(&self, message: Message) -> Vec<u8> {
        Envelope { generation: self.lineage.current(), message }.encode().to_vec()
    }

    fn changes(&self) -> Vec<Change> {
        let line = Attach { volume: self.volume, size_bytes: self.size_bytes, lineage: self.lineage.clone() };
        let copy = Attached { replica: self.replica, committed: self.committed, base: self.base.clone() };
        let messages = [("line", Message::Attach(line)), ("copy", Message::Attached(copy)), ("fold", Message::Committed(self.folded))];
        messages.map(|(part, message)| (key(self.volume, part), Some(self.encode(message)))).into()
    }

    /// Forgets where a copy stood that is deleted.
    pub fn forget(volume: Id, catalogue: &dyn Catalogue) -> io::Result<()> {
        let parts = ["line", "copy", "fold", "point", "void", super::checked::KEY].into_iter().chain(super::old_state::KEYS);
        catalogue.apply(&parts.map(|part| (key(volume, part), None)).collect::<Vec<_>>(), Persist::Synced)?;
        Rollback::forget(volume, catalogue)
    }

    pub(super) fn receiver(&self, unconfirmed: RoaringBitmap) -> Receiver {
        Receiver::new(self.volume, self.replica, self.lineage.clone(), self.size_bytes, self.committed, self.base.clone(), unconfirmed)
    }
}

fn commit_of(point: Point) -> Message {
    let Point { epoch, size_bytes, cut_unix_ms, group } = point;
    Message::Commit(Commit { epoch, blocks: 0, digest: [0; 32], size_bytes, cut_unix_ms, group })
}

/// A point, and the generation in whose name it was written down.
fn load_commit(volume: Id, part: &str, catalogue: &dyn Catalogue) -> io::Result<Option<(Generation, Point)>> {
    let Some(bytes) = catalogue.get(&key(volume, part))? else { return Ok(None) };
    match Envelope::decode(bytes.into()) {
        Ok(Envelope { generation, message: Message::Commit(commit) }) => Ok(Some((generation, Point::of(&commit)))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("catalogue: standby/{volume}/{part} cannot be read"))),
    }
}

/// Where it stands to which point the image is led back.
pub(super) fn back_key(volume: Id) -> Vec<u8> {
    key(volume, "back")
}

/// That point, and the generation for which it is.
pub(super) fn load_back(volume: Id, catalogue: &dyn Catalogue) -> io::Result<Option<(Generation, Point)>> {
    load_commit(volume, "back", catalogue)
}

/// Where it stands which blocks are to be led back.
pub(super) fn plan_key(volume: Id) -> Vec<u8> {
    key(volume, "plan")
}

/// Under which it stands what of that is done.
pub(super) fn done_prefix(volume: Id) -> Vec<u8> {
    key(volume, "done/")
}

pub(super) fn key(volume: Id, part: &str) -> Vec<u8> {
    format!("standby/{volume}/{part}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{PROTOCOL, example};
    use crate::pairing::tests::MemoryCatalogue;

    #[test]
    fn a_place_is_the_documented_messages_and_comes_back() {
        let catalogue = MemoryCatalogue::default();
        let lineage = Lineage::first(Id([0x11; 16])).promoted(Id([0x22; 16]), 17);
        let (volume, replica, base) = (Id([0x77; 16]), Id([0x88; 16]), Base::Point);
        let place = Place { volume, replica, lineage, size_bytes: 1 << 30, committed: 17, folded: 18, base };
        place.store(&catalogue, Persist::Synced).unwrap();
        for (part, name) in [("line", "attach"), ("copy", "attached"), ("fold", "committed")] {
            let key = format!("standby/77777777777777777777777777777777/{part}");
            assert_eq!(catalogue.get(key.as_bytes()).unwrap(), Some(example(PROTOCOL, name)), "{part}");
        }
        assert_eq!(Place::load(volume, &catalogue).unwrap(), Some(place));
    }
}
