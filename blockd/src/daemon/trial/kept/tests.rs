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
        kept.put_back(&image, |done| told = done).unwrap();
        assert_eq!((letters(&image).as_str(), told), ("aaaaaa..", 7 * BLOCK as u64));
        write(&image, 5, b'd');
    }
    assert!(place.begin().unwrap().blocks().is_empty(), "another trial begins anew");
    place.forget().unwrap();
    place.forget().unwrap();
    assert!(place.open().is_err() && !place.path.exists());
}
