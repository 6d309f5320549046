//! Two sites that both were primary, because the link between them was cut. Nothing is merged, and nothing is lost silently.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use tern_tests::{Linked, NbdClient, Pair, Site};

const BLOCK: usize = 4096;
/// The volume has 16 MiB.
const BLOCKS: u64 = 16 << 8;

fn connect(site: &Site) -> NbdClient {
    NbdClient::connect(&site.socket("nbd")).unwrap()
}

/// Fills a block with a letter.
fn write(client: &mut NbdClient, block: u64, letter: u8) {
    client.write(block * BLOCK as u64, &[letter; BLOCK]).unwrap();
}

/// The letters of the first blocks, as a client sees them.
fn letters(site: &Site, blocks: u64) -> String {
    let mut client = connect(site);
    let letter = |block: u64| {
        let mut content = vec![0; BLOCK];
        client.read(block * BLOCK as u64, &mut content).unwrap();
        assert!(content.iter().all(|byte| *byte == content[0]), "block {block} is torn");
        char::from(content[0])
    };
    (0..blocks).map(letter).collect()
}

/// The letters of the first blocks in the image: what is kept, whether it is served or not.
fn kept(site: &Site, blocks: u64) -> String {
    let list = site.tern(&["volume", "list"]);
    let image = PathBuf::from(list["volumes"][0]["backing"].as_str().unwrap());
    let image = std::fs::File::open(image).unwrap();
    let letter = |block: u64| {
        let mut content = [0; BLOCK];
        image.read_exact_at(&mut content, block * BLOCK as u64).unwrap();
        char::from(content[0])
    };
    (0..blocks).map(letter).collect()
}

/// Nobody gets an answer to a write here.
fn assert_not_acknowledged(client: &mut NbdClient) {
    client.set_patience(Duration::from_millis(500)).unwrap();
    client.write(0, &[b'x'; BLOCK]).expect_err("a write that must not be acknowledged");
}

/// Both sites tell how many blocks either has alone, and since when.
fn assert_told(a: &Site, b: &Site, [at_a, at_b]: [u64; 2]) {
    let told = |site: &Site| site.volume()["diverged"].clone();
    let (seen_at_a, seen_at_b) = (told(a), told(b));
    for (alone, blocks) in [(&seen_at_a["here"], at_a), (&seen_at_a["there"], at_b)] {
        assert_eq!(
            (&alone["blocks"], &alone["bytes"], &alone["exact"]),
            (&blocks.into(), &(blocks * BLOCK as u64).into(), &true.into()),
            "{seen_at_a}"
        );
        assert!(alone["since"].is_string(), "{seen_at_a}");
    }
    assert_eq!((&seen_at_b["here"], &seen_at_b["there"]), (&seen_at_a["there"], &seen_at_a["here"]));
}

/// Lesson: a split is told, and nothing goes before the operator says so (doc-sleha#413).
#[test]
fn an_old_primary_that_was_only_unreachable_stops_and_keeps_what_it_has_until_the_operator_gives_it_up() {
    let linked = Linked::start(16);
    let Pair { a, b, .. } = &linked.pair;
    let mut at_a = connect(a);
    (0..4).for_each(|block| write(&mut at_a, block, b'='));
    a.tern(&["snapshot", "vm1"]);
    linked.cut();
    write(&mut at_a, 1, b'a');
    let promotion = b.tern(&["promote", "vm1", "--force"]);
    assert_eq!(promotion["kind"], "failover", "{promotion}");
    let mut at_b = connect(b);
    (2..4).for_each(|block| write(&mut at_b, block, b'b'));
    // It hears nothing, so it serves its own clients on.
    (1..3).for_each(|block| write(&mut at_a, block, b'a'));
    assert_eq!((letters(a, 4), letters(b, 4)), ("=aa=".into(), "==bb".into()));

    linked.heal();
    let stale = a.wait_until("stale", |volume| volume["role"] == "stale");
    assert_eq!(stale["state"], "fenced", "{stale}");
    assert!(stale["last_error"].as_str().is_some_and(|error| error.contains("resync")), "{stale}");
    assert_eq!(b.volume()["role"], "primary");
    assert_not_acknowledged(&mut at_a);
    assert_not_acknowledged(&mut connect(a));
    assert_eq!((kept(a, 4), letters(b, 4)), ("=aa=".into(), "==bb".into()));
    assert_told(a, b, [2, 2]);
    let (code, said) = a.try_tern(&["promote", "vm1", "--force"]).unwrap_err();
    assert!(code == 1 && said.contains("resync"), "{code} {said}");
    assert_eq!(kept(a, 4), "=aa=", "nothing is given up before somebody says so");

    let given_up = a.tern(&["resync", "vm1", "--discard-local"]);
    assert_eq!((&given_up["blocks"], &given_up["kept"]), (&2.into(), &true.into()), "{given_up}");
    b.verify();
    a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    assert!(a.volume()["diverged"].is_null() && b.volume()["diverged"].is_null());
    assert_eq!((a.volume()["role"].as_str(), letters(b, 4)), (Some("standby"), "==bb".into()));
    b.tern(&["snapshot", "vm1"]);
    drop((at_a, at_b));
    b.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    a.tern(&["promote", "vm1"]);
    assert_eq!(letters(a, 4), "==bb");
    a.assert_no_panic();
    b.assert_no_panic();
}

/// Lesson: a split is told, and nothing goes before the operator says so (doc-sleha#413).
#[test]
fn two_sites_that_were_both_promoted_are_split_until_one_goes_on_and_the_other_gives_up() {
    let linked = Linked::start(16);
    let Pair { a, b, .. } = &linked.pair;
    let mut at_a = connect(a);
    (0..4).for_each(|block| write(&mut at_a, block, b'='));
    drop(at_a);
    a.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    a.tern(&["demote", "vm1"]);
    assert_eq!((a.volume()["role"].as_str(), b.volume()["role"].as_str()), (Some("standby"), Some("standby")));
    linked.cut();
    for site in [a, b] {
        site.tern(&["promote", "vm1", "--force"]);
    }
    let (mut at_a, mut at_b) = (connect(a), connect(b));
    (1..3).for_each(|block| write(&mut at_a, block, b'a'));
    (2..4).for_each(|block| write(&mut at_b, block, b'b'));
    write(&mut at_b, BLOCKS - 1, b'b');

    linked.heal();
    for site in [a, b] {
        let split = site.wait_until("split", |volume| volume["state"] == "split-brain");
        assert_eq!(split["role"], "stale", "{split}");
        assert!(split["last_error"].as_str().is_some_and(|error| error.contains("resync") && error.contains("promote")), "{split}");
    }
    assert_not_acknowledged(&mut at_a);
    assert_not_acknowledged(&mut at_b);
    assert_eq!((kept(a, 4), kept(b, 4)), ("=aa=".into(), "==bb".into()));
    assert_told(a, b, [2, 3]);
    assert_eq!((kept(a, 4), kept(b, 4)), ("=aa=".into(), "==bb".into()));

    // Whoever still waits would be served when the volume is.
    drop((at_a, at_b));
    for site in [a, b] {
        site.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    }
    b.tern(&["promote", "vm1", "--force"]);
    a.tern(&["resync", "vm1", "--discard-local", "--yes"]);
    b.verify();
    assert_eq!((letters(b, 4), kept(a, 4)), ("==bb".into(), "==bb".into()));
    assert_eq!((a.volume()["role"].as_str(), b.volume()["role"].as_str()), (Some("standby"), Some("primary")));
    a.assert_no_panic();
    b.assert_no_panic();
}
