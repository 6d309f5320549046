//! A consistency group in a world of its own: the engine's trackers, senders, receivers, rounds and ledger, without disks.
//!
//! Clients write to members in turn, each write once the one before is acknowledged. Links break, both sites crash, cuts are given up, and
//! members are cut together or alone. After each step, whatever a group's point shows is held against what happened: if a write is in it,
//! so is every one that was acknowledged before that began; and what the primary calls complete, the standby has.

mod guest;
mod member;
mod standby;

use guest::{Client, Moment};
use member::{Member, Wants};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::group::{Complete, GroupCut, Ledger, Rounds, Turn, common_points};
use replicator_engine::tracker::Epoch;
use standby::Point;

const STEPS: u32 = 1_500;
const CLIENTS: usize = 2;
/// Blocks of a member: few, so that they are written again while they are under way.
const BLOCKS: u32 = 8;
const GROUP: Id = Id([9; 16]);

/// A bug that is put in on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPlant {
    /// Each member is held for its own cut alone.
    HoldOneByOne,
    /// A stream that broke is not told to the ledger.
    CountWhatBroke,
    /// A failover goes to each member's newest point.
    NewestOfEach,
    /// What is cut alone is named after the last cut of all.
    NameAlone,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupTally {
    /// Cuts of all members.
    pub cuts: u64,
    /// Cuts of one.
    pub alone: u64,
    /// States of all members that were held against what happened.
    pub checks: u64,
}

/// Runs one seed to its end; panics where a rule is broken.
pub fn run_group(seed: u64, plant: Option<GroupPlant>) -> GroupTally {
    let mut world = World::new(seed, plant);
    for _ in 0..STEPS {
        world.step();
    }
    world.fail_over();
    world.tally
}

/// A cut of all that is being made, member by member: writes of others go on meanwhile as far as they are not held.
struct Cutting {
    epochs: Vec<Epoch>,
}

struct World {
    dice: StdRng,
    plant: Option<GroupPlant>,
    now_ms: u64,
    moment: Moment,
    members: Vec<Member>,
    clients: Vec<Client>,
    rounds: Rounds,
    ledger: Ledger,
    cutting: Option<Cutting>,
    last_number: u64,
    /// What was promised: a cut whose parts are all at the standby.
    promised: Option<Complete>,
    tally: GroupTally,
}

impl World {
    fn new(seed: u64, plant: Option<GroupPlant>) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let count = dice.random_range(2..=3);
        let lineage = Lineage::first(Id([1; 16]));
        let members = (0..count).map(|member| Member::new(member as u8, 1 + dice.random_range(0..9), &lineage)).collect();
        Self {
            plant,
            now_ms: 1,
            moment: 0,
            members,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            rounds: Rounds::new(count),
            ledger: Ledger::default(),
            cutting: None,
            last_number: 0,
            promised: None,
            tally: GroupTally::default(),
            dice,
        }
    }

    fn step(&mut self) {
        self.now_ms += self.dice.random_range(0..20);
        if self.cutting.is_some() && self.dice.random_bool(0.1) {
            return self.go_on_cutting();
        }
        let member = self.dice.random_range(0..self.members.len());
        match self.dice.random_range(0..1000) {
            0..400 => {
                let client = self.dice.random_range(0..CLIENTS);
                self.clients[client].step(&mut self.members, &mut self.dice, self.now_ms, &mut self.moment);
            }
            400..700 if self.cutting.is_none() => self.poll(member),
            700..940 => self.deliver(member),
            940..950 => self.members[member].request_cut(),
            950..954 => self.break_stream(member),
            954..957 if self.cutting.is_none() => {
                self.members[member].standby.crash();
                self.break_stream(member);
            }
            957..958 => self.crash_primary(),
            958..961 => self.overflow(member),
            _ if self.cutting.is_none() => self.members[member].connect(self.now_ms),
            _ => {}
        }
    }

    fn poll(&mut self, member: usize) {
        match self.members[member].poll(self.now_ms, &mut self.dice) {
            Wants::Cut => match self.rounds.ask(member, self.now_ms) {
                Turn::Alone => {
                    let named = (self.plant == Some(GroupPlant::NameAlone)).then_some(self.last_number);
                    let epoch = self.members[member].tracker.cut();
                    self.tally.alone += 1;
                    self.members[member].handle_cut(epoch, named.map(|number| GroupCut { group: GROUP, number }), self.now_ms);
                }
                Turn::Wait => {
                    let awaited: Vec<usize> = self.rounds.awaited().collect();
                    awaited.into_iter().for_each(|other| self.members[other].request_cut());
                }
                Turn::Together => self.begin_cutting(member),
            },
            Wants::Nothing { able } => self.set_busy(member, able),
        }
        if self.rounds.is_cut_owed() {
            self.members.iter_mut().for_each(Member::request_cut);
        }
    }

    fn set_busy(&mut self, member: usize, able: bool) {
        if able { self.rounds.set_able(member) } else { self.rounds.set_away(member) }
    }

    /// The others are asked once more, and stand still from then on.
    fn begin_cutting(&mut self, last: usize) {
        for other in (0..self.members.len()).filter(|other| *other != last) {
            if let Wants::Nothing { able } = self.members[other].poll(self.now_ms, &mut self.dice) {
                return self.set_busy(other, able);
            }
        }
        if self.plant != Some(GroupPlant::HoldOneByOne) {
            self.members.iter().for_each(|member| member.tracker.hold());
        }
        self.cutting = Some(Cutting { epochs: Vec::new() });
    }

    /// Cuts the next member, or lets all go.
    fn go_on_cutting(&mut self) {
        let Some(cutting) = &mut self.cutting else { return };
        if let Some(member) = self.members.get_mut(cutting.epochs.len()) {
            cutting.epochs.push(member.tracker.cut());
            member.handle_closing();
            return;
        }
        let epochs = self.cutting.take().expect("it is being made").epochs;
        let number = epochs.iter().copied().max().expect("a group has members");
        assert!(number > self.last_number, "the number of a cut grows");
        self.last_number = number;
        let cut = GroupCut { group: GROUP, number };
        for (member, epoch) in self.members.iter_mut().zip(&epochs) {
            member.tracker.release();
            member.handle_cut(*epoch, Some(cut), self.now_ms);
        }
        self.ledger.handle_cut(Complete { number, unix_ms: self.now_ms, epochs });
        self.rounds.handle_cut();
        self.tally.cuts += 1;
    }

    fn deliver(&mut self, member: usize) {
        let acked = self.members[member].deliver(self.now_ms);
        if acked.is_some_and(|acked| self.ledger.handle_acked(member, acked)) {
            self.promised = self.ledger.complete().cloned();
            self.check(Whom::Newest);
        }
    }

    /// Both sides notice.
    fn break_stream(&mut self, member: usize) {
        // What is being cut is cut: threads that stand still notice afterwards.
        if self.cutting.is_some() || !self.members[member].disconnect() {
            return;
        }
        self.rounds.set_away(member);
        self.handle_broken(member);
    }

    /// There is no room for what the clients overwrite.
    fn overflow(&mut self, member: usize) {
        if self.cutting.is_none() && self.members[member].overflow() {
            self.handle_broken(member);
        }
    }

    fn handle_broken(&mut self, member: usize) {
        if self.plant != Some(GroupPlant::CountWhatBroke) && !self.ledger.handle_broken(member).is_empty() {
            self.rounds.handle_void();
        }
    }

    /// The process is killed, perhaps in the middle of a cut, and starts again.
    fn crash_primary(&mut self) {
        self.cutting = None;
        for client in &mut self.clients {
            client.handle_crash(&mut self.members, &mut self.dice, &mut self.moment);
        }
        self.members.iter_mut().for_each(Member::crash);
        (self.rounds, self.ledger) = (Rounds::new(self.members.len()), Ledger::default());
        self.check(Whom::Any);
    }

    /// The primary's site is gone.
    fn fail_over(&mut self) {
        self.check(Whom::Any);
        self.check(Whom::Newest);
        if self.plant == Some(GroupPlant::NewestOfEach) {
            let newest: Vec<&Point> = self.members.iter().filter_map(|member| member.standby.points.last()).collect();
            if newest.len() == self.members.len() {
                guest::check_order(&self.members, &newest);
            }
        }
    }

    /// Holds points of the group against what the clients were told.
    fn check(&mut self, whom: Whom) {
        let cuts: Vec<Vec<_>> = self.members.iter().map(|member| member.standby.points.iter().map(|point| point.group).collect()).collect();
        let common = common_points(GROUP, &cuts);
        if let Some(promised) = &self.promised {
            let newest = common.last().map_or(0, |(number, _)| *number);
            assert!(newest >= promised.number, "cut {} was called complete, and the standby has {newest}", promised.number);
        }
        let chosen = if whom == Whom::Newest { common.len().saturating_sub(1) } else { 0 };
        for (_, places) in &common[chosen..] {
            let points: Vec<&Point> = self.members.iter().zip(places).map(|(member, place)| &member.standby.points[*place]).collect();
            guest::check_order(&self.members, &points);
            self.tally.checks += 1;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    Newest,
    Any,
}
