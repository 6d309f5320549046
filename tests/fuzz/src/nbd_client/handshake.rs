//! The client's side of a handshake.

use super::{HungUp, Session};
use arbitrary::Arbitrary;
use blockd::nbd::handshake::{Context, MAX_NAME_BYTES, MAX_OPTION_BYTES, Replies};
use blockd::nbd::wire::{OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option, option_reply};
use std::collections::BTreeSet;

/// The protocol's longest string and its surroundings: no answer is longer.
const MAX_ANSWER_BYTES: u32 = 8192;

/// An option as the fuzzer wants it.
#[derive(Arbitrary, Debug)]
pub enum ClientOption {
    /// Negotiate structured replies.
    Structured,
    /// Negotiate extended headers.
    Extended,
    /// List metadata contexts, or choose them.
    Contexts {
        /// Whether to choose.
        choose: bool,
        /// For which export.
        name: Name,
        /// Those that there are.
        known: [bool; Context::ALL.len()],
        /// Further queries.
        queries: Vec<Vec<u8>>,
    },
    /// List the exports.
    List,
    /// Describe an export.
    Info(Name, Vec<u16>),
    /// Anything, in a message that is well-formed.
    Other(u8, Vec<u8>),
    /// A length at a limit, with as much data.
    Long(u8, Limit),
    /// A length that is not that of the data.
    Lie(u8, u32, Vec<u8>),
    /// The old way to begin transmission.
    ExportName(Name),
}

/// An export's name.
#[derive(Arbitrary, Debug)]
pub enum Name {
    /// The default one.
    Default,
    /// The one that there is.
    Right,
    /// As long as the limit, and somewhat more or less.
    Long(i8),
    /// Anything.
    Other(Vec<u8>),
}

/// Around the longest option.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Limit {
    /// One byte less.
    Below,
    /// As long as may be.
    At,
    /// One byte more.
    Above,
}

/// What was agreed on.
#[derive(Debug)]
pub struct Agreed {
    /// The form of requests and replies.
    pub replies: Replies,
    /// Metadata contexts that were chosen, by their numbers.
    pub contexts: BTreeSet<u32>,
}

impl Name {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Default => Vec::new(),
            Self::Right => b"vm1".to_vec(),
            Self::Long(by) => vec![b'n'; MAX_NAME_BYTES.saturating_add_signed(i32::from(*by)) as usize],
            Self::Other(bytes) => bytes.clone(),
        }
    }

    fn exists(&self) -> bool {
        matches!(&self.bytes()[..], b"" | b"vm1")
    }
}

/// The final answer to an option.
#[derive(PartialEq, Eq)]
enum Answer {
    Ack,
    No,
}

impl Session<'_> {
    /// Sends the options, then begins transmission.
    pub(super) fn negotiate(&mut self, options: &[ClientOption], no_zeroes: bool) -> Result<Agreed, HungUp> {
        let mut agreed = Agreed { replies: Replies::Simple, contexts: BTreeSet::new() };
        for option in options.iter().take(64) {
            match option {
                ClientOption::Structured => {
                    let done = self.option(option::STRUCTURED_REPLY, &[])? == Answer::Ack;
                    assert!(done == (agreed.replies == Replies::Simple), "once, and only once");
                    agreed.replies = if done { Replies::Structured } else { agreed.replies };
                }
                ClientOption::Extended => {
                    let done = self.option(option::EXTENDED_HEADERS, &[])? == Answer::Ack;
                    assert!(done == (agreed.replies != Replies::Extended), "once, and only once");
                    agreed.replies = Replies::Extended;
                }
                ClientOption::Contexts { choose, name, known, queries } => {
                    self.contexts(&mut agreed, *choose, name, *known, queries)?;
                }
                ClientOption::List => assert!(self.option(option::LIST, &[])? == Answer::Ack),
                ClientOption::Info(name, infos) => {
                    let answer = self.option(option::INFO, &info_data(name, infos))?;
                    assert!((answer == Answer::Ack) == name.exists());
                }
                ClientOption::Other(number, data) => self.other(*number, data, &mut agreed)?,
                ClientOption::Long(number, limit) => self.long(*number, *limit)?,
                ClientOption::Lie(number, claim, data) => {
                    self.option_header(u32::from(*number), *claim)?;
                    self.send(data)?;
                    let _ = self.stream.shutdown(std::net::Shutdown::Write);
                    return Err(self.expect_end());
                }
                ClientOption::ExportName(name) => return self.export_name(name, no_zeroes, agreed),
            }
        }
        let answer = self.option(option::GO, &info_data(&Name::Right, &[info::BLOCK_SIZE]))?;
        assert!(answer == Answer::Ack, "the export is there");
        Ok(agreed)
    }

    fn option_header(&mut self, option: u32, len_bytes: u32) -> Result<(), HungUp> {
        self.send(&[&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len_bytes.to_be_bytes()].concat())
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Answer, HungUp> {
        self.option_header(option, data.len() as u32)?;
        self.send(data)?;
        self.answers(option, |_, _| ())
    }

    /// Reads the answers to an option up to the final one.
    fn answers(&mut self, option: u32, mut on_answer: impl FnMut(u32, &[u8])) -> Result<Answer, HungUp> {
        loop {
            let head = self.receive::<20>()?;
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            assert_eq!(word(8), option, "an answer to what was asked");
            assert!(word(16) <= MAX_ANSWER_BYTES, "an answer of {} bytes", word(16));
            let data = self.receive_bytes(word(16).into())?;
            match word(12) {
                option_reply::ACK => return Ok(Answer::Ack),
                error if error & (1 << 31) != 0 => return Ok(Answer::No),
                kind => on_answer(kind, &data),
            }
        }
    }

    fn contexts(&mut self, agreed: &mut Agreed, choose: bool, name: &Name, known: [bool; 2], queries: &[Vec<u8>]) -> Result<(), HungUp> {
        let wanted =
            Context::ALL.into_iter().zip(known).filter(|(_, wanted)| *wanted).map(|(context, _)| context.name().as_bytes().to_vec());
        let queries: Vec<_> = wanted.chain(queries.iter().take(20).cloned()).collect();
        let name = name.bytes();
        let mut data = [&(name.len() as u32).to_be_bytes()[..], &name, &(queries.len() as u32).to_be_bytes()].concat();
        for query in &queries {
            data.extend((query.len() as u32).to_be_bytes());
            data.extend(query);
        }
        self.metadata(agreed, if choose { option::SET_META_CONTEXT } else { option::LIST_META_CONTEXT }, &data)
    }

    fn metadata(&mut self, agreed: &mut Agreed, option: u32, data: &[u8]) -> Result<(), HungUp> {
        self.option_header(option, data.len() as u32)?;
        self.send(data)?;
        let (mut named, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        let answer = self.answers(option, |kind, data| {
            let (number, name) = data.split_first_chunk().expect("a number and a name");
            assert!(kind == option_reply::META_CONTEXT && named.insert(name.to_vec()), "each is named once");
            numbers.insert(u32::from_be_bytes(*number));
        })?;
        assert!(answer == Answer::No || agreed.replies != Replies::Simple, "contexts are of no use with simple replies");
        if option == option::SET_META_CONTEXT {
            assert!(answer == Answer::No || numbers.len() == named.len(), "and has a number of its own");
            // Whatever became of this choice, it replaces the one before.
            agreed.contexts = if answer == Answer::Ack { numbers } else { BTreeSet::new() };
        }
        Ok(())
    }

    /// Anything well-formed. What would change the session's terms has an option of its own.
    fn other(&mut self, number: u8, data: &[u8], agreed: &mut Agreed) -> Result<(), HungUp> {
        let option = u32::from(number);
        match option {
            option::EXPORT_NAME | option::GO | option::STARTTLS | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => Ok(()),
            option::ABORT => {
                self.option_header(option, data.len() as u32)?;
                self.send(data)?;
                Err(self.expect_end())
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.metadata(agreed, option, data),
            _ => self.option(option, data).map(drop),
        }
    }

    fn long(&mut self, number: u8, limit: Limit) -> Result<(), HungUp> {
        // None that ends the handshake by itself.
        let option = 100 + u32::from(number);
        let len_bytes = match limit {
            Limit::Below => MAX_OPTION_BYTES - 1,
            Limit::At => MAX_OPTION_BYTES,
            Limit::Above => MAX_OPTION_BYTES + 1,
        };
        self.option_header(option, len_bytes)?;
        if matches!(limit, Limit::Above) {
            return Err(self.expect_end());
        }
        self.send(&vec![0; len_bytes as usize])?;
        assert!(self.answers(option, |_, _| ())? == Answer::No);
        Ok(())
    }

    fn export_name(&mut self, name: &Name, no_zeroes: bool, agreed: Agreed) -> Result<Agreed, HungUp> {
        let bytes = name.bytes();
        self.option_header(option::EXPORT_NAME, bytes.len() as u32)?;
        self.send(&bytes)?;
        // With extended headers the old way is none.
        if !name.exists() || agreed.replies == Replies::Extended {
            return Err(self.expect_end());
        }
        let size = self.receive::<10>()?;
        assert_eq!(size[..8], self.served.volume.size_bytes().to_be_bytes());
        if !no_zeroes {
            assert_eq!(self.receive::<124>()?, [0; 124]);
        }
        Ok(agreed)
    }
}

fn info_data(name: &Name, infos: &[u16]) -> Vec<u8> {
    let (name, infos) = (name.bytes(), &infos[..infos.len().min(100)]);
    let head = [&(name.len() as u32).to_be_bytes()[..], &name, &(infos.len() as u16).to_be_bytes()].concat();
    head.into_iter().chain(infos.iter().flat_map(|info| info.to_be_bytes())).collect()
}
