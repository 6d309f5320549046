//! What is measured of one standby while it is replicated to.

use super::link::Link;
use super::window::Window;
use super::{LinkRate, NEGLIGIBLE_BYTES};
use crate::block::BLOCK_BYTES;
use crate::tracker::Epoch;
use crate::wire::Blocks;
use std::collections::VecDeque;

/// The last seconds say how it is now, the last minute what comes again: the worse counts.
const NOW_S: u64 = 10;
const LATELY_S: u64 = 60;
/// So much content says what it shrinks to.
const TELLING_BYTES: u64 = 1 << 20;
/// Commits that are remembered: the middle one counts.
const COMMITS: usize = 9;
/// Most epochs whose commit is waited for.
const MAX_CUTS: usize = 32;
/// A write of one sector changes a block.
const BLOCK_SECTORS: u64 = (BLOCK_BYTES / 512) as u64;

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    link: Link,
    limit_bits_per_second: Option<u64>,
    content: Window,
    payload: Window,
    /// What was sent of a MiB or more, last: payload of so much content.
    shrinks: Option<(u64, u64)>,
    /// Content that left the backlog since it was looked at.
    gone_bytes: u64,
    backlog_bytes: Option<u64>,
    changed: Window,
    clients_bytes: Option<u64>,
    clients: Window,
    cuts: VecDeque<Cut>,
    commits_ms: VecDeque<u64>,
    sent_bytes: u64,
    /// Of these, what the standby is known to have, and when that was heard.
    there_bytes: u64,
    there: Window,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    epoch: Epoch,
    at_ms: u64,
    sent_bytes: u64,
    queued_bytes: u64,
}

/// What was measured until now, rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What the link takes in a second, payload.
    pub link: LinkRate,
    /// When that was seen, if it was.
    pub link_seen_ms: Option<u64>,
    /// What a thousand bytes of content become on their way, if some were sent.
    pub payload_per_mille: Option<u64>,
    /// Content that changes in a second.
    pub changes_per_second: u64,
    /// From a cut of next to nothing to its commit.
    pub commit_ms: Option<u64>,
    /// Payload that is handed to the network and not yet taken.
    pub queued_bytes: u64,
}

impl Gauge {
    /// A stream is there: nothing is under way.
    pub fn handle_connected(&mut self) {
        self.link.handle_connected();
        self.cuts.clear();
        self.handle_marked();
    }

    /// Blocks were marked that no client has written: that is no growth.
    pub fn handle_marked(&mut self) {
        self.backlog_bytes = None;
    }

    /// Content was handed to the network.
    pub fn handle_shipped(&mut self, blocks: &Blocks, now_ms: u64) {
        let (content, payload) = (blocks.runs.iter().map(|(run, _)| run.len_bytes()).sum(), blocks.payload.len() as u64);
        self.link.handle_enqueued(payload, now_ms);
        self.sent_bytes += payload;
        self.handle_gone(content, payload, now_ms);
    }

    /// Content left the backlog, at this price.
    pub fn handle_gone(&mut self, content_bytes: u64, payload_bytes: u64, now_ms: u64) {
        self.gone_bytes += content_bytes;
        self.content.add(content_bytes, now_ms);
        self.payload.add(payload_bytes, now_ms);
        let told = [NOW_S, LATELY_S].map(|span_s| (self.payload.sum(span_s, now_ms), self.content.sum(span_s, now_ms)));
        if let Some(told) = told.into_iter().find(|(_, content)| *content >= TELLING_BYTES) {
            self.shrinks = Some(told);
        }
    }

    /// There is nothing to send now.
    pub fn handle_idle(&mut self) {
        self.link.handle_idle();
    }

    /// The network took so much.
    pub fn handle_written(&mut self, len_bytes: u64, now_ms: u64) {
        self.link.handle_written(len_bytes, self.limit_bits_per_second, now_ms);
    }

    /// The limit that is in force, on the wire.
    pub fn set_limit(&mut self, bits_per_second: Option<u64>) {
        self.limit_bits_per_second = bits_per_second;
    }

    /// So much is to be sent, and clients have written so much since the volume was made.
    pub fn handle_backlog(&mut self, backlog_bytes: u64, clients_bytes: u64, now_ms: u64) {
        let gone_bytes = std::mem::take(&mut self.gone_bytes);
        if let Some(before) = self.backlog_bytes.replace(backlog_bytes) {
            self.changed.add((backlog_bytes + gone_bytes).saturating_sub(before), now_ms);
        }
        let before = self.clients_bytes.replace(clients_bytes).unwrap_or(clients_bytes);
        self.clients.add(clients_bytes.saturating_sub(before), now_ms);
    }

    /// An epoch was cut.
    pub fn handle_cut(&mut self, epoch: Epoch, now_ms: u64) {
        if self.cuts.len() == MAX_CUTS {
            self.cuts.pop_front();
        }
        self.cuts.push_back(Cut { epoch, at_ms: now_ms, sent_bytes: self.sent_bytes, queued_bytes: self.link.queued_bytes() });
    }

    /// The standby has it.
    pub fn handle_committed(&mut self, epoch: Epoch, now_ms: u64) {
        while let Some(cut) = self.cuts.pop_front_if(|cut| cut.epoch <= epoch) {
            if cut.epoch == epoch {
                self.there.add(cut.sent_bytes.saturating_sub(self.there_bytes), now_ms);
                self.there_bytes = cut.sent_bytes;
                let bytes = self.sent_bytes - cut.sent_bytes + cut.queued_bytes;
                self.handle_acknowledged(bytes, now_ms.saturating_sub(cut.at_ms), now_ms);
            }
        }
    }

    /// What was on its way meanwhile is no part of what each commit costs, and that is no part of what the link takes.
    fn handle_acknowledged(&mut self, bytes: u64, took_ms: u64, now_ms: u64) {
        if bytes <= NEGLIGIBLE_BYTES {
            if self.commits_ms.len() == COMMITS {
                self.commits_ms.pop_front();
            }
            self.commits_ms.push_back(took_ms);
        } else if let Some(commit_ms) = self.commit_ms() {
            self.link.handle_acknowledged(bytes, took_ms.saturating_sub(commit_ms), now_ms);
        }
    }

    /// A link that was never full has taken at least what is there.
    fn link(&self, now_ms: u64) -> LinkRate {
        let there = [NOW_S, LATELY_S].map(|span_s| self.there.per_second(span_s, now_ms));
        match self.link.rate(self.limit_bits_per_second) {
            LinkRate::Unknown if there != [0, 0] => LinkRate::AtLeast(there[0].max(there[1])),
            rate => rate,
        }
    }

    fn commit_ms(&self) -> Option<u64> {
        let mut commits: Vec<u64> = self.commits_ms.iter().copied().collect();
        commits.sort_unstable();
        commits.get(commits.len().checked_sub(1)? / 2).copied()
    }

    /// What was measured until now.
    pub fn measured(&self, now_ms: u64) -> Measured {
        let per_second = |span_s| {
            let by_clients = self.clients.per_second(span_s, now_ms).saturating_mul(BLOCK_SECTORS);
            self.changed.per_second(span_s, now_ms).min(by_clients)
        };
        Measured {
            link: self.link(now_ms),
            link_seen_ms: self.link.seen_ms(),
            payload_per_mille: self.shrinks.map(|(payload, content)| payload * 1000 / content),
            changes_per_second: per_second(NOW_S).max(per_second(LATELY_S)),
            commit_ms: self.commit_ms(),
            queued_bytes: self.link.queued_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Clients write so many MiB, of which nothing is sent, in each of these seconds.
    fn writing(gauge: &mut Gauge, mib_each_second: &[u64], from_s: u64) -> u64 {
        let (mut backlog, mut clients) = (gauge.backlog_bytes.unwrap_or(0), gauge.clients_bytes.unwrap_or(0));
        for (second, mib) in mib_each_second.iter().enumerate() {
            for tick in 0..20 {
                (backlog, clients) = (backlog + mib * MIB / 20, clients + mib * MIB / 20);
                gauge.handle_backlog(backlog, clients, (from_s + second as u64) * 1000 + tick * 50);
            }
        }
        (from_s + mib_each_second.len() as u64) * 1000 - 50
    }

    fn changes_mib(gauge: &Gauge, now_ms: u64) -> u64 {
        (gauge.measured(now_ms).changes_per_second + MIB / 2) / MIB
    }

    #[test]
    fn writes_that_have_just_begun_count_and_a_burst_is_not_forgotten_at_once() {
        let mut gauge = Gauge::default();
        let now_ms = writing(&mut gauge, &[0; 30], 0);
        assert_eq!(changes_mib(&gauge, now_ms), 0);
        let now_ms = writing(&mut gauge, &[10; 10], 30);
        assert_eq!(changes_mib(&gauge, now_ms), 9);
        let now_ms = writing(&mut gauge, &[0; 12], 40);
        assert_eq!(changes_mib(&gauge, now_ms), 2);
        let now_ms = writing(&mut gauge, &[0; 60], 52);
        assert_eq!(changes_mib(&gauge, now_ms), 0);
    }

    #[test]
    fn a_block_that_is_written_again_before_it_was_sent_changes_once() {
        let mut gauge = Gauge::default();
        for tick in 0..400 {
            gauge.handle_backlog(MIB, tick * MIB, tick * 50);
        }
        assert_eq!(gauge.measured(20_000).changes_per_second, 0);
    }

    #[test]
    fn blocks_that_are_marked_without_a_write_are_no_writes() {
        let mut gauge = Gauge::default();
        writing(&mut gauge, &[0; 20], 0);
        gauge.handle_marked();
        gauge.handle_backlog(1000 * MIB, 0, 20_000);
        // Not even if nobody says so.
        gauge.handle_backlog(5000 * MIB, 0, 20_050);
        assert_eq!(gauge.measured(20_100).changes_per_second, 0);
    }

    #[test]
    fn what_content_shrinks_to_is_that_of_the_last_that_was_sent() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.measured(0).payload_per_mille, None);
        gauge.handle_gone(4096, 4096, 1_000);
        assert_eq!(gauge.measured(1_000).payload_per_mille, None, "too little to tell");
        gauge.handle_gone(100 * MIB, 50 * MIB, 2_000);
        assert_eq!(gauge.measured(100_000).payload_per_mille, Some(500), "even if nothing came since");
        gauge.handle_gone(10 * MIB, MIB, 100_000);
        assert_eq!(gauge.measured(100_000).payload_per_mille, Some(100));
    }

    #[test]
    fn a_link_that_is_never_full_takes_at_least_what_is_there() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.measured(0).link, LinkRate::Unknown);
        for epoch in 1..=20 {
            gauge.handle_cut(epoch, epoch * 1_000);
            gauge.sent_bytes += MIB;
            gauge.handle_committed(epoch, epoch * 1_000 + 10);
        }
        let LinkRate::AtLeast(rate) = gauge.measured(20_100).link else { panic!("{:?}", gauge.measured(20_100).link) };
        assert!((MIB * 8 / 10..=MIB * 11 / 10).contains(&rate), "{rate}");
    }

    #[test]
    fn a_commit_costs_what_the_middle_one_of_nothing_did() {
        let mut gauge = Gauge::default();
        for (epoch, took_ms) in [(1, 30), (2, 5_000), (3, 40)] {
            gauge.handle_cut(epoch, epoch * 10_000);
            gauge.handle_committed(epoch, epoch * 10_000 + took_ms);
        }
        gauge.handle_cut(4, 50_000);
        gauge.sent_bytes += MIB;
        gauge.handle_committed(4, 52_000);
        assert_eq!(gauge.measured(60_000).commit_ms, Some(40));
    }
}
