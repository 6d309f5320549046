//! The line commands of the control socket, and their text.
//!
//! ```text
//! stats | set rate RATE | set rtt TIME | set loss PERCENT | set queue BYTES|auto | cut [a-to-b|b-to-a] | heal [a-to-b|b-to-a]
//! ```

use std::{fmt, str::FromStr, time::Duration};

use crate::quantity::{Loss, ParseError, QueueLimit, Rate, parse_rtt};

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From namespace A to namespace B.
    AToB,
    /// From namespace B to namespace A.
    BToA,
}

/// The directions that a cut or its end is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Both directions.
    Both,
    /// One direction; the other keeps its state.
    One(Direction),
}

impl Scope {
    /// Whether `direction` is meant.
    pub fn contains(self, direction: Direction) -> bool {
        self == Self::Both || self == Self::One(direction)
    }
}

/// What may be asked of a running emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Answer with a [`crate::Report`] as one JSON line.
    Stats,
    /// Change the rate of both directions.
    SetRate(Rate),
    /// Change the round trip.
    SetRtt(Duration),
    /// Change the loss of both directions.
    SetLoss(Loss),
    /// Change the queue limit of both directions.
    SetQueue(QueueLimit),
    /// Drop everything.
    Cut(Scope),
    /// Carry packets again.
    Heal(Scope),
}

/// A line that is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A verb or setting that does not exist.
    #[error("unknown command: use stats, set rate|rtt|loss|queue VALUE, cut or heal [a-to-b|b-to-a]")]
    Unknown,
    /// A value that is none.
    #[error(transparent)]
    Value(#[from] ParseError),
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        let mut words = line.split_ascii_whitespace();
        // One more than any command has, so that a surplus word is noticed.
        let words: [Option<&str>; 4] = std::array::from_fn(|_| words.next());
        match words {
            [Some("stats"), None, ..] => Ok(Self::Stats),
            [Some("set"), Some(name), Some(value), None] => setting(name, value),
            [Some("cut"), direction, None, _] => scope(direction).map(Self::Cut),
            [Some("heal"), direction, None, _] => scope(direction).map(Self::Heal),
            _ => Err(CommandError::Unknown),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stats => f.write_str("stats"),
            Self::SetRate(rate) => write!(f, "set rate {rate}"),
            Self::SetRtt(rtt) => write!(f, "set rtt {}us", rtt.as_micros()),
            Self::SetLoss(loss) => write!(f, "set loss {loss}"),
            Self::SetQueue(queue) => write!(f, "set queue {queue}"),
            Self::Cut(scope) => write!(f, "cut{}", scope_suffix(*scope)),
            Self::Heal(scope) => write!(f, "heal{}", scope_suffix(*scope)),
        }
    }
}

fn setting(name: &str, value: &str) -> Result<Command, CommandError> {
    Ok(match name {
        "rate" => Command::SetRate(value.parse()?),
        "rtt" => Command::SetRtt(parse_rtt(value)?),
        "loss" => Command::SetLoss(value.parse()?),
        "queue" => Command::SetQueue(value.parse()?),
        _ => return Err(CommandError::Unknown),
    })
}

fn scope(word: Option<&str>) -> Result<Scope, CommandError> {
    match word {
        None => Ok(Scope::Both),
        Some("a-to-b") => Ok(Scope::One(Direction::AToB)),
        Some("b-to-a") => Ok(Scope::One(Direction::BToA)),
        Some(_) => Err(CommandError::Unknown),
    }
}

fn scope_suffix(scope: Scope) -> &'static str {
    match scope {
        Scope::Both => "",
        Scope::One(Direction::AToB) => " a-to-b",
        Scope::One(Direction::BToA) => " b-to-a",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_parse_and_print_as_themselves() {
        for line in ["stats", "set rate 20000000bit", "set rtt 100000us", "set loss 1%", "set queue auto", "cut", "heal", "cut a-to-b"] {
            assert_eq!(line.parse::<Command>().unwrap().to_string(), line);
        }
        assert_eq!("  set  rate 20Mbit ".parse(), Ok(Command::SetRate("20Mbit".parse().unwrap())));
    }

    #[test]
    fn anything_else_is_an_error() {
        for line in ["", "stat", "stats now", "set", "set rate", "set rate 20Mbit 3", "set speed 1Mbit", "cut c", "heal a-to-b b-to-a"] {
            assert_eq!(line.parse::<Command>(), Err(CommandError::Unknown), "{line:?}");
        }
        assert!(matches!("set rate fast".parse::<Command>(), Err(CommandError::Value(_))));
    }
}
