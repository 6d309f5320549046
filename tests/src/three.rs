//! Three real daemons: a volume, a standby near in `sync`, and one far in `async`.

use crate::{NbdClient, Relay, Site, eventually};
use serde_json::Value;
use std::path::Path;

const BLOCK_BYTES: usize = 4096;
/// Blocks with content from the start.
const FILLED: usize = 2000;

/// Three sites that know each other; the first reaches the others over relays.
pub struct Three {
    /// Osaka, the primary at first.
    pub p: Site,
    /// Oregon, a standby in `sync`.
    pub near: Site,
    /// Milan, a standby in `async`.
    pub far: Site,
    to_near: [Relay; 2],
    to_far: [Relay; 2],
    _directory: tempfile::TempDir,
}

fn join(one: &Site, other: &Site, [one_at, other_at]: [&str; 2]) {
    let invite = one.tern(&["peer", "invite", "--address", one_at]);
    other.tern(&["peer", "join", invite["token"].as_str().expect("a token"), "--address", other_at]);
}

/// What a volume's status says of one of its standbys.
pub fn replica<'a>(seen: &'a Value, site: &str) -> &'a Value {
    seen["replicas"].as_array().into_iter().flatten().find(|replica| replica["site"] == site).unwrap_or(&Value::Null)
}

impl Three {
    /// With `vm1`, of so many MiB, at the first, in sync at both others.
    pub fn start(size_mib: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at: &Path = directory.path();
        let [p, near, far] = ["osaka", "oregon", "milan"].map(|name| Site::start(name, at));
        let to_near = [Relay::to(p.listen()), Relay::to(near.listen())];
        let to_far = [Relay::to(p.listen()), Relay::to(far.listen())];
        join(&p, &near, [&to_near[0].address(), &to_near[1].address()]);
        join(&p, &far, [&to_far[0].address(), &to_far[1].address()]);
        join(&near, &far, [near.listen(), far.listen()]);
        for site in [&p, &near, &far] {
            let connected = || site.tern(&["peer", "list"])["peers"].as_array().into_iter().flatten().all(|peer| peer["connected"] == true);
            eventually("the sites are connected", connected);
        }
        p.tern(&["volume", "create", "vm1", "--size", &format!("{size_mib}M")]);
        let three = Self { p, near, far, to_near, to_far, _directory: directory };
        three.export(&three.p);
        let mut client = three.client(&three.p);
        let filled = (0..FILLED).try_for_each(|block| client.write((block * BLOCK_BYTES) as u64, &[block as u8 | 1; BLOCK_BYTES]));
        filled.and_then(|()| client.flush()).expect("a disk");
        three.p.tern(&["replicate", "vm1", "--to", "oregon", "--mode", "sync"]);
        three.p.tern(&["replicate", "vm1", "--to", "milan", "--rpo", "1s"]);
        [&three.near, &three.far].into_iter().for_each(|site| three.export(site));
        three.p.tern(&["wait", "vm1", "--for", "in-sync", "--timeout", "60s"]);
        three
    }

    fn export(&self, site: &Site) {
        eventually("it is exported", || {
            site.try_tern(&["volume", "export", "vm1", "--nbd", &format!("unix:{}", site.socket("nbd").display())]).is_ok()
        });
    }

    /// A client of the volume there.
    pub fn client(&self, site: &Site) -> NbdClient {
        NbdClient::connect(&site.socket("nbd")).expect("an export")
    }

    /// Nothing gets to the near one, or from it, any more.
    pub fn cut_near(&self) {
        self.to_near.iter().for_each(Relay::cut);
    }

    /// It does again.
    pub fn heal_near(&self) {
        self.to_near.iter().for_each(Relay::heal);
    }

    /// Nothing gets from the first site to the far one any more.
    pub fn cut_far(&self) {
        self.to_far.iter().for_each(Relay::cut);
    }

    /// It does again.
    pub fn heal_far(&self) {
        self.to_far.iter().for_each(Relay::heal);
    }

    /// The old primary comes back, gives up what it has alone, and follows the near one.
    pub fn old_primary_follows(&mut self) {
        self.p.restart();
        self.p.wait_until("overtaken", |seen| seen["role"] == "stale");
        self.p.tern(&["resync", "vm1", "--discard-local", "--yes"]);
        in_sync(&self.near, "osaka");
    }

    /// None of them has met what should not be.
    pub fn assert_no_panic(&self) {
        [&self.p, &self.near, &self.far].into_iter().for_each(Site::assert_no_panic);
    }
}

/// Waits until this standby of the primary is in sync.
pub fn in_sync(primary: &Site, standby: &str) -> Value {
    primary.wait_until("in sync", |seen| replica(seen, standby)["state"] == "in-sync" && replica(seen, standby)["backlog_bytes"] == 0)
}
