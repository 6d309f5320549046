//! Other sites that break the rules, strangers and paired ones: each is told why, the log has a line, and nobody else notices.

mod forger;
mod links;
mod questions;
mod streams;

use forger::Forger;
use replicator_engine::generation::{Id, Lineage};
use tern_tests::{NbdClient, Pair, Site};

/// Memory that noise may cost: buffers of the transport, and what the allocator keeps.
const MAX_GROWTH_KIB: u64 = 96 << 10;

/// Two sites that replicate a volume, and a third one, paired with the first, that is not what it seems.
struct Scene {
    pair: Pair,
    forger: Forger,
    witness: NbdClient,
    resident_kib: u64,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Self {
        let pair = Pair::start(16, "500ms");
        let directory = tempfile::tempdir().unwrap();
        let token = pair.a.tern(&["peer", "invite"])["token"].as_str().unwrap().to_owned();
        let forger = Forger::paired(directory.path(), "forger", pair.a.listen(), &token).await;
        let witness = NbdClient::connect(&pair.a.socket("nbd")).unwrap();
        let resident_kib = resident_kib(&pair.a);
        Self { pair, forger, witness, resident_kib, _directory: directory }
    }

    /// The volume that the forger has nothing to do with.
    fn volume(&self) -> String {
        let list = self.pair.a.tern(&["volume", "list"]);
        let volumes = list["volumes"].as_array().unwrap();
        let backing = volumes.iter().find(|volume| volume["name"] == "vm1").unwrap()["backing"].as_str().unwrap();
        std::path::Path::new(backing).file_stem().unwrap().to_str().unwrap().to_owned()
    }

    /// Nothing has become of all that.
    fn end(mut self) {
        self.witness.write(4096, &[b'w'; 4096]).unwrap();
        let mut content = [0; 4096];
        self.witness.read(4096, &mut content).unwrap();
        assert_eq!(content, [b'w'; 4096]);
        let status = self.pair.a.volume();
        assert_eq!((&status["role"], &status["last_error"]), (&"primary".into(), &serde_json::Value::Null), "{status}");
        self.pair.a.verify();
        self.pair.a.assert_no_panic();
        let grown = resident_kib(&self.pair.a).saturating_sub(self.resident_kib);
        assert!(grown < MAX_GROWTH_KIB, "{grown} KiB more than before");
    }
}

/// Memory that a site's daemon has.
fn resident_kib(site: &Site) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", site.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Ids and lineages that are told apart by a number.
fn id(number: u8) -> Id {
    Id([number; 16])
}

fn lineage() -> Lineage {
    Lineage::first(id(1))
}
