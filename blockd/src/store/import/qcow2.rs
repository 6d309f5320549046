//! The few fields of a qcow2 header that an import needs (QEMU's `docs/interop/qcow2.txt`).

/// Length of the part that is looked at.
pub(super) const HEADER_BYTES: usize = 80;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Incompatible feature: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// Size of the disk, or why the file cannot be imported.
pub(super) fn virtual_size(header: &[u8]) -> Result<u64, &'static str> {
    if header.first_chunk() != Some(&MAGIC) {
        return Err("it is not a qcow2 file, whatever its name says");
    }
    let (Some(version), Some(backing), Some(size_bytes)) = (u32_at(header, 4), u64_at(header, 8), u64_at(header, 24)) else {
        return Err("it ends within its header");
    };
    let features = match version {
        2 => 0,
        3 => u64_at(header, 72).ok_or("it ends within its header")?,
        _ => return Err("its qcow2 version is neither 2 nor 3"),
    };
    if backing != 0 || features & EXTERNAL_DATA != 0 {
        return Err("it refers to another file: make a whole one with `qemu-img convert -O qcow2 FILE WHOLE.qcow2`, and import that");
    }
    Ok(size_bytes)
}

fn u32_at(header: &[u8], at: usize) -> Option<u32> {
    header.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(header: &[u8], at: usize) -> Option<u64> {
    header.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, backing: u64, features: u64) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[8..16].copy_from_slice(&backing.to_be_bytes());
        header[24..32].copy_from_slice(&(10_u64 << 30).to_be_bytes());
        header[72..80].copy_from_slice(&features.to_be_bytes());
        header
    }

    #[test]
    fn whole_files_have_a_size() {
        assert_eq!(virtual_size(&header(2, 0, 0)), Ok(10 << 30));
        assert_eq!(virtual_size(&header(3, 0, 1)), Ok(10 << 30));
    }

    #[test]
    fn files_that_refer_to_others_are_refused() {
        assert!(virtual_size(&header(3, 512, 0)).is_err());
        assert!(virtual_size(&header(3, 0, EXTERNAL_DATA)).is_err());
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let header = header(3, 0, 0);
        for len in 0..header.len() {
            assert!(virtual_size(&header[..len]).is_err(), "{len}");
        }
        assert!(virtual_size(&[0; HEADER_BYTES]).is_err());
    }
}
