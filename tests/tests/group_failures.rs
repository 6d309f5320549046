//! Consistency groups on bad days: whatever is killed, cut off or refused between one member and the next, a group goes on from one instant,
//! or is as it was before, and what the operator sees says how to go on.

use rand::RngExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use tern_tests::{Flush, NbdClient, Relay, Shop, count, dice, eventually, rounds, while_counting};

/// A volume beyond the counters' blocks, in the pieces that it is filled with.
const PIECE: usize = 1 << 20;
fn is_primary(role: &String) -> bool {
    role == "primary"
}

/// What a client has counted at the primary.
fn counted_a_little(shop: &Shop) -> u64 {
    while_counting(shop.clients(&shop.pair.a), Flush::Never, |_| ())
}

/// Has a member take a while to catch up.
fn fill(shop: &Shop, member: &str) {
    let (site, mut dice) = (&shop.pair.a, dice());
    site.tern(&["replicate", member, "--to", "oregon", "--bandwidth", "20Mbit"]);
    let mut client = NbdClient::connect_to(&site.socket("nbd"), member).unwrap();
    for piece in 1..8 {
        let noise: Vec<u8> = (0..PIECE / 8).flat_map(|_| dice.random::<u64>().to_le_bytes()).collect();
        client.write(piece * PIECE as u64, &noise).unwrap();
    }
    drop(client);
    eventually("nobody is attached", || site.tern(&["status", member])["volumes"][0]["attached"] == serde_json::json!([]));
}

#[test]
fn a_failover_that_is_killed_between_members_goes_on_where_it_went() {
    let mut shop = Shop::start(4, &[]);
    let mut half_way = 0;
    counted_a_little(&shop);
    shop.pair.a.tern(&["snapshot", "shop"]);
    shop.pair.a.kill();
    let newest = shop.drilled(&shop.pair.b, &[]);
    for _ in 0..rounds("GROUP_KILLS", 2) * 4 {
        let promoted = || shop.pair.b.logged(&["a member is promoted"]).len();
        let (before, enough) = (promoted(), dice().random_range(1..3));
        let mut promotion = shop.pair.b.start_tern(&["promote", "shop", "--force"]);
        while promoted() < before + enough && promotion.try_wait().unwrap().is_none() {
            thread::yield_now();
        }
        shop.pair.b.kill();
        promotion.wait().unwrap();
        shop.pair.b.restart();
        let gone = shop.roles(&shop.pair.b).into_iter().filter(is_primary).count();
        println!("{gone} members were gone");
        match gone {
            0 => assert_eq!(shop.shown(&shop.pair.b)["role"], "standby"),
            4 => break,
            _ => {
                half_way += 1;
                let seen = shop.shown(&shop.pair.b);
                assert!(seen["reason"].as_str().is_some_and(|why| why.contains("`tern promote shop`")), "{seen}");
                assert!(seen["role"].is_null() && seen["promise_held"] == false, "{seen}");
                let (code, said) = shop.pair.b.try_tern(&["promote", "shop"]).unwrap_err();
                assert!(code == 4 && said.contains("--force"), "{code} {said}");
            }
        }
    }
    if !shop.roles(&shop.pair.b).iter().all(is_primary) {
        shop.pair.b.tern(&["promote", "shop", "--force"]);
    }
    println!("{half_way} of them were seen half-way");
    let seen = shop.shown(&shop.pair.b);
    assert_eq!(seen["role"], "primary", "{seen}");
    assert_eq!(shop.counted(&shop.pair.b), newest);
    shop.pair.b.assert_no_panic();
}

#[test]
fn a_failover_that_took_no_member_is_given_up_and_replication_goes_on() {
    let mut shop = Shop::linked(2, &[]);
    let told = counted_a_little(&shop);
    shop.pair.a.tern(&["snapshot", "shop"]);
    let before = shop.points(&shop.pair.b);
    // The members are fenced one by one: there is time to kill it.
    shop.relays.iter().for_each(|relay| relay.delay(Duration::from_millis(100)));
    let mut promotion = shop.pair.b.start_tern(&["promote", "shop", "--at", &before[0].to_string(), "--force"]);
    eventually("it has begun", || shop.shown(&shop.pair.a)["state"] == "fenced");
    shop.pair.b.kill();
    promotion.wait().unwrap();
    shop.relays.iter().for_each(|relay| relay.delay(Duration::ZERO));
    shop.pair.b.restart();
    assert_eq!(shop.roles(&shop.pair.b), ["standby", "standby"]);
    let promotion = shop.pair.a.tern(&["promote", "shop", "--force"]);
    assert_eq!(promotion["lost_bytes"], 0, "{promotion}");
    shop.until(&shop.pair.a, "it is in sync again", |seen| seen["state"] == "in-sync");
    shop.until(&shop.pair.b, "nothing is left of it", |seen| seen["reason"].is_null() && seen["state"] == "in-sync");
    shop.pair.a.tern(&["snapshot", "shop"]);
    assert_eq!(shop.counted(&shop.pair.a), told);
    shop.pair.assert_no_panic();
}

/// Promotes the group at the standby, and does `then` once its first member is handed over; what comes of that stays until the promotion has
/// failed. Returns what it said.
fn handed_over_in_part<T>(shop: &Shop, then: impl FnOnce() -> T) -> (i32, String) {
    let [a, b] = [&shop.pair.a, &shop.pair.b];
    counted_a_little(shop);
    fill(shop, "vm2");
    thread::scope(|scope| {
        let promoting = scope.spawn(|| b.try_tern(&["promote", "shop"]).unwrap_err());
        eventually("the first one is handed over", || shop.roles(a) == ["standby", "primary"]);
        let _stays = then();
        promoting.join().unwrap()
    })
}

#[test]
fn what_was_handed_over_before_another_member_was_refused_is_served_again() {
    let shop = Shop::start(2, &[]);
    let [a, b] = [&shop.pair.a, &shop.pair.b];
    let said = handed_over_in_part(&shop, || NbdClient::connect_to(&a.socket("nbd"), "vm2").unwrap());
    assert!(said.0 == 4 && said.1.contains("client is active at vm2") && said.1.contains("osaka serves vm1"), "{said:?}");
    assert_eq!((shop.roles(a), shop.roles(b)), (vec!["primary".into(); 2], vec!["standby".to_owned(); 2]));
    // It is one again, at both sites, and nobody lost anything.
    let told = AtomicU64::new(shop.counted(a));
    count(&mut shop.clients(a), &told, Flush::Never, || told.load(SeqCst) % 100 < 99).unwrap();
    a.tern(&["replicate", "vm2", "--to", "oregon", "--bandwidth", "none"]);
    shop.until(a, "it is in sync", |seen| seen["state"] == "in-sync");
    eventually("it is handed over", || b.try_tern(&["promote", "shop"]).is_ok());
    assert_eq!(shop.counted(b), told.load(SeqCst));
    a.assert_no_panic();
    b.assert_no_panic();
}

#[test]
fn what_was_handed_over_before_the_link_broke_is_taken_back_where_it_was() {
    let shop = Shop::linked(2, &[]);
    let [a, b] = [&shop.pair.a, &shop.pair.b];
    let said = handed_over_in_part(&shop, || shop.cut());
    assert!(said.0 > 0 && said.1.contains("nobody serves vm1") && said.1.contains("tern promote shop"), "{said:?}");
    let seen = shop.shown(a);
    assert!(seen["role"].is_null() && seen["reason"].as_str().is_some_and(|why| why.contains("`tern promote shop`")), "{seen}");
    shop.heal();
    eventually("it is one again", || a.try_tern(&["promote", "shop"]).is_ok());
    assert_eq!(shop.roles(a), ["primary", "primary"]);
    shop.counted(a);
    a.tern(&["replicate", "vm2", "--to", "oregon", "--bandwidth", "none"]);
    shop.until(a, "it is in sync", |seen| seen["state"] == "in-sync");
    a.assert_no_panic();
    b.assert_no_panic();
}

#[test]
fn a_group_is_taken_over_by_force_under_load_and_nothing_acknowledged_is_lost() {
    let shop = Shop::start(3, &[]);
    let mut writers = shop.clients(&shop.pair.a);
    // Where nobody is primary any more, requests wait.
    writers.iter_mut().for_each(|writer| writer.set_patience(Duration::from_secs(2)).unwrap());
    let told = while_counting(writers, Flush::Never, |_| {
        let promotion = shop.pair.b.tern(&["promote", "shop", "--force"]);
        assert_eq!((&promotion["kind"], &promotion["lost_bytes"]), (&"handover".into(), &0.into()), "{promotion}");
    });
    let counted = shop.counted(&shop.pair.b);
    assert!(counted >= told, "{told} were acknowledged, and {counted} are there");
    shop.until(&shop.pair.b, "the old primary follows", |seen| seen["state"] == "in-sync");
    shop.pair.assert_no_panic();
}

#[test]
fn a_change_that_the_other_site_made_and_did_not_answer_is_known_to_both_in_the_end() {
    let shop = Shop::open(3, &[], |site| Some(Relay::to(site.listen())));
    let [a, b] = [&shop.pair.a, &shop.pair.b];
    a.tern(&["group", "create", "shop", "vm1", "vm2"]);
    for verb in [["group", "add", "shop", "vm3"], ["group", "remove", "shop", "vm3"]] {
        let members = shop.shown(b)["volumes"].clone();
        shop.relays.iter().for_each(|relay| relay.delay(Duration::from_millis(400)));
        let (code, said) = thread::scope(|scope| {
            let changing = scope.spawn(|| a.try_tern(&verb).unwrap_err());
            eventually("the other site has made it", || shop.shown(b)["volumes"] != members);
            shop.cut();
            changing.join().unwrap()
        });
        assert!(code == 1 && said.contains("oregon"), "{code} {said}");
        assert_eq!(shop.shown(a)["volumes"], members, "it is as it was");
        shop.relays.iter().for_each(|relay| relay.delay(Duration::ZERO));
        shop.heal();
        eventually("both say the same", || shop.shown(b)["volumes"] == members);
        shop.until(a, "it is in sync", |seen| seen["state"] == "in-sync");
        let number = a.tern(&["snapshot", "shop"])["epoch"].as_u64().unwrap();
        assert!(shop.points(b).contains(&number));
        a.tern(&verb);
    }
    a.assert_no_panic();
    b.assert_no_panic();
}

#[test]
fn a_primary_that_dies_in_the_middle_of_a_cut_leaves_one_instant_in_all_members() {
    for _ in 0..rounds("GROUP_KILLS", 2) {
        let mut shop = Shop::start(3, &["--mode", "sync"]);
        shop.until(&shop.pair.a, "the promise holds", |seen| seen["promise_held"] == true);
        let told = while_counting(shop.clients(&shop.pair.a), Flush::Never, |told| {
            // Each write is a cut of all: there is always one under way.
            let enough = dice().random_range(50..150);
            eventually("it counts", || told.load(SeqCst) > enough);
            shop.pair.a.kill();
        });
        let promotion = shop.pair.b.tern(&["promote", "shop", "--force"]);
        let counted = shop.counted(&shop.pair.b);
        assert!(counted == told || counted == told + 1, "{told} were acknowledged, and {counted} are there: {promotion}");
        shop.pair.b.assert_no_panic();
    }
}

#[test]
fn a_standby_that_dies_between_the_commits_of_members_shows_no_point_that_is_not_whole() {
    let mut shop = Shop::start(3, &["--mode", "barrier", "--on-disconnect", "suspend"]);
    shop.until(&shop.pair.a, "the promise holds", |seen| seen["promise_held"] == true);
    let told = while_counting(shop.clients(&shop.pair.a), Flush::Each, |told| {
        for _ in 0..rounds("GROUP_KILLS", 2) * 2 {
            let before = told.load(SeqCst);
            eventually("it counts", || told.load(SeqCst) > before + 10);
            let flushed = told.load(SeqCst);
            shop.pair.b.kill();
            shop.pair.b.restart();
            let drilled = shop.drilled(&shop.pair.b, &[]);
            assert!(drilled >= flushed, "{flushed} were flushed, and a drill shows {drilled}");
        }
    });
    shop.pair.a.kill();
    shop.pair.b.tern(&["promote", "shop", "--force"]);
    assert_eq!(shop.counted(&shop.pair.b), told);
    shop.pair.b.assert_no_panic();
}
