//! Two halves that talk to anybody: a standby under a primary that sends anything in any order, and the other way round. An error is fine;
//! what is sent never breaks the standby's copy for good, and never makes the primary forget a write.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator::catalogue::Persist;

use replicator::standby::{Place, Standby, StandbyError};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::wire::Message;
use std::sync::Arc;
use tern_fuzz::Bytes;
use tern_fuzz::disk::{Files, Image, Pairs};
use tern_fuzz::messages::{VOLUME, Writer};
use tern_fuzz::primary::Primary;

/// Size that the daemon's record of the standby says.
const SIZE_BYTES: u64 = 256 * 4096;
const QUOTA_BYTES: u64 = 256 << 10;

struct Copy {
    image: Arc<Image>,
    files: Files,
    catalogue: Arc<Pairs>,
    standby: Standby<Files>,
    writer: Writer,
    committed: u64,
}

fn open(image: &Arc<Image>, files: &Files, catalogue: &Arc<Pairs>) -> Standby<Files> {
    let place = Place::load(VOLUME, &**catalogue).expect("a readable place").expect("a place");
    Standby::open(place, files.clone(), QUOTA_BYTES, image.clone(), catalogue.clone()).expect("nothing that was sent breaks the journal")
}

impl Copy {
    fn new() -> Self {
        let (image, files, catalogue) = (Image::new(SIZE_BYTES), Files::default(), Arc::<Pairs>::default());
        let place = Place::blank(VOLUME, Id([8; 16]), Lineage::first(Id([1; 16])), SIZE_BYTES);
        place.store(&*catalogue, Persist::Synced).expect("a writable catalogue");
        let standby = open(&image, &files, &catalogue);
        Self { image, files, catalogue, standby, writer: Writer::new(), committed: 0 }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 16 {
            0 => {
                self.standby.handle_disconnected();
                self.writer.handle_refused();
            }
            1 => self.restart(),
            2 if self.standby.fold_one().is_err() => self.reopen(),
            2 => {}
            _ => self.receive(bytes),
        }
        assert!(self.standby.place().committed >= self.committed, "a recovery point was lost");
    }

    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        match self.standby.handle_frame(self.writer.primary(bytes)) {
            Ok(Some(Message::Committed(epoch))) => self.committed = epoch,
            Ok(_) => {}
            Err(error) => {
                let refused = error.refusal(&self.standby.place().lineage);
                assert!(refused.text.len() < 500);
                if matches!(error, StandbyError::Disk(_)) {
                    self.reopen();
                }
                self.standby.handle_disconnected();
                self.writer.handle_refused();
            }
        }
    }

    /// After its disk failed.
    fn reopen(&mut self) {
        self.standby = open(&self.image, &self.files, &self.catalogue);
    }

    /// After the power went.
    fn restart(&mut self) {
        self.catalogue.crash();
        self.image.reopen(SIZE_BYTES);
        self.reopen();
    }

    /// A promotion after a loss of power: the recovery point can be had, whatever was sent.
    fn settle(mut self) {
        self.restart();
        self.standby.settle().expect("the recovery point is folded");
        assert!(self.standby.place().committed >= self.committed && self.standby.journal().is_folded());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    if bytes.u8().is_multiple_of(2) {
        let mut primary = Primary::new(&mut bytes);
        while !bytes.0.is_empty() {
            primary.step(&mut bytes);
        }
    } else {
        let mut copy = Copy::new();
        while !bytes.0.is_empty() {
            copy.step(&mut bytes);
        }
        copy.settle();
    }
});
