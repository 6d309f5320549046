//! How fast a standby takes an epoch: 64 MiB from the first frame to the answer that it is durable, beside writing as much to a new file.
//!
//! `cargo bench -p blockd --bench epoch_commit`; the disk is that of `$TMPDIR`. Both take turns; medians of all rounds. Content cannot be
//! compressed; the frames are ready before the clock starts, and folding into the image goes on after it stops.

use blockd::catalogue::RocksCatalogue;
use blockd::store::Image;
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use replicator::codec::Encoder;
use replicator::standby::{Place, SegmentDir, Standby};
use replicator_engine::block::{BLOCK_BYTES, Run};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::tracker::Epoch;
use replicator_engine::wire::{Attach, Base, Commit, Envelope, EpochDigest, Message};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const EPOCH_BYTES: usize = 64 << 20;
const FRAME_BYTES: usize = 1 << 20;
const ROUNDS: usize = 15;
const VOLUME: Id = Id([7; 16]);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let lineage = Lineage::first(Id([1; 16]));
    let mut standby = standby(dir.path(), &lineage)?;
    let frame = |message| Envelope { generation: lineage.current(), message }.encode();
    let attach = Attach { volume: VOLUME, size_bytes: EPOCH_BYTES as u64, lineage: lineage.clone() };
    standby.handle_frame(frame(Message::Attach(attach)))?;
    let mut content = vec![0; EPOCH_BYTES];
    let (mut epochs, mut files) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        StdRng::seed_from_u64(round as u64).fill_bytes(&mut content);
        let frames: Vec<_> = messages(round as Epoch + 1, &content)?.into_iter().map(frame).collect();
        epochs.push(take(&mut standby, frames)?);
        standby.settle()?;
        standby.handle_frame(frame(Message::Attach(Attach {
            volume: VOLUME,
            size_bytes: EPOCH_BYTES as u64,
            lineage: lineage.clone(),
        })))?;
        files.push(write(&dir.path().join("file"), &content)?);
    }
    let [epoch, file] = [epochs, files].map(median);
    let speed = |took: Duration| (EPOCH_BYTES >> 20) as f64 / took.as_secs_f64();
    println!("an epoch {:.0} MiB/s, a file {:.0} MiB/s: {:.2} ×", speed(epoch), speed(file), speed(epoch) / speed(file));
    Ok(())
}

fn standby(dir: &Path, lineage: &Lineage) -> Result<Standby<SegmentDir>, Box<dyn std::error::Error>> {
    let size_bytes = EPOCH_BYTES as u64;
    let place = Place { base: Base::Point, ..Place::blank(VOLUME, Id([8; 16]), lineage.clone(), size_bytes) };
    let image = Arc::new(Image::create(&dir.join("image"), size_bytes)?);
    let catalogue = Arc::new(RocksCatalogue::open(&dir.join("catalogue"))?);
    Ok(Standby::open(place, SegmentDir::open(&dir.join("journal"))?, 1 << 30, image, catalogue)?)
}

fn messages(epoch: Epoch, content: &[u8]) -> std::io::Result<Vec<Message>> {
    let (mut encoder, mut digest) = (Encoder::new()?, EpochDigest::default());
    let blocks_a_frame = (FRAME_BYTES / BLOCK_BYTES) as u32;
    let pieces = content.chunks(FRAME_BYTES).zip((0..).step_by(blocks_a_frame as usize));
    let blocks = pieces.map(|(piece, start)| encoder.encode(&[Run { start, len: blocks_a_frame }], piece));
    let mut messages: Vec<_> = blocks.inspect(|blocks| digest.add(blocks)).map(Message::Blocks).collect();
    let (blocks, digest) = digest.value();
    messages.push(Message::Commit(Commit {
        epoch,
        blocks,
        digest,
        size_bytes: EPOCH_BYTES as u64,
        cut_unix_ms: 1000 + epoch,
        group: None,
    }));
    Ok(messages)
}

fn take(standby: &mut Standby<SegmentDir>, frames: Vec<Bytes>) -> Result<Duration, Box<dyn std::error::Error>> {
    let began = Instant::now();
    let mut answer = None;
    for frame in frames {
        answer = standby.handle_frame(frame)?;
    }
    assert!(matches!(answer, Some(Message::Committed(_))), "the epoch is not committed: {answer:?}");
    Ok(began.elapsed())
}

/// As the disk likes it best: one file from front to end, then the sync.
fn write(path: &Path, content: &[u8]) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut file = File::create(path)?;
    for piece in content.chunks(FRAME_BYTES) {
        file.write_all(piece)?;
    }
    file.sync_data()?;
    let took = began.elapsed();
    std::fs::remove_file(path)?;
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
