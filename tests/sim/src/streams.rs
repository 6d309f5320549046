//! The streams between primaries and standbys: how they begin, what passes, how they end.

use crate::network::Session;
use crate::primary::{Ended, Peer, Primary, Scene};
use crate::site::{Part, Role};
use crate::standby::StandbyPart;
use crate::world::{World, name};
use bytes::Bytes;
use rand::RngExt;
use replicator::disk::BlockDevice;
use replicator_engine::acknowledgement::Promise;
use replicator_engine::generation::{Lineage, Relation};
use replicator_engine::wire::{Envelope, Message, Refusal, Refused};

/// Turns within which the writes of a primary that was overtaken are done.
const DRAINING_TURNS: u32 = 60;

impl World {
    /// A stream of a primary that its standby, the one of this place in its list, has now.
    fn stream_of(&self, site: usize, peer: Peer) -> Option<usize> {
        (0..self.sites.len()).find(|to| peer.is_at(*to) && self.sessions.contains_key(&(site, *to)))
    }

    /// The sender of one of a primary's standbys works, and each direction of its stream delivers a few frames.
    pub fn move_data(&mut self, site: usize) {
        let count = self.sites[site].as_primary().map_or(0, |primary| primary.replicas.len());
        if count > 0 {
            let at = if count > 1 { self.rng.random_range(0..count) } else { 0 };
            self.move_data_of(site, at);
        }
    }

    /// The same for the standby at this site, if it has one there.
    pub fn move_data_to(&mut self, site: usize, to: usize) {
        self.place_of(site, to).into_iter().for_each(|at| self.move_data_of(site, at));
    }

    /// The same, but at most one frame gets to the standby.
    pub fn move_frame_to(&mut self, site: usize, to: usize) {
        if self.place_of(site, to).is_some_and(|at| self.send_of(site, at) == Some(to)) {
            self.deliver_down(site, to, 1);
            self.deliver_up(site, to);
        }
    }

    fn place_of(&mut self, site: usize, to: usize) -> Option<usize> {
        self.sites[site].as_primary()?.replicas.iter().position(|replica| replica.peer.is_at(to))
    }

    fn move_data_of(&mut self, site: usize, at: usize) {
        let Some(to) = self.send_of(site, at) else { return };
        let frames = self.rng.random_range(0..6);
        self.deliver_down(site, to, frames);
        if self.rng.random_bool(0.5) {
            self.fold(site, to);
        }
        self.deliver_up(site, to);
    }

    /// The sender of the standby at this place in the list works. To whom its stream goes, if it has one.
    fn send_of(&mut self, site: usize, at: usize) -> Option<usize> {
        let peer = self.sites[site].as_primary()?.replicas[at].peer;
        if self.far.is_some_and(|far| peer == Peer::At(far)) {
            return None;
        }
        if self.stream_of(site, peer).is_none() {
            let to = self.whom_to_meet(site, peer);
            self.connect(site, to);
        }
        let (steps, to) = (self.rng.random_range(1..6), self.stream_of(site, peer));
        let (now_ms, unix_ms) = (self.now_ms, self.now_ms + self.day_ms);
        let primary = self.sites[site].as_primary()?;
        let (mut frames, before) = (Vec::new(), primary.promises());
        let done = primary.run(at, &mut Scene { site, now_ms, unix_ms, history: &mut self.history }, steps, &mut frames);
        let (after, waiting) = (primary.promises(), primary.waiting());
        if before != after {
            self.note(|| format!("{} puts {after:?} in force, {waiting} requests wait", name(site)));
        }
        let to = to?;
        if let Some(session) = self.sessions.get_mut(&(site, to)) {
            let due_ms = session.due_ms(self.now_ms);
            frames.into_iter().for_each(|frame| session.down.send(due_ms, frame));
        }
        if done.is_err() {
            self.note(|| format!("{} cannot read its disk", name(site)));
            self.end_session(site, to);
            return None;
        }
        Some(to)
    }

    fn whom_to_meet(&mut self, site: usize, peer: Peer) -> usize {
        match peer {
            Peer::At(to) => to,
            Peer::Any if self.rng.random_bool(0.75) => (site + 1) % self.sites.len(),
            Peer::Any => (site + 2) % self.sites.len(),
        }
    }

    fn fold(&mut self, site: usize, to: usize) {
        let unix_ms = self.now_ms + self.day_ms;
        if self.sessions.contains_key(&(site, to))
            && let Some(standby) = self.sites[to].as_standby()
        {
            let _ = standby.fold(unix_ms);
        }
    }

    fn deliver_down(&mut self, site: usize, to: usize, frames: u32) {
        for _ in 0..frames {
            let Some(session) = self.sessions.get_mut(&(site, to)) else { return };
            if !self.network.passes(site, to) || self.sites[to].storage.faults.stalls() {
                return;
            }
            let Some(frame) = session.down.receive(self.now_ms) else { return };
            if session.is_refused {
                continue;
            }
            if let Some(lineage) = self.sites[to].as_standby().map(|standby| standby.lineage().clone()) {
                let frame = session.wiretap.pass(self.plant, frame, &lineage);
                self.hear(site, to, frame);
            }
        }
    }

    /// A standby gets a frame.
    fn hear(&mut self, site: usize, to: usize, frame: Bytes) {
        if !self.is_judged(site, to, &frame) {
            return self.meet_rival(to);
        }
        let Some(standby) = self.sites[to].as_standby() else { return };
        let before = standby.place().map(|place| place.committed);
        match standby.handle_frame(frame) {
            Ok(answer) => {
                let has_committed = standby.has_point() && standby.place().map(|place| place.committed) != before;
                answer.into_iter().for_each(|answer| self.answer(site, to, answer));
                if self.has_several && has_committed {
                    self.check_first_commit(site, to);
                }
            }
            Err(refused) => {
                self.refuse(site, to, refused);
                self.meet_rival(to);
            }
        }
    }

    /// With its first commit a stream has brought all that the copy lacked: the best time to look at that.
    fn check_first_commit(&mut self, site: usize, to: usize) {
        let session = self.sessions.get_mut(&(site, to));
        if session.is_some_and(|session| !std::mem::replace(&mut session.has_committed, true)) {
            self.check_copy(to);
        }
    }

    fn answer(&mut self, site: usize, to: usize, answer: Bytes) {
        if let Some(session) = self.sessions.get_mut(&(site, to)) {
            session.up.send(session.due_ms(self.now_ms), answer);
        }
    }

    /// Nothing that comes from this primary is looked at any more.
    fn refuse(&mut self, site: usize, to: usize, refused: Refused) {
        let Some(session) = self.sessions.get_mut(&(site, to)) else { return };
        // What a difference leads on from may have rotted.
        let is_fault = session.is_tampered || self.sites[to].is_flipped || refused.reason != Refusal::Protocol;
        assert!(is_fault, "{} refuses what keeps to the protocol: {}", name(to), refused.text);
        (session.is_refused, session.is_attached) = (true, false);
        self.note(|| format!("{} refuses {}: {}", name(to), name(site), refused.text));
        let answer = self.sites[to].as_standby().map(|standby| standby.refusal(refused));
        answer.into_iter().for_each(|answer| self.answer(site, to, answer));
    }

    /// The first frame of a stream is judged before it takes the place of one that is attached.
    fn is_judged(&mut self, site: usize, to: usize, first: &Bytes) -> bool {
        if self.sessions.get_mut(&(site, to)).is_none_or(|session| std::mem::replace(&mut session.is_attached, true)) {
            return true;
        }
        let attached =
            (0..self.sites.len()).find(|other| *other != site && self.sessions.get(&(*other, to)).is_some_and(|of| of.is_attached));
        let (Some(attached), Some(standby)) = (attached, self.sites[to].as_standby()) else { return true };
        match standby.judge(first) {
            Ok(()) => {
                self.end_session(attached, to);
                self.sessions.contains_key(&(site, to))
            }
            Err((refused, outdated)) => {
                self.refuse(site, to, refused);
                if let Some(outdated) = outdated {
                    self.refuse(attached, to, outdated);
                    self.sites[to].as_standby().into_iter().for_each(StandbyPart::disconnect);
                }
                false
            }
        }
    }

    /// A standby of several has refused a primary that branched before what it has: it follows that one where its mode promised nothing, else it says so.
    fn meet_rival(&mut self, site: usize) {
        let rival = self.sites[site].as_standby().and_then(|standby| standby.rival().cloned());
        let Some(theirs) = rival.filter(|_| self.has_several) else { return };
        if self.sites[site].rules_of(Peer::At(site)).wanted > Promise::Local {
            let _ = self.sites[site].change(|record| record.successor = Some(theirs));
            return self.note(|| format!("{} has what the new primary has not, and promised to keep it", name(site)));
        }
        self.go_over(site, &theirs);
    }

    /// A standby gives up what the new primary does not have.
    pub fn go_over(&mut self, site: usize, theirs: &Lineage) {
        self.note(|| format!("{} goes over to the new primary", name(site)));
        self.end_sessions_to(site);
        let _ = self.sites[site].go_over(theirs, &mut self.rng);
    }

    fn deliver_up(&mut self, site: usize, to: usize) {
        for _ in 0..self.rng.random_range(0..4) {
            let passes = self.network.passes(to, site);
            let Some(session) = self.sessions.get_mut(&(site, to)).filter(|_| passes) else { return };
            let Some(frame) = session.up.receive(self.now_ms) else { return };
            let message = Envelope::decode(frame).expect("a whole message").message;
            self.receive(site, to, message);
        }
    }

    fn receive(&mut self, site: usize, from: usize, message: Message) {
        match message {
            // A copy that can be taken further follows by itself.
            Message::Refused(Refused { reason: Refusal::Diverged, .. }) if self.has_several => {}
            Message::Refused(Refused { reason: Refusal::Diverged | Refusal::SplitBrain, .. }) => self.diverged[site] = Some(from),
            _ => {}
        }
        let is_tampered = self.sessions.get(&(site, from)).is_some_and(|session| session.is_tampered);
        let now_ms = self.now_ms;
        let Some(primary) = self.sites[site].as_primary() else { return };
        let taken = primary.receive(from, message, now_ms);
        if let Some((replica, acked)) = primary.to(from).and_then(|replica| replica.safe()) {
            self.tally.commits += u64::from(self.history.committed(replica, acked));
        }
        if let Err(why) = taken {
            assert!(is_tampered || !matches!(why, Ended::Protocol(_)), "{} gets what breaks the protocol: {why:?}", name(site));
            self.end_session(site, from);
            self.turned_away(site, from);
        }
    }

    /// A primary was refused: perhaps another one has overtaken it.
    fn turned_away(&mut self, site: usize, by: usize) {
        let Some(primary) = self.sites[site].as_primary() else { return };
        let Some(refused) = primary.to(by).filter(|replica| replica.is_superseded()).and_then(|replica| replica.refused()) else { return };
        let theirs = refused.lineage.clone();
        self.overtake(site, &theirs);
    }

    fn overtake(&mut self, site: usize, theirs: &Lineage) {
        self.note(|| format!("{} is overtaken", name(site)));
        self.shut(site);
        self.sites[site].overtaken(theirs, &mut self.rng);
        if self.sites[site].as_primary().is_none() {
            self.end_sessions_of(site);
        }
    }

    /// A guest's requests are not taken any more, and nobody lets go those that wait; what is under way ends, mostly.
    fn shut(&mut self, site: usize) {
        self.sites[site].as_primary().into_iter().for_each(Primary::shut);
        for _ in 0..if self.rng.random_bool(0.75) { DRAINING_TURNS } else { 0 } {
            self.guest_progresses(site);
        }
    }

    /// A primary opens a stream to a site that it can reach.
    pub fn connect(&mut self, site: usize, to: usize) {
        if to == site || !self.network.connects(site, to) || matches!(self.sites[to].part, Part::Down) {
            return;
        }
        let now_ms = self.now_ms;
        let Some(primary) = self.sites[site].as_primary().filter(|primary| primary.to(to).is_some()) else { return };
        let theirs = primary.lineage().clone();
        primary.connect(to, now_ms);
        if let Part::Standby(_) = self.sites[to].part {
            self.note(|| format!("{} connects to {}", name(site), name(to)));
            self.sessions.insert((site, to), Session::new(&mut self.rng));
        } else {
            self.turn_away(site, to, &theirs);
        }
    }

    /// A site that is no standby refuses a primary; one of the two has overtaken the other, perhaps.
    fn turn_away(&mut self, site: usize, to: usize, theirs: &Lineage) {
        let mine = self.sites[to].record.lineage.clone();
        let relation = if self.sites[to].record.role == Role::Parted { Relation::Unrelated } else { mine.relation(theirs) };
        if matches!(relation, Relation::Split | Relation::TheirsAhead(_)) && self.sites[to].as_primary().is_some() {
            self.overtake(to, theirs);
            let goes_on = self.sites[to].as_primary().is_some_and(|primary| primary.is_open);
            assert!(!goes_on, "{} goes on though {} was promoted, too", name(to), name(site));
        }
        let reason = match relation {
            Relation::MineAhead(_) => Refusal::Stale,
            Relation::Split => Refusal::SplitBrain,
            _ => Refusal::NotStandby,
        };
        self.note(|| format!("{} turns {} away: {reason:?}", name(to), name(site)));
        let lineage = if relation == Relation::Unrelated { theirs.clone() } else { mine };
        self.receive(site, to, Message::Refused(Refused { reason, text: String::new(), lineage }));
    }

    /// A stream breaks; of what is on its way to the standby, some still gets there.
    pub fn end_session(&mut self, site: usize, to: usize) {
        if self.sessions.contains_key(&(site, to)) {
            if self.rng.random_bool(0.5) {
                self.now_ms += 50;
                let frames = self.rng.random_range(0..6);
                self.deliver_down(site, to, frames);
            }
            let ended = self.sessions.remove(&(site, to));
            if let Some(standby) = self.sites[to].as_standby().filter(|_| ended.is_some_and(|session| session.is_attached)) {
                standby.disconnect();
            }
        }
        if let Some(replica) = self.sites[site].as_primary().and_then(|primary| primary.to_mut(to)) {
            replica.disconnect();
        }
    }

    /// A primary has no stream any more.
    pub fn end_sessions_of(&mut self, site: usize) {
        (0..self.sites.len()).for_each(|to| self.end_session_if_any(site, to));
    }

    /// No primary has a stream to this site any more.
    pub fn end_sessions_to(&mut self, to: usize) {
        (0..self.sites.len()).for_each(|site| self.end_session_if_any(site, to));
    }

    fn end_session_if_any(&mut self, site: usize, to: usize) {
        if self.sessions.contains_key(&(site, to)) {
            self.end_session(site, to);
        }
    }

    /// Whether the standby has everything of the primary, and answered that.
    pub fn is_drained(&mut self, primary: usize, standby: usize) -> bool {
        let size_bytes = self.sites[primary].storage.image.size_bytes();
        let place = self.sites[standby].as_standby().and_then(|standby| standby.place());
        let replica = place.filter(|place| place.size_bytes == size_bytes).map(|place| place.replica);
        self.sites[primary].as_primary().is_some_and(|primary| primary.is_drained_to(standby, replica))
    }

    /// Whether nothing is on its way between a primary and its standby.
    pub fn is_silent(&self, primary: usize, standby: usize) -> bool {
        self.sessions.get(&(primary, standby)).is_some_and(|session| session.down.is_empty() && session.up.is_empty())
    }
}
