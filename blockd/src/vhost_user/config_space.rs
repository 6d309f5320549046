//! The device's configuration space: `struct virtio_blk_config` of virtio 1.2, section 5.2.4.
//!
//! Little-endian, 60 bytes of it used; what lies behind, up to the 256 bytes that vhost-user transports, reads as zeroes.

use super::chain::{MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SEGMENTS};
use crate::request::{MAX_TRANSFER_BYTES, SECTOR_BYTES};
use crate::store::PAGE_BYTES;

/// Size of the space, as vhost-user limits it.
pub const SPACE_BYTES: usize = 256;
/// Data descriptors of a request: what a queue of 128 without indirect descriptors has room for.
pub const SEG_MAX: u32 = 126;
/// Bytes of each of them. A request of [`SEG_MAX`] of them is just below [`MAX_TRANSFER_BYTES`].
pub const SIZE_MAX: u32 = 256 << 10;
/// Zeroes of one segment: as many as one admission may hold up others for.
pub const MAX_ZEROES_BYTES: u64 = 64 << 20;

const _: () = assert!(SEG_MAX as u64 * SIZE_MAX as u64 <= MAX_TRANSFER_BYTES);

/// Where the guest's only writable field lies.
const WRITEBACK_OFFSET: u32 = 32;

/// Whether completed writes may be lost until a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// They may.
    WriteBack,
    /// Each write is durable when it completes.
    WriteThrough,
}

/// What the space says.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace {
    /// Size of the volume.
    pub size_bytes: u64,
    /// Smallest unit of a request.
    pub block_bytes: u32,
    /// Queues that the device has.
    pub queues: u16,
    /// The field that the guest may write.
    pub cache: CacheMode,
}

impl ConfigSpace {
    /// The `len_bytes` bytes at `offset`; empty, which vhost-user understands as an error, if they are not all in the space.
    pub fn read(&self, offset: u32, len_bytes: u32) -> Vec<u8> {
        let (Ok(start), Ok(len)) = (usize::try_from(offset), usize::try_from(len_bytes)) else { return Vec::new() };
        let space = self.encode();
        start.checked_add(len).and_then(|end| space.get(start..end)).map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// What the guest's write of `content` at `offset` chooses; `None` if it touches anything but the cache mode.
    pub fn written(offset: u32, content: &[u8]) -> Option<CacheMode> {
        match (offset, content) {
            (WRITEBACK_OFFSET, [0]) => Some(CacheMode::WriteThrough),
            (WRITEBACK_OFFSET, [1]) => Some(CacheMode::WriteBack),
            _ => None,
        }
    }

    fn encode(&self) -> [u8; SPACE_BYTES] {
        let max_zeroes_sectors = (MAX_ZEROES_BYTES / SECTOR_BYTES) as u32;
        let page_sectors = (PAGE_BYTES / SECTOR_BYTES) as u32;
        // How many logical blocks make a physical one, as a power of two: a page, which is what replication deals in.
        let physical_exponent = (PAGE_BYTES as u32 / self.block_bytes).trailing_zeros() as u8;
        let mut space = [0; SPACE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.size_bytes / SECTOR_BYTES).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        // 16 to 19: the geometry, which is not offered.
        put(20, &self.block_bytes.to_le_bytes());
        put(24, &[physical_exponent, 0]);
        // Preferred sizes in logical blocks: at least a page, best what one segment of a guest's page cache makes.
        put(26, &(PAGE_BYTES as u32 / self.block_bytes).to_le_bytes()[..2]);
        put(28, &(SIZE_MAX / self.block_bytes).to_le_bytes());
        put(WRITEBACK_OFFSET as usize, &[u8::from(self.cache == CacheMode::WriteBack)]);
        put(34, &self.queues.to_le_bytes());
        put(36, &max_zeroes_sectors.to_le_bytes());
        put(40, &(MAX_DISCARD_SEGMENTS as u32).to_le_bytes());
        put(44, &page_sectors.to_le_bytes());
        put(48, &max_zeroes_sectors.to_le_bytes());
        put(52, &(MAX_WRITE_ZEROES_SEGMENTS as u32).to_le_bytes());
        put(56, &[1]);
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: ConfigSpace = ConfigSpace { size_bytes: 3 << 20, block_bytes: 512, queues: 7, cache: CacheMode::WriteBack };

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_eq!(SPACE.read(0, 8), 6144_u64.to_le_bytes());
        assert_eq!(SPACE.read(8, 8), [SIZE_MAX.to_le_bytes(), SEG_MAX.to_le_bytes()].concat());
        assert_eq!(SPACE.read(20, 4), 512_u32.to_le_bytes());
        assert_eq!(SPACE.read(24, 4), [3, 0, 8, 0]);
        assert_eq!(SPACE.read(32, 4), [1, 0, 7, 0]);
        assert_eq!(SPACE.read(36, 4), 131_072_u32.to_le_bytes());
        assert_eq!(SPACE.read(44, 4), 8_u32.to_le_bytes());
        assert_eq!(SPACE.read(52, 8), [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(SPACE.read(60, 196), [0; 196]);
    }

    #[test]
    fn nothing_is_read_beyond_the_space() {
        for (offset, len) in [(0, 257), (256, 1), (255, 2), (u32::MAX, 1), (u32::MAX, u32::MAX), (1, u32::MAX)] {
            assert!(SPACE.read(offset, len).is_empty(), "{offset} {len}");
        }
        assert_eq!(SPACE.read(0, 256).len(), 256);
        assert!(SPACE.read(256, 0).is_empty());
    }

    #[test]
    fn only_the_cache_mode_can_be_written() {
        assert_eq!(ConfigSpace::written(32, &[0]), Some(CacheMode::WriteThrough));
        assert_eq!(ConfigSpace::written(32, &[1]), Some(CacheMode::WriteBack));
        for (offset, content) in [(32, &[2][..]), (32, &[]), (32, &[1, 0]), (31, &[1]), (0, &[0; 8]), (u32::MAX, &[1])] {
            assert_eq!(ConfigSpace::written(offset, content), None);
        }
    }
}
