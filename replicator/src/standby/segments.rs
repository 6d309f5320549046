//! The journal's segments as files of a directory.

use crate::disk::SegmentFiles;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The disk is given so much at once while more is appended.
const PIECE_BYTES: u64 = 4 << 20;
/// At least a page of the kernel's, on every machine.
const PAGE_BYTES: u64 = 64 << 10;

/// See the module's documentation: `<number>.seg`, in decimal with leading zeroes.
pub struct SegmentDir {
    dir: PathBuf,
    /// The one that is appended to.
    last: Option<(u64, File, u64)>,
    /// The one that was read last.
    read: std::sync::Mutex<Option<(u64, File)>>,
}

impl SegmentDir {
    /// The segments in `dir`, which is made if it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        let files = Self { dir: dir.to_owned(), last: None, read: std::sync::Mutex::default() };
        files.list()?.into_iter().try_for_each(|number| files.forget_unwritten(number))?;
        Ok(files)
    }

    /// What is read from now on is on the disk. After a sync that failed, and that of a process before this one counts, too, the kernel shows
    /// what was never written, and takes it for written.
    fn forget_unwritten(&self, number: u64) -> io::Result<()> {
        let file = File::open(self.path(number))?;
        // If it fails, what it could not write is read again as it is on the disk: the journal's checksums tell.
        let _ = file.sync_data();
        Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016}.seg"))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// The file to append to, and where it ends.
    fn appending(&mut self, number: u64) -> io::Result<&mut (u64, File, u64)> {
        if self.last.as_ref().is_none_or(|(last, ..)| *last != number) {
            let file = OpenOptions::new().write(true).open(self.path(number))?;
            let len_bytes = file.metadata()?.len();
            self.last = Some((number, file, len_bytes));
        }
        self.last.as_mut().ok_or_else(|| io::Error::other("no segment is open"))
    }
}

impl SegmentFiles for SegmentDir {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|number| number.parse::<u64>().ok());
            // A copy that somebody left there under another name is none of ours.
            numbers.extend(number.filter(|number| self.path(*number).file_name() == Some(&name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn create(&mut self, number: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(number))?;
        file.sync_all()?;
        self.sync_dir()?;
        self.last = Some((number, file, 0));
        Ok(())
    }

    fn append(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let (_, file, end) = self.appending(number)?;
        file.write_all_at(bytes, *end)?;
        *end += bytes.len() as u64;
        start_writing(file, *end - bytes.len() as u64, *end);
        Ok(())
    }

    fn sync(&mut self, number: u64) -> io::Result<()> {
        self.appending(number)?.1.sync_data()
    }

    fn len_bytes(&self, number: u64) -> io::Result<u64> {
        match &self.last {
            Some((last, _, end)) if *last == number => Ok(*end),
            _ => Ok(std::fs::metadata(self.path(number))?.len()),
        }
    }

    /// The kernel drops whole pages only.
    fn forget_cached(&self, number: u64, range: Range<u64>) -> io::Result<()> {
        let (start, end) = (range.start / PAGE_BYTES * PAGE_BYTES, range.end.next_multiple_of(PAGE_BYTES));
        let Some(len_bytes) = NonZeroU64::new(end.saturating_sub(start)) else { return Ok(()) };
        Ok(rustix::fs::fadvise(File::open(self.path(number))?, start, Some(len_bytes), rustix::fs::Advice::DontNeed)?)
    }

    fn read(&self, number: u64, offset: u64, content: &mut [u8]) -> io::Result<()> {
        let mut read = self.read.lock().expect("no panic under this lock");
        if read.as_ref().is_none_or(|(open, _)| *open != number) {
            *read = Some((number, File::open(self.path(number))?));
        }
        match &*read {
            Some((_, file)) => file.read_exact_at(content, offset),
            None => Err(io::Error::other("no segment is open")),
        }
    }

    fn truncate(&mut self, number: u64, len_bytes: u64) -> io::Result<()> {
        let (_, file, end) = self.appending(number)?;
        file.set_len(len_bytes)?;
        file.sync_all()?;
        *end = len_bytes;
        Ok(())
    }

    fn delete(&mut self, number: u64) -> io::Result<()> {
        if self.last.as_ref().is_some_and(|(last, ..)| *last == number) {
            self.last = None;
        }
        *self.read.get_mut().expect("no panic under this lock") = None;
        match std::fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // Gone before, perhaps not durably.
            _ => self.sync_dir(),
        }
    }
}

/// Lets the disk begin with whole pieces that the file has grown by, so that a sync finds little left to do.
fn start_writing(file: &File, before_bytes: u64, end_bytes: u64) {
    let start = before_bytes / PIECE_BYTES * PIECE_BYTES;
    let len_bytes = end_bytes / PIECE_BYTES * PIECE_BYTES - start;
    // Of pages that are not written yet, the kernel begins to write, and drops nothing. A hint: if it fails, the sync does all.
    let _ = NonZeroU64::new(len_bytes).map(|len| rustix::fs::fadvise(file, start, Some(len), rustix::fs::Advice::DontNeed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_listed_appended_read_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SegmentDir::open(&dir.path().join("journal")).unwrap();
        files.create(3).unwrap();
        files.append(3, b"hello ").unwrap();
        files.append(3, b"world").unwrap();
        files.create(4).unwrap();
        let mut content = [0; 5];
        files.read(3, 6, &mut content).unwrap();
        assert_eq!((&content, files.len_bytes(3).unwrap()), (b"world", 11));
        let mut files = SegmentDir::open(&dir.path().join("journal")).unwrap();
        assert_eq!(files.list().unwrap(), [3, 4]);
        files.truncate(3, 5).unwrap();
        files.append(3, b"!").unwrap();
        files.delete(4).unwrap();
        assert_eq!((files.list().unwrap(), files.len_bytes(3).unwrap()), (vec![3], 6));
        files.delete(4).unwrap();
    }

    #[test]
    fn a_stray_copy_under_another_name_is_no_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = SegmentDir::open(dir.path()).unwrap();
        files.create(1).unwrap();
        for name in ["1.seg", "+000000000000001.seg", "0000000000000002.seg.bak", "x.seg"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(files.list().unwrap(), [1]);
    }
}
