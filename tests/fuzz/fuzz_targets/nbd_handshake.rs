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

/// What a client sends next.
fn next_input(bytes: &mut Bytes<'_>, wanted: usize) -> Vec<u8> {
    let mut input = match (bytes.u8() % 4, wanted) {
        (0, _) | (_, 4) => bytes.slice(wanted).to_vec(),
        // A header that is right, of an option that may be.
        (1.., 16) => {
            let (option, len) = (u32::from(bytes.u8() % 12), u32::from(bytes.u8()));
            [&wire::OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes()].concat()
        }
        // Data that begins with the name of an export.
        (1, _) => [&1_u32.to_be_bytes()[..], b"a", bytes.slice(wanted)].concat(),
        (2, _) => [&1_u32.to_be_bytes()[..], b"a", &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), b"base:allocation"].concat(),
        (_, _) => bytes.slice(wanted).to_vec(),
    };
    input.resize(wanted, 0);
    input
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let exports = Names(["a", "b", "a name with spaces"][..1 + usize::from(bytes.u8() % 3)].to_vec());
    let security = [Security::Plain, Security::Offered, Security::Required][usize::from(bytes.u8() % 3)];
    let mut handshake = Handshake::with(security);
    let mut is_secured = false;
    // What was said since TLS began, if it did: nothing from before counts.
    let mut asked: Vec<u32> = Vec::new();
    handshake.take_output();
    while !bytes.0.is_empty() {
        let wanted = handshake.wanted_bytes();
        assert!(wanted <= MAX_OPTION_BYTES as usize);
        let input = next_input(&mut bytes, wanted);
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
