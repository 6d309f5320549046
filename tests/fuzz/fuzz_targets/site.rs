//! Two halves that talk to anybody: a standby under a primary that sends anything in any order, and the other way round. An error is fine;
//! what is sent never makes the standby's copy another than that of the epoch it answered for, and never makes the primary forget a write.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator::catalogue::Persist;

use replicator::standby::{Place, Standby, StandbyError};
use replicator_engine::generation::{Id, Lineage};
use std::sync::Arc;
use tern_fuzz::Bytes;
use tern_fuzz::disk::{Files, Image, Pairs};
use tern_fuzz::judge::Judge;
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
    judge: Judge,
}

fn open(image: &Arc<Image>, files: &Files, catalogue: &Arc<Pairs>) -> Standby<Files> {
    let place = Place::load(VOLUME, &**catalogue).expect("a readable place").expect("a place");
    Standby::open(place, files.clone(), QUOTA_BYTES, image.clone(), catalogue.clone()).expect("nothing that was sent breaks the journal")
}

impl Copy {
    fn new() -> Self {
        let (image, files, catalogue) = (Image::new(SIZE_BYTES), Files::default(), Arc::<Pairs>::default());
        let lineage = Lineage::first(Id([1; 16]));
        let place = Place::blank(VOLUME, Id([8; 16]), lineage.clone(), SIZE_BYTES);
        place.store(&*catalogue, Persist::Synced).expect("a writable catalogue");
        let standby = open(&image, &files, &catalogue);
        Self { image, files, catalogue, standby, writer: Writer::new(), judge: Judge::new(lineage, SIZE_BYTES) }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 16 {
            0 => {
                self.standby.handle_disconnected();
                self.judge.handle_disconnected();
                self.writer.handle_refused();
            }
            1 => self.restart(),
            2 if self.standby.fold_one().is_err() => self.reopen(),
            2 => {}
            _ => self.receive(bytes),
        }
        self.judge.check_place(self.standby.place());
    }

    fn receive(&mut self, bytes: &mut Bytes<'_>) {
        let frame = self.writer.primary(bytes);
        let result = self.standby.handle_frame(frame.clone());
        self.judge.handle_frame(frame, &result);
        if let Err(error) = result {
            let refused = error.refusal(&self.standby.place().lineage);
            assert!(refused.text.len() < 500);
            if matches!(error, StandbyError::Disk(_)) {
                self.reopen();
            }
            self.standby.handle_disconnected();
            self.writer.handle_refused();
        }
    }

    /// After its disk failed.
    fn reopen(&mut self) {
        self.standby = open(&self.image, &self.files, &self.catalogue);
        self.judge.handle_reopened();
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
        assert!(self.standby.journal().is_folded());
        self.judge.check_place(self.standby.place());
        self.judge.check_image(&self.image);
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
