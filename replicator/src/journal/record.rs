//! The bytes of a segment.
//!
//! ```text
//!   segment  magic 8 │ version 4 │ 0 4 │ number 8 │ CRC-32C of these 4 │ 0 4 │ records …
//!   record   magic 4 │ length 4 │ CRC-32C of the frame 4 │ CRC-32C of these 4 │ frame
//! ```
//!
//! docs/formats.md has the byte tables.

use replicator_engine::block::BLOCK_BYTES;
use replicator_engine::wire::MAX_CONTENT_BLOCKS;

/// Length of a segment's header.
pub const SEGMENT_HEADER_BYTES: u64 = 32;
/// Length of a record's header.
pub const RECORD_HEADER_BYTES: usize = 16;
/// No frame is longer.
const MAX_FRAME_BYTES: usize = MAX_CONTENT_BLOCKS as usize * BLOCK_BYTES + (256 << 10);

/// The first byte of a frame with content, as the protocol has it.
pub const CONTENT_KIND: u8 = 2;

const SEGMENT_MAGIC: &[u8; 8] = b"TERNJSEG";
const RECORD_MAGIC: &[u8; 4] = b"TJR1";
const VERSION: u32 = 1;

/// The header of segment `number`.
pub fn segment_header(number: u64) -> Vec<u8> {
    let mut header = [SEGMENT_MAGIC.as_slice(), &VERSION.to_le_bytes(), &[0; 4], &number.to_le_bytes()].concat();
    let checksum = crc32c::crc32c(&header);
    header.extend_from_slice(&checksum.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header
}

/// A frame as a record.
pub fn encode(frame: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + frame.len());
    record.extend_from_slice(RECORD_MAGIC);
    record.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    record.extend_from_slice(&crc32c::crc32c(frame).to_le_bytes());
    let checksum = crc32c::crc32c(&record);
    record.extend_from_slice(&checksum.to_le_bytes());
    record.extend_from_slice(frame);
    record
}

/// The length of the frame behind a record's header; `None` if it is no header.
pub fn frame_len(header: &[u8; RECORD_HEADER_BYTES]) -> Option<usize> {
    let intact = &header[..4] == RECORD_MAGIC && crc32c::crc32c(&header[..12]) == word(header, 12);
    let len = word(header, 4) as usize;
    (intact && len <= MAX_FRAME_BYTES).then_some(len)
}

/// Whether the frame is the one that the header was made for.
pub fn is_intact(header: &[u8; RECORD_HEADER_BYTES], frame: &[u8]) -> bool {
    crc32c::crc32c(frame) == word(header, 8)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::{FORMATS, PROTOCOL, check_limit, example};

    #[test]
    fn headers_and_records_have_the_documented_bytes() {
        check_limit(FORMATS, "SEGMENT_HEADER_BYTES", SEGMENT_HEADER_BYTES);
        check_limit(FORMATS, "RECORD_HEADER_BYTES", RECORD_HEADER_BYTES as u64);
        assert!(FORMATS.contains(&format!("length of the frame, at most {MAX_FRAME_BYTES} ")));
        assert_eq!(segment_header(3), example(FORMATS, "segment"));
        assert_eq!(encode(&example(PROTOCOL, "commit")), example(FORMATS, "record"));
        assert_eq!(example(PROTOCOL, "blocks")[0], CONTENT_KIND);
    }
}
