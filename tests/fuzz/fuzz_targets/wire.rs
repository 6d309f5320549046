//! Any bytes as a message: what decodes says the same when it is encoded again, and decoding takes no more memory than the bytes pay for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator_engine::generation::{Generation, Lineage};
use replicator_engine::wire::Envelope;
use tern_fuzz::Bytes;
use tern_fuzz::messages::Writer;
use tern_fuzz::sys::peak_bytes;

/// The tables of a set of blocks and a full list of runs may be made before the bytes behind them are looked for.
const FIXED_BYTES: usize = 1 << 20;
/// A container of a set of blocks costs 32 bytes, and at least ten in the frame.
const FACTOR: usize = 8;

/// A frame: as it is, with a header that is right, or a whole message of which some bytes are changed.
fn frame(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut frame = match bytes.u8() % 4 {
        0 => return bytes.slice(usize::MAX).to_vec(),
        1 => {
            let Generation { counter, id, branch_epoch } = Lineage::first(Default::default()).current();
            let header = [&[bytes.u8()][..], &counter.to_le_bytes(), &id.0, &branch_epoch.to_le_bytes()].concat();
            return [&header, bytes.slice(usize::MAX)].concat();
        }
        2 => Writer::new().primary(bytes).to_vec(),
        _ => Writer::new().standby(bytes, 5).to_vec(),
    };
    while !bytes.0.is_empty() && !frame.is_empty() {
        let at = usize::from(bytes.u16()) % frame.len();
        frame[at] = bytes.u8();
    }
    frame
}

fuzz_target!(|data: &[u8]| {
    let frame = frame(&mut Bytes(data));
    let len_bytes = frame.len();
    let (decoded, peak_bytes) = peak_bytes(|| Envelope::decode(frame.into()));
    assert!(peak_bytes <= FIXED_BYTES + FACTOR * len_bytes, "{len_bytes} bytes took {peak_bytes}");
    if let Ok(envelope) = decoded {
        assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope));
    }
});
