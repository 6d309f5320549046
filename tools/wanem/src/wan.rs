//! Both directions of the link, and the commands on them. Pure, like [`crate::link`].

use std::time::Duration;

use crate::{
    command::{Command, Direction},
    counters::Report,
    link::{Link, Settings},
};

/// What a command asks the caller to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done: `ok`.
    Done,
    /// The counters.
    Report(Box<Report>),
}

/// Two links back to back.
#[derive(Debug)]
pub struct Wan<P> {
    settings: Settings,
    a_to_b: Link<P>,
    b_to_a: Link<P>,
}

impl<P> Wan<P> {
    /// An idle WAN; each direction has its own stream of randomness from `seed`.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self { settings, a_to_b: Link::new(settings, seed), b_to_a: Link::new(settings, !seed) }
    }

    /// One direction.
    pub fn link(&mut self, direction: Direction) -> &mut Link<P> {
        match direction {
            Direction::AToB => &mut self.a_to_b,
            Direction::BToA => &mut self.b_to_a,
        }
    }

    /// When either direction has something to deliver next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.a_to_b.poll_timeout(), self.b_to_a.poll_timeout()].into_iter().flatten().min()
    }

    /// Input: an operator's command.
    pub fn handle_command(&mut self, now: Duration, command: Command) -> Reply {
        let mut settings = self.settings;
        match command {
            Command::Stats => return Reply::Report(Box::new(self.report(now))),
            Command::SetRate(rate) => settings.rate = rate,
            Command::SetRtt(rtt) => settings.rtt = rtt,
            Command::SetLoss(loss) => settings.loss = loss,
            Command::SetQueue(queue) => settings.queue = queue,
            Command::Cut(scope) => self.for_each(|direction, link| {
                if scope.contains(direction) {
                    link.cut(now);
                }
            }),
            Command::Heal(scope) => self.for_each(|direction, link| {
                if scope.contains(direction) {
                    link.heal();
                }
            }),
        }
        if settings != self.settings {
            self.settings = settings;
            self.for_each(|_, link| link.set(now, settings));
        }
        Reply::Done
    }

    /// The counters of both directions, without what the devices dropped.
    pub fn report(&mut self, now: Duration) -> Report {
        Report {
            uptime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            rate_bits_per_second: self.settings.rate.bits_per_second(),
            rtt_ns: u64::try_from(self.settings.rtt.as_nanos()).unwrap_or(u64::MAX),
            loss_ppm: self.settings.loss.ppm(),
            a_to_b: self.a_to_b.report(now),
            b_to_a: self.b_to_a.report(now),
        }
    }

    fn for_each(&mut self, mut apply: impl FnMut(Direction, &mut Link<P>)) {
        apply(Direction::AToB, &mut self.a_to_b);
        apply(Direction::BToA, &mut self.b_to_a);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::{Loss, QueueLimit};

    fn wan() -> Wan<u32> {
        let rtt = Duration::from_millis(20);
        Wan::new(Settings { rate: "8Mbit".parse().unwrap(), rtt, loss: Loss::default(), queue: QueueLimit::Auto }, 1)
    }

    fn command(wan: &mut Wan<u32>, now_ms: u64, line: &str) -> Reply {
        wan.handle_command(Duration::from_millis(now_ms), line.parse().unwrap())
    }

    #[test]
    fn directions_share_settings_but_not_capacity() {
        let mut wan = wan();
        wan.link(Direction::AToB).handle_packet(Duration::ZERO, 1_000, 1);
        wan.link(Direction::BToA).handle_packet(Duration::ZERO, 1_000, 2);
        let arrival = Duration::from_millis(11);
        assert_eq!(wan.poll_timeout(), Some(arrival));
        assert_eq!(wan.link(Direction::AToB).poll_transmit(arrival), Some(1));
        assert_eq!(wan.link(Direction::BToA).poll_transmit(arrival), Some(2));
        assert_eq!(wan.poll_timeout(), None);
    }

    #[test]
    fn commands_change_both_directions_and_show_in_the_report() {
        let mut wan = wan();
        for line in ["set rate 20Mbit", "set rtt 100ms", "set loss 1%"] {
            assert_eq!(command(&mut wan, 0, line), Reply::Done);
        }
        let Reply::Report(report) = command(&mut wan, 5, "stats") else { panic!("stats is a report") };
        assert_eq!((report.rate_bits_per_second, report.rtt_ns, report.loss_ppm), (Some(20_000_000), 100_000_000, 10_000));
        // One bandwidth-delay product of the new settings.
        assert_eq!(report.a_to_b.queue_limit_bytes, 250_000);
        assert_eq!(report.b_to_a.queue_limit_bytes, 250_000);
        assert_eq!(report.uptime_ns, 5_000_000);
    }

    #[test]
    fn one_direction_can_be_cut_and_heals_alone() {
        let mut wan = wan();
        command(&mut wan, 0, "cut");
        command(&mut wan, 0, "heal b-to-a");
        let report = wan.report(Duration::ZERO);
        assert!(report.a_to_b.cut && !report.b_to_a.cut);
    }
}
