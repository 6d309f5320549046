use super::*;
use crate::catalogue::RocksCatalogue;

const BLOCK: usize = 4096;

fn letters(image: &Image) -> String {
    let mut content = Pages::new(8);
    image.read_at(&mut content, 0).unwrap();
    content.chunks_exact(BLOCK).map(|block| char::from(block[0].max(b'.'))).collect()
}

fn write(image: &Image, block: u32, letter: u8) {
    let run = Run { start: block, len: 1 };
    let mut content = Pages::new(1);
    content.fill(letter);
    BlockDevice::write(image, run, &content).unwrap();
}

#[test]
fn what_was_there_first_comes_back_however_often_it_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::create(&dir.path().join("image"), 8 * BLOCK as u64).unwrap();
    let catalogue = Arc::new(RocksCatalogue::open(&dir.path().join("catalogue")).unwrap());
    let place = KeptPlace { path: dir.path().join("kept"), prefix: b"trial/7/kept/".to_vec(), catalogue };
    (0..6).for_each(|block| write(&image, block, b'a'));

    let mut kept = place.begin().unwrap();
    let keep = |kept: &mut Kept, blocks: std::ops::Range<u32>| kept.keep(&image, &RoaringBitmap::from_iter(blocks)).unwrap();
    keep(&mut kept, 1..3);
    write(&image, 2, b'b');
    // What is kept already stays as it was.
    keep(&mut kept, 2..8);
    [2, 5, 7].iter().for_each(|block| write(&image, *block, b'c'));
    assert_eq!(letters(&image), "aacaac.c");
    drop(kept);

    for _ in 0..2 {
        let kept = place.open().unwrap();
        assert_eq!(*kept.blocks(), RoaringBitmap::from_iter(1..8));
        let mut told = 0;
        assert!(kept.put_back(&image, |done| told = done).unwrap().is_empty());
        assert_eq!((letters(&image).as_str(), told), ("aaaaaa..", 7 * BLOCK as u64));
        write(&image, 5, b'd');
    }
    assert!(place.begin().unwrap().blocks().is_empty(), "another trial begins anew");
    place.forget().unwrap();
    place.forget().unwrap();
    assert!(place.open().is_err() && !place.path.exists());
}

#[test]
fn what_is_not_what_was_kept_is_told_and_not_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::create(&dir.path().join("image"), 8 * BLOCK as u64).unwrap();
    let catalogue = Arc::new(RocksCatalogue::open(&dir.path().join("catalogue")).unwrap());
    let place = KeptPlace { path: dir.path().join("kept"), prefix: b"trial/7/kept/".to_vec(), catalogue };
    (0..6).for_each(|block| write(&image, block, b'a'));
    place.begin().unwrap().keep(&image, &RoaringBitmap::from_iter(0..8)).unwrap();
    (0..8).for_each(|block| write(&image, block, b'b'));
    // A flipped bit, one where there were zeroes, and content that is gone with its digest.
    let flip = |path: &Path, offset: usize, bit: u8| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[offset] ^= bit;
        std::fs::write(path, bytes).unwrap();
    };
    flip(&place.path, 2 * BLOCK + 77, 4);
    flip(&place.path, 7 * BLOCK, 1);
    let digests = File::options().write(true).open(place.digests()).unwrap();
    digests.write_all_at(&[0; 8], 4 * 8).unwrap();
    File::options().write(true).open(&place.path).unwrap().write_all_at(&[0; BLOCK], 4 * BLOCK as u64).unwrap();
    let kept = place.open().unwrap();
    let damaged = RoaringBitmap::from_iter([2, 4, 7]);
    assert_eq!(kept.damaged().unwrap(), damaged);
    assert_eq!(kept.put_back(&image, |_| {}).unwrap(), damaged);
    assert_eq!(letters(&image), "aababa.b");
}
