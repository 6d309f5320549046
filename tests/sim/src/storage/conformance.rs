//! What holds of every catalogue: the simulator's, and the daemon's.

use replicator::catalogue::{Catalogue, Change, Persist};

/// `reopen` gives the catalogue as the next process finds it, and ends the one before: empty at first.
pub fn conforms<C: Catalogue>(mut reopen: impl FnMut(Option<C>) -> C) {
    let catalogue = reopen(None);
    changes_are_applied_in_order(&catalogue);
    scans_are_sorted_and_end_with_their_prefix(&catalogue);
    let put = |catalogue: &C, key: &str, persist| catalogue.apply(&[(key.into(), Some(key.into()))], persist).unwrap();
    put(&catalogue, "later", Persist::Eventually);
    put(&catalogue, "now", Persist::Synced);
    let catalogue = reopen(Some(catalogue));
    for key in ["later", "now"] {
        assert_eq!(catalogue.get(key.as_bytes()).unwrap(), Some(key.into()), "what is synced is there with all before it");
    }
    catalogue.apply(&[(b"now".to_vec(), None)], Persist::Synced).unwrap();
    assert_eq!(reopen(Some(catalogue)).get(b"now").unwrap(), None, "and so is a removal");
}

fn changes_are_applied_in_order<C: Catalogue>(catalogue: &C) {
    let (key, other) = (vec![0, 255, 47], vec![0, 255]);
    assert_eq!(catalogue.get(&key).unwrap(), None);
    let changes: Vec<Change> = vec![(key.clone(), Some(vec![1])), (other.clone(), Some(Vec::new())), (key.clone(), Some(vec![2; 70_000]))];
    catalogue.apply(&changes, Persist::Eventually).unwrap();
    assert_eq!(catalogue.get(&key).unwrap(), Some(vec![2; 70_000]), "the last change of a key counts");
    assert_eq!(catalogue.get(&other).unwrap(), Some(Vec::new()), "an empty value is one");
    catalogue.apply(&[(other.clone(), None), (b"never there".to_vec(), None)], Persist::Eventually).unwrap();
    catalogue.apply(&[], Persist::Synced).unwrap();
    assert_eq!((catalogue.get(&other).unwrap(), catalogue.get(&key).unwrap().map(|value| value.len())), (None, Some(70_000)));
    catalogue.apply(&[(key, None)], Persist::Synced).unwrap();
}

fn scans_are_sorted_and_end_with_their_prefix<C: Catalogue>(catalogue: &C) {
    let keys: [&[u8]; 6] = [b"a/9", b"b/", b"b/\xff\xff", b"b/1", b"b/10", b"b0"];
    let changes: Vec<Change> = keys.iter().map(|key| (key.to_vec(), Some(key.to_vec()))).collect();
    catalogue.apply(&changes, Persist::Eventually).unwrap();
    let scan = |prefix: &[u8]| catalogue.scan(prefix).unwrap();
    let found: Vec<_> = scan(b"b/").into_iter().map(|(key, value)| key.eq(&value).then_some(key)).collect();
    let expected: [&[u8]; 4] = [b"b/", b"b/1", b"b/10", b"b/\xff\xff"];
    assert_eq!(found, expected.map(|key| Some(key.to_vec())));
    assert_eq!((scan(b"b/1").len(), scan(b"c").len(), scan(b"").len()), (2, 0, 6));
    let removals: Vec<Change> = keys.iter().map(|key| (key.to_vec(), None)).collect();
    catalogue.apply(&removals, Persist::Eventually).unwrap();
    assert_eq!(scan(b""), []);
}
