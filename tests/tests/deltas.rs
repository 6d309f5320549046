//! Hot blocks that change a little: what goes is what differs, and both sites hold the same whoever is killed meanwhile.

use rand::RngExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tern_tests::{NbdClient, Pair, dice, rounds};

const BLOCK_BYTES: usize = 4096;
const HOT_BLOCKS: usize = 256;
/// Between two updates. For a guest that writes as fast as loopback takes it, the encoder would need more of a core than it may have, and sends no
/// differences.
const PAUSE: Duration = Duration::from_millis(150);

/// Blocks that do not compress.
struct Hot(Vec<u8>);

impl Hot {
    fn new() -> Self {
        let mut content = vec![0; HOT_BLOCKS * BLOCK_BYTES];
        dice().fill(&mut content[..]);
        Self(content)
    }

    /// Changes a few bytes of each block.
    fn update(&mut self, client: &mut NbdClient) -> std::io::Result<()> {
        let mut dice = dice();
        for block in self.0.chunks_exact_mut(BLOCK_BYTES) {
            let at = dice.random_range(0..BLOCK_BYTES - 40);
            dice.fill(&mut block[at..at + 40]);
        }
        client.write(0, &self.0)
    }
}

fn total(pair: &Pair, field: &str) -> u64 {
    pair.a.volume()[field].as_u64().unwrap()
}

#[test]
fn hot_blocks_that_change_a_little_cost_a_tenth_of_what_is_written() {
    let pair = Pair::start(16, "1s");
    let (mut client, mut hot) = (NbdClient::connect(&pair.a.socket("nbd")).unwrap(), Hot::new());
    let mut update = || {
        std::thread::sleep(PAUSE);
        hot.update(&mut client).unwrap();
        pair.a.tern(&["snapshot", "vm1"]);
    };
    // Until the sender has found out that there is time for it, and has sent all of them once.
    let most = (0..100).find(|_| {
        let before = total(&pair, "delta_blocks");
        update();
        total(&pair, "delta_blocks") - before == HOT_BLOCKS as u64
    });
    assert!(most.is_some(), "no differences are sent: {}", pair.a.volume());
    let before = ["wire_bytes_sent", "changed_bytes"].map(|field| total(&pair, field));
    (0..10).for_each(|_| update());
    let [sent, changed] = ["wire_bytes_sent", "changed_bytes"].map(|field| total(&pair, field));
    let (sent, changed) = (sent - before[0], changed - before[1]);
    assert!(sent * 10 < changed, "{sent} bytes were sent for {changed}");
    pair.a.verify();
    // The way back: the other site sends them, too.
    drop(client);
    pair.a.wait_until("without a client", |volume| volume["attached"].as_array().is_some_and(Vec::is_empty));
    pair.b.tern(&["promote", "vm1"]);
    let mut client = NbdClient::connect(&pair.b.socket("nbd")).unwrap();
    let mut content = vec![0; hot.0.len()];
    client.read(0, &mut content).unwrap();
    assert!(content == hot.0, "what was sent as differences is something else there");
    pair.a.assert_no_panic();
    pair.b.assert_no_panic();
}

#[test]
fn a_kill_of_either_site_while_differences_flow_leaves_both_the_same() {
    let mut pair = Pair::start(16, "200ms");
    let hot = Mutex::new(Hot::new());
    for round in 0..rounds("KILLS", 3) {
        let mut client = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
        let goes_on = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut hot = hot.lock().unwrap();
                let mut is_served = true;
                while is_served && goes_on.load(Relaxed) {
                    is_served = hot.update(&mut client).is_ok();
                }
            });
            let before = total(&pair, "delta_blocks");
            pair.a.wait_until("differences flow", |volume| volume["delta_blocks"].as_u64() > Some(before));
            if round % 2 == 0 {
                pair.b.kill();
                pair.b.restart();
                // They flow over the next connection, too.
                let before = total(&pair, "delta_blocks");
                pair.a.wait_until("differences flow again", |volume| volume["delta_blocks"].as_u64() > Some(before));
                goes_on.store(false, Relaxed);
            } else {
                pair.a.kill();
                pair.a.restart();
            }
            writer.join().unwrap();
        });
        pair.a.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        pair.a.verify();
    }
    pair.a.assert_no_panic();
    pair.b.assert_no_panic();
}
