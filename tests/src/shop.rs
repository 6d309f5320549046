//! A group `shop` of volumes at two sites, and a client that writes a rising counter to all of its members in turn.

use crate::{NbdClient, Pair, Relay, Site, eventually};
use serde_json::Value;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

const BLOCK: usize = 4096;
/// Counters go round in so many blocks of each volume.
const RING: u64 = 64;
const NAMES: [&str; 4] = ["vm1", "vm2", "vm3", "vm4"];

/// See the module's documentation.
pub struct Shop {
    /// The sites, of which the first is primary.
    pub pair: Pair,
    /// The links between them, if they can be cut.
    pub relays: Vec<Relay>,
    /// Its members.
    pub volumes: &'static [&'static str],
}

/// Whether each write is followed by a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// None is.
    Never,
    /// Each is.
    Each,
}

impl Shop {
    /// So many members of 32 MiB each, with these settings for all of them.
    pub fn start(members: usize, settings: &[&str]) -> Self {
        let shop = Self::open(members, settings, |_| None);
        shop.make();
        shop
    }

    /// The same over links that can be cut.
    pub fn linked(members: usize, settings: &[&str]) -> Self {
        let shop = Self::open(members, settings, |site| Some(Relay::to(site.listen())));
        shop.make();
        shop
    }

    /// Volumes that are no group yet.
    pub fn open(members: usize, settings: &[&str], link: impl Fn(&Site) -> Option<Relay>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (a, b) = (Site::start("osaka", directory.path()), Site::start("oregon", directory.path()));
        let volumes = &NAMES[..members];
        volumes.iter().for_each(|volume| drop(a.tern(&["volume", "create", volume, "--size", "32M"])));
        let relays: Vec<Relay> = [&a, &b].into_iter().filter_map(link).collect();
        let at = match relays.as_slice() {
            [to_a, to_b] => [to_a.address(), to_b.address()],
            _ => [a.listen().to_owned(), b.listen().to_owned()],
        };
        let pair = Pair::of(directory, a, b, [&at[0], &at[1]], "400ms");
        for volume in &volumes[1..] {
            pair.a.tern(&["replicate", volume, "--to", "oregon", "--rpo", "400ms"]);
            for site in [&pair.a, &pair.b] {
                let export = ["volume", "export", volume, "--nbd", &format!("unix:{}", site.socket("nbd").display())];
                eventually("it is served", || site.try_tern(&export).is_ok());
            }
        }
        for volume in volumes {
            if !settings.is_empty() {
                pair.a.tern(&[&["replicate", volume, "--to", "oregon"], settings].concat());
            }
            pair.a.tern(&["wait", volume, "--for", "in-sync", "--timeout", "60s"]);
        }
        Self { pair, relays, volumes }
    }

    /// Makes the group.
    pub fn make(&self) {
        self.pair.a.tern(&[&["group", "create", "shop"], self.volumes].concat());
    }

    /// Drops everything between the sites from now on.
    pub fn cut(&self) {
        self.relays.iter().for_each(Relay::cut);
    }

    /// Passes on again.
    pub fn heal(&self) {
        self.relays.iter().for_each(Relay::heal);
    }

    /// A client of each member at a site.
    pub fn clients(&self, site: &Site) -> Vec<NbdClient> {
        self.volumes.iter().map(|volume| NbdClient::connect_to(&site.socket("nbd"), volume).expect("an export")).collect()
    }

    /// The last counter that all members have at the site. Each has all before it, and none has one that a member before it lacks.
    pub fn counted(&self, site: &Site) -> u64 {
        counted(self.clients(site))
    }

    /// The group at a site.
    pub fn shown(&self, site: &Site) -> Value {
        site.tern(&["group", "show", "shop"])
    }

    /// Waits until the group at a site says so.
    pub fn until(&self, site: &Site, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let seen = || holds(&self.shown(site));
        eventually(what, seen);
        self.shown(site)
    }

    /// What each member is at a site.
    pub fn roles(&self, site: &Site) -> Vec<String> {
        let seen = site.tern(&["status"]);
        let of =
            |name: &&str| seen["volumes"].as_array()?.iter().find(|volume| volume["name"] == **name)?["role"].as_str().map(str::to_owned);
        self.volumes.iter().map(|name| of(name).expect("a role")).collect()
    }

    /// The group's recovery points at a site.
    pub fn points(&self, site: &Site) -> Vec<u64> {
        let list = site.tern(&["points", "shop"]);
        list["points"].as_array().expect("a list").iter().filter_map(|point| point["epoch"].as_u64()).collect()
    }

    /// What a drill of the group shows.
    pub fn drilled(&self, site: &Site, at: &[&str]) -> u64 {
        let socket = site.socket("drill");
        let drill = site.tern(&[&["drill", "shop", "--nbd", &format!("unix:{}", socket.display())], at].concat());
        assert_eq!(drill["members"].as_array().map(Vec::len), Some(self.volumes.len()), "{drill}");
        let last = counted(self.volumes.iter().map(|volume| drill_of(&socket, volume)).collect());
        let ended = site.tern(&["drill", "shop", "--end"]);
        assert_eq!(ended["state"], "ended", "{ended}");
        last
    }
}

fn drill_of(socket: &Path, volume: &str) -> NbdClient {
    NbdClient::connect_to(socket, volume).expect("a drill's export")
}

/// Writes counters to one volume after the other, each once the one before is acknowledged. `told` is the last that all have.
pub fn count(clients: &mut [NbdClient], told: &AtomicU64, flush: Flush, go_on: impl Fn() -> bool) -> io::Result<()> {
    while go_on() {
        let next = told.load(SeqCst) + 1;
        let block: Vec<u8> = next.to_le_bytes().repeat(BLOCK / 8);
        for client in &mut *clients {
            client.write(next % RING * BLOCK as u64, &block)?;
            if flush == Flush::Each {
                client.flush()?;
            }
        }
        told.store(next, SeqCst);
    }
    Ok(())
}

/// The client writes counters while this goes on, and afterwards no more. Returns the last that all volumes have; `work` sees how far it has come.
pub fn while_counting(mut clients: Vec<NbdClient>, flush: Flush, work: impl FnOnce(&AtomicU64)) -> u64 {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let (told, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let counting = scope.spawn(|| count(&mut clients, &told, flush, || !stop.load(SeqCst)));
        let stop = Stop(&stop);
        eventually("it counts", || told.load(SeqCst) > 5);
        work(&told);
        drop(stop);
        if let Ok(Err(error)) = counting.join() {
            println!("the client was told: {error}");
        }
    });
    told.into_inner()
}

fn counted(clients: Vec<NbdClient>) -> u64 {
    let last: Vec<u64> = clients.into_iter().map(last_of).collect();
    let (most, least) = (last[0], last[last.len() - 1]);
    assert!(last.is_sorted_by(|before, after| before >= after) && most - least <= 1, "the volumes are of different instants: {last:?}");
    least
}

/// The last counter of a volume, which has those before it.
fn last_of(mut client: NbdClient) -> u64 {
    let mut ring = vec![0; RING as usize * BLOCK];
    client.read(0, &mut ring).expect("the ring");
    let number = |at: u64| u64::from_le_bytes(*ring[at as usize * BLOCK..].first_chunk().expect("eight bytes"));
    let last = (0..RING).map(number).max().unwrap_or(0);
    let first: RangeInclusive<u64> = last.saturating_sub(RING - 1)..=last;
    for at in 0..RING {
        let expected = first.clone().find(|counter| counter % RING == at).unwrap_or(0);
        assert_eq!(number(at), expected, "block {at} at {last}");
    }
    last
}
