use super::*;
use crate::nbd::wire::{OPTION_REPLY_MAGIC, info, option_reply};
use proptest::prelude::*;

struct Fixed(Vec<ExportInfo>);

impl Exports for Fixed {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        match (name, &self.0[..]) {
            ("", [only]) => Some(only.clone()),
            _ => self.0.iter().find(|export| export.name == name).cloned(),
        }
    }

    fn list(&self) -> Vec<String> {
        self.0.iter().map(|export| export.name.clone()).collect()
    }
}

fn exports(names: &[&str]) -> Fixed {
    let export = |name: &&str| ExportInfo {
        name: (*name).into(),
        description: format!("volume {name}"),
        size_bytes: 1 << 30,
        access: Access::ReadWrite,
    };
    Fixed(names.iter().map(export).collect())
}

/// A client that has read the greeting and sent `flags`.
fn after_flags(flags: u32) -> Handshake {
    after_flags_with(flags, Security::Plain)
}

fn after_flags_with(flags: u32, security: Security) -> Handshake {
    let mut handshake = Handshake::with(security);
    assert_eq!(handshake.take_output(), b"NBDMAGICIHAVEOPT\x00\x03");
    assert_eq!(handshake.handle_input(&flags.to_be_bytes(), &exports(&[])), Ok(Progress::More));
    handshake
}

fn header(option: u32, len_bytes: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len_bytes.to_be_bytes()].concat()
}

/// A reply's type and data.
type OptionReply = (u32, Vec<u8>);

/// Sends an option.
fn send(handshake: &mut Handshake, exports: &Fixed, option: u32, data: &[u8]) -> (Result<Progress, HandshakeError>, Vec<OptionReply>) {
    assert_eq!(handshake.handle_input(&header(option, data.len() as u32), exports), Ok(Progress::More));
    let progress = handshake.handle_input(data, exports);
    let output = handshake.take_output();
    let mut rest = &output[..];
    let mut replies = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[..8], OPTION_REPLY_MAGIC.to_be_bytes());
        assert_eq!(rest[8..12], option.to_be_bytes());
        let len = u32::from_be_bytes(rest[16..20].try_into().unwrap()) as usize;
        replies.push((u32::from_be_bytes(rest[12..16].try_into().unwrap()), rest[20..20 + len].to_vec()));
        rest = &rest[20 + len..];
    }
    (progress, replies)
}

fn go_data(name: &str, info: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.bytes());
    data.extend((info.len() as u16).to_be_bytes());
    info.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    let text = |data: &mut Vec<u8>, text: &str| {
        data.extend((text.len() as u32).to_be_bytes());
        data.extend(text.bytes());
    };
    text(&mut data, name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| text(&mut data, query));
    data
}

fn types(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn a_client_learns_what_an_export_is_and_goes() {
    let exports = exports(&["vm1", "vm2"]);
    let mut handshake = after_flags(3);
    let (progress, replies) = send(&mut handshake, &exports, option::LIST, &[]);
    assert_eq!(progress, Ok(Progress::More));
    assert_eq!(replies, [(2, b"\0\0\0\x03vm1".to_vec()), (2, b"\0\0\0\x03vm2".to_vec()), (1, vec![])]);
    assert_eq!(types(&send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]).1), [1]);
    let (_, replies) = send(&mut handshake, &exports, option::SET_META_CONTEXT, &contexts_data("vm2", &["x:y", "base:allocation"]));
    assert_eq!(replies, [(4, b"\0\0\0\x01base:allocation".to_vec()), (1, vec![])]);
    let asked = go_data("vm2", &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 999]);
    let (progress, replies) = send(&mut handshake, &exports, option::INFO, &asked);
    assert_eq!((progress, types(&replies)), (Ok(Progress::More), vec![3, 3, 3, 3, 1]));
    assert_eq!(replies[0].1, [0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0x0d, 0xed]);
    assert_eq!(replies[1].1, [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    let (progress, _) = send(&mut handshake, &exports, option::GO, &asked);
    let agreement = Agreement { export: "vm2".into(), replies: Replies::Structured, contexts: Contexts::from_iter([Context::Allocation]) };
    assert_eq!(progress, Ok(Progress::Agreed(agreement)));
    assert_eq!((handshake.wanted_bytes(), handshake.handle_input(&[], &exports)), (0, Ok(Progress::Left)));
}

#[test]
fn the_empty_name_is_the_only_export_or_none() {
    let mut handshake = after_flags(1);
    assert_eq!(types(&send(&mut handshake, &exports(&["a", "b"]), option::GO, &go_data("", &[])).1), [option_reply::ERR_UNKNOWN]);
    let (progress, replies) = send(&mut handshake, &exports(&["a"]), option::GO, &go_data("", &[info::NAME]));
    assert_eq!(replies[2].1, b"\0\x01a");
    assert!(matches!(progress, Ok(Progress::Agreed(Agreement { export, .. })) if export == "a"));
}

#[test]
fn the_old_way_to_choose_an_export_works_with_and_without_zeroes() {
    for (flags, len) in [(1, 134), (3, 10)] {
        let mut handshake = after_flags(flags);
        assert_eq!(handshake.handle_input(&header(option::EXPORT_NAME, 1), &exports(&["a"])), Ok(Progress::More));
        assert!(matches!(handshake.handle_input(b"a", &exports(&["a"])), Ok(Progress::Agreed(_))));
        assert_eq!(handshake.take_output().len(), len);
    }
    let mut handshake = after_flags(3);
    handshake.handle_input(&header(option::EXPORT_NAME, 1), &exports(&["a"])).unwrap();
    assert_eq!(handshake.handle_input(b"b", &exports(&["a"])), Err(HandshakeError::NoSuchExport));
    assert_eq!(handshake.wanted_bytes(), 0);
}

#[test]
fn contexts_of_another_export_or_without_structured_replies_are_of_no_use() {
    let exports = exports(&["a", "b"]);
    let mut handshake = after_flags(3);
    let base = |name| contexts_data(name, &["base:allocation"]);
    assert_eq!(types(&send(&mut handshake, &exports, option::SET_META_CONTEXT, &base("a")).1), [option_reply::ERR_INVALID]);
    let _ = send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]);
    assert_eq!(types(&send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]).1), [option_reply::ERR_INVALID]);
    for (queries, found) in [
        (&[][..], 2),
        (&["base:"], 1),
        (&["base:allocation"], 1),
        (&["base:alloc"], 0),
        (&["tern:"], 1),
        (&["tern:dirty", "base:"], 2),
        (&["tern"], 0),
        (&[":"], 0),
        (&[""], 0),
        (&["qemu:"], 0),
    ] {
        let (_, replies) = send(&mut handshake, &exports, option::LIST_META_CONTEXT, &contexts_data("a", queries));
        assert_eq!(replies.len(), found + 1, "{queries:?}");
    }
    assert_eq!(types(&send(&mut handshake, &exports, option::SET_META_CONTEXT, &base("c")).1), [option_reply::ERR_UNKNOWN]);
    let _ = send(&mut handshake, &exports, option::SET_META_CONTEXT, &base("a"));
    let (progress, _) = send(&mut handshake, &exports, option::GO, &go_data("b", &[]));
    assert!(matches!(progress, Ok(Progress::Agreed(Agreement { contexts: Contexts::NONE, .. }))));
}

#[test]
fn contexts_are_chosen_by_their_whole_names() {
    let exports = exports(&["a"]);
    for (queries, chosen) in [
        (&[][..], &[][..]),
        (&["base:"], &[]),
        (&["tern:"], &[]),
        (&["tern:dirty", "x:y"], &[Context::Dirty]),
        (&["tern:dirty", "base:allocation", "tern:dirty"], &[Context::Allocation, Context::Dirty]),
    ] {
        let mut handshake = after_flags(3);
        let _ = send(&mut handshake, &exports, option::EXTENDED_HEADERS, &[]);
        let (_, replies) = send(&mut handshake, &exports, option::SET_META_CONTEXT, &contexts_data("a", queries));
        let names = |(_, data): &OptionReply| data.get(4..).map(<[u8]>::to_vec);
        let expected: Vec<_> = chosen.iter().map(|context: &Context| Some(context.name().as_bytes().to_vec())).chain([None]).collect();
        assert_eq!(replies.iter().map(names).collect::<Vec<_>>(), expected, "{queries:?}");
        let (progress, _) = send(&mut handshake, &exports, option::GO, &go_data("a", &[]));
        let contexts = Contexts::from_iter(chosen.iter().copied());
        assert_eq!(progress, Ok(Progress::Agreed(Agreement { export: "a".into(), replies: Replies::Extended, contexts })));
    }
}

#[test]
fn extended_headers_take_the_place_of_structured_replies() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags(3);
    for (option, answer) in [
        (option::STRUCTURED_REPLY, option_reply::ACK),
        (option::EXTENDED_HEADERS, option_reply::ACK),
        (option::EXTENDED_HEADERS, option_reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, option_reply::ERR_EXT_HEADER_REQD),
    ] {
        assert_eq!(types(&send(&mut handshake, &exports, option, &[]).1), [answer], "{option}");
    }
    assert_eq!(send(&mut handshake, &exports, option::EXPORT_NAME, b"a").0, Err(HandshakeError::OldStyle));
}

#[test]
fn a_failed_choice_of_contexts_drops_the_one_before() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags(3);
    let _ = send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]);
    let _ = send(&mut handshake, &exports, option::SET_META_CONTEXT, &contexts_data("a", &["base:allocation"]));
    let _ = send(&mut handshake, &exports, option::SET_META_CONTEXT, b"nonsense");
    let (progress, _) = send(&mut handshake, &exports, option::GO, &go_data("a", &[]));
    assert!(matches!(progress, Ok(Progress::Agreed(Agreement { contexts: Contexts::NONE, .. }))));
}

#[test]
fn unknown_options_are_refused_and_abort_is_answered() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags(3);
    for unknown in [option::STARTTLS, 4, 12, u32::MAX] {
        assert_eq!(types(&send(&mut handshake, &exports, unknown, b"whatever").1), [option_reply::ERR_UNSUP]);
    }
    assert_eq!(send(&mut handshake, &exports, option::ABORT, &[]), (Ok(Progress::Left), vec![(option_reply::ACK, vec![])]));
}

/// Lesson: with TLS required nothing else is answered.
#[test]
fn with_tls_required_nothing_else_is_answered() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags_with(3, Security::Required);
    let go = go_data("a", &[]);
    for (option, data) in [
        (option::LIST, &[][..]),
        (option::INFO, &go),
        (option::GO, &go),
        (option::STRUCTURED_REPLY, &[]),
        (option::LIST_META_CONTEXT, &contexts_data("a", &[])),
        (option::SET_META_CONTEXT, &contexts_data("a", &["base:allocation"])),
        (99, b"whatever"),
    ] {
        let (progress, replies) = send(&mut handshake, &exports, option, data);
        assert_eq!((progress, types(&replies)), (Ok(Progress::More), vec![option_reply::ERR_TLS_REQD]), "{option}");
    }
    assert_eq!(types(&send(&mut handshake, &exports, option::STARTTLS, &[0]).1), [option_reply::ERR_INVALID], "it takes no data");
    assert_eq!(send(&mut handshake, &exports, option::STARTTLS, &[]), (Ok(Progress::StartTls), vec![(option_reply::ACK, vec![])]));
    for option in [option::ABORT, option::EXPORT_NAME] {
        let expected = if option == option::ABORT { Ok(Progress::Left) } else { Err(HandshakeError::TlsRequired) };
        assert_eq!(send(&mut after_flags_with(3, Security::Required), &exports, option, b"").0, expected);
    }
}

/// Lesson: state kept across STARTTLS (CVE-2021-3716).
#[test]
fn tls_resets_all_that_was_agreed_before() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags_with(3, Security::Offered);
    let _ = send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]);
    let _ = send(&mut handshake, &exports, option::SET_META_CONTEXT, &contexts_data("a", &["base:allocation"]));
    assert_eq!(send(&mut handshake, &exports, option::STARTTLS, &[]).0, Ok(Progress::StartTls));
    let mut handshake = handshake.secured();
    assert_eq!((handshake.take_output(), handshake.wanted_bytes()), (vec![], 16), "no second greeting: options go on");
    assert_eq!(types(&send(&mut handshake, &exports, option::STARTTLS, &[]).1), [option_reply::ERR_INVALID], "never twice");
    let (progress, _) = send(&mut handshake, &exports, option::GO, &go_data("a", &[]));
    let agreement = Agreement { export: "a".into(), replies: Replies::Simple, contexts: Contexts::NONE };
    assert_eq!(progress, Ok(Progress::Agreed(agreement)));
}

#[test]
fn tls_does_not_begin_the_count_of_options_anew() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags_with(3, Security::Offered);
    for _ in 1..MAX_OPTIONS {
        let _ = send(&mut handshake, &exports, 99, &[]);
    }
    assert_eq!(send(&mut handshake, &exports, option::STARTTLS, &[]).0, Ok(Progress::StartTls));
    assert_eq!(handshake.secured().handle_input(&header(99, 0), &exports), Err(HandshakeError::TooManyOptions));
}

/// CVE-2017-15118, CVE-2020-10761, CVE-2022-26495: lengths used before they are checked.
/// Lesson: lengths used before they are checked (CVE-2017-15118, nbd-server CVE-2022-26496).
#[test]
fn option_lengths_are_checked_before_they_are_used() {
    let exports = exports(&["a"]);
    for (len_bytes, fits) in
        [(0, true), (MAX_OPTION_BYTES - 1, true), (MAX_OPTION_BYTES, true), (MAX_OPTION_BYTES + 1, false), (u32::MAX, false)]
    {
        let mut handshake = after_flags(3);
        let progress = handshake.handle_input(&header(99, len_bytes), &exports);
        let expected = if fits { Ok(Progress::More) } else { Err(HandshakeError::OptionTooLong(len_bytes)) };
        assert_eq!(progress, expected, "{len_bytes}");
        assert_eq!(handshake.wanted_bytes(), if fits { len_bytes as usize } else { 0 });
        if fits {
            assert_eq!(handshake.handle_input(&vec![0; len_bytes as usize], &exports), Ok(Progress::More));
        }
    }
}

/// Lesson: lengths used before they are checked (nbd-server CVE-2022-26495: 2³²−1 wraps).
#[test]
fn lengths_within_an_option_are_checked_against_it() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags(3);
    let _ = send(&mut handshake, &exports, option::STRUCTURED_REPLY, &[]);
    for (option, good) in [
        (option::GO, go_data("a", &[0, 1, 2])),
        (option::SET_META_CONTEXT, contexts_data("a", &["base:allocation", "b"])),
        (option::LIST_META_CONTEXT, contexts_data("a", &["base:allocation", "b"])),
    ] {
        for len in 0..good.len() {
            assert_eq!(
                types(&send(&mut handshake, &exports, option, &good[..len]).1),
                [option_reply::ERR_INVALID],
                "{option} cut at {len}"
            );
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(types(&send(&mut handshake, &exports, option, &longer).1), [option_reply::ERR_INVALID]);
        let mut wrapping = good.clone();
        wrapping[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(types(&send(&mut handshake, &exports, option, &wrapping).1), [option_reply::ERR_INVALID]);
    }
    let mut many = contexts_data("a", &[]);
    let at = many.len() - 4;
    many[at..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(types(&send(&mut handshake, &exports, option::SET_META_CONTEXT, &many).1), [option_reply::ERR_INVALID]);
    for option in [option::LIST, option::STRUCTURED_REPLY, option::EXTENDED_HEADERS] {
        assert_eq!(types(&send(&mut handshake, &exports, option, &[0]).1), [option_reply::ERR_INVALID]);
    }
}

/// Lesson: lengths used before they are checked; names and error strings at the limit (CVE-2020-10761).
#[test]
fn names_have_a_limit() {
    let name = "x".repeat(MAX_NAME_BYTES as usize + 1);
    let limit = &name[1..];
    let exports = exports(&[&limit[1..], limit, &name]);
    for (name, answer) in [(&limit[1..], option_reply::INFO), (limit, option_reply::INFO), (&name[..], option_reply::ERR_INVALID)] {
        let (_, replies) = send(&mut after_flags(3), &exports, option::INFO, &go_data(name, &[]));
        assert_eq!(replies[0].0, answer, "{}", name.len());
    }
    let mut data = go_data("abc", &[]);
    data[5] = 0xff;
    assert_eq!(types(&send(&mut after_flags(3), &exports, option::INFO, &data).1), [option_reply::ERR_INVALID], "not UTF-8");
}

#[test]
fn the_number_of_options_has_a_limit() {
    let exports = exports(&["a"]);
    let mut handshake = after_flags(3);
    for _ in 0..MAX_OPTIONS {
        assert_eq!(send(&mut handshake, &exports, 99, &[]).0, Ok(Progress::More));
    }
    assert_eq!(handshake.handle_input(&header(99, 0), &exports), Err(HandshakeError::TooManyOptions));
}

#[test]
fn nonsense_ends_the_handshake() {
    let exports = exports(&["a"]);
    let mut handshake = Handshake::new();
    assert_eq!(handshake.handle_input(&7_u32.to_be_bytes(), &exports), Err(HandshakeError::Flags(7)));
    let mut handshake = after_flags(0);
    assert_eq!(handshake.handle_input(&[b'x'; 16], &exports), Err(HandshakeError::Magic));
    assert_eq!(handshake.wanted_bytes(), 0);
}

proptest! {
    /// Whatever comes, it ends within the limits and nothing panics.
    #[test]
    fn no_input_breaks_a_handshake(flags in 0_u32..4, options in prop::collection::vec((0_u32..12, prop::collection::vec(any::<u8>(), 0..64)), 0..40)) {
        let exports = exports(&["a", ""]);
        let mut handshake = after_flags(flags);
        for (option, data) in options {
            for input in [header(option, data.len() as u32), data] {
                if input.len() == handshake.wanted_bytes() {
                    let _ = handshake.handle_input(&input, &exports);
                }
            }
            prop_assert!(handshake.take_output().len() < 1 << 16);
        }
    }

    #[test]
    fn no_bytes_break_a_handshake(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let exports = exports(&["a"]);
        let mut handshake = Handshake::new();
        let mut rest = &bytes[..];
        while let Some((input, after)) = rest.split_at_checked(handshake.wanted_bytes()) && !input.is_empty() {
            if handshake.handle_input(input, &exports).is_err() {
                break;
            }
            rest = after;
        }
    }
}
