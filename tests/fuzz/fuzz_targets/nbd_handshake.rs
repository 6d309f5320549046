//! A handshake as a sequence of options, some well-formed and some not: it stays within its limits, and what it agrees on exists.
#![no_main]

use blockd::nbd::handshake::{ExportInfo, Exports, Handshake, MAX_OPTION_BYTES, Progress, Replies, Security};
use blockd::nbd::wire::{self, option};
use blockd::request::Access;
use libfuzzer_sys::fuzz_target;
use tern_fuzz::Bytes;

struct Names(Vec<&'static str>);

impl Exports for Names {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let name = match (name, &self.0[..]) {
            ("", [only]) => only,
            _ => self.0.iter().find(|known| **known == name)?,
        };
        Some(ExportInfo { name: (*name).into(), description: "a disk".into(), size_bytes: 1 << 30, access: Access::ReadWrite })
    }

    fn list(&self) -> Vec<String> {
        self.0.iter().map(|name| (*name).into()).collect()
    }
}

/// The data of an option as the protocol has it, to the last byte: few mutations find lengths that fit together.
fn data_of(option: u32) -> Vec<u8> {
    let name = [&1_u32.to_be_bytes()[..], b"a"].concat();
    match option {
        option::EXPORT_NAME => b"a".to_vec(),
        option::INFO | option::GO => [&name[..], &0_u16.to_be_bytes()].concat(),
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            [&name[..], &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), b"base:allocation"].concat()
        }
        _ => Vec::new(),
    }
}

#[derive(Default)]
struct Client {
    /// The data that belongs to the last header.
    data: Vec<u8>,
}

impl Client {
    /// What it sends next.
    fn next_input(&mut self, bytes: &mut Bytes<'_>, wanted: usize) -> Vec<u8> {
        let mut input = match (bytes.u8() % 8, wanted) {
            (0, _) | (_, 4) => bytes.slice(wanted).to_vec(),
            (kind, 16) => {
                let option = u32::from(bytes.u8() % 12);
                self.data = data_of(option);
                let len = if kind == 1 { u32::from(bytes.u8()) } else { self.data.len() as u32 };
                [&wire::OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes()].concat()
            }
            // Data that begins with the name of an export.
            (1, _) => [&1_u32.to_be_bytes()[..], b"a", bytes.slice(wanted)].concat(),
            _ => self.data.clone(),
        };
        input.resize(wanted, 0);
        input
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let exports = Names(["a", "b", "a name with spaces"][..1 + usize::from(bytes.u8() % 3)].to_vec());
    let security = [Security::Plain, Security::Offered, Security::Required][usize::from(bytes.u8() % 3)];
    let mut handshake = Handshake::with(security);
    let (mut client, mut is_secured) = (Client::default(), false);
    // What was said since TLS began, if it did: nothing from before counts.
    let mut asked: Vec<u32> = Vec::new();
    handshake.take_output();
    while !bytes.0.is_empty() {
        let wanted = handshake.wanted_bytes();
        assert!(wanted <= MAX_OPTION_BYTES as usize);
        let input = client.next_input(&mut bytes, wanted);
        if wanted == 16 && input.starts_with(&wire::OPTION_MAGIC.to_be_bytes()) {
            asked.push(u32::from(input[11]));
        }
        let progress = handshake.handle_input(&input, &exports);
        assert!(handshake.take_output().len() <= 4096, "an answer to one option is short");
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Agreed(agreement)) => {
                assert!(exports.0.contains(&&agreement.export[..]));
                assert_eq!(handshake.wanted_bytes(), 0);
                assert!(is_secured || security != Security::Required, "no export without TLS");
                let replies = match agreement.replies {
                    Replies::Simple => None,
                    Replies::Structured => Some(option::STRUCTURED_REPLY),
                    Replies::Extended => Some(option::EXTENDED_HEADERS),
                };
                let contexts = (!agreement.contexts.is_empty()).then_some(option::SET_META_CONTEXT);
                assert!(replies.iter().chain(&contexts).all(|option| asked.contains(option)), "nothing from before TLS counts");
                return;
            }
            Ok(Progress::StartTls) => {
                assert!(!is_secured && security != Security::Plain);
                (handshake, is_secured) = (handshake.secured(), true);
                asked.clear();
            }
            Ok(Progress::Left) | Err(_) => return assert_eq!(handshake.wanted_bytes(), 0),
        }
    }
});
