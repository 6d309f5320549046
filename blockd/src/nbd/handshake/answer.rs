//! Encodes the server's side of a handshake.

use super::ExportInfo;
use crate::nbd::transmission::{MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES};
use crate::nbd::wire::{OPTION_REPLY_MAGIC, info, option_reply, transmission_flag};
use crate::request::{Access, MAX_TRANSFER_BYTES};

/// Zeroes that follow the answer to `EXPORT_NAME`, unless the client can do without.
const EXPORT_NAME_ZEROES: usize = 124;

/// Output that was not sent yet.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<u8>);

impl Answers {
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn put_u16(&mut self, number: u16) {
        self.0.extend(number.to_be_bytes());
    }

    pub(super) fn put_u64(&mut self, number: u64) {
        self.0.extend(number.to_be_bytes());
    }

    fn reply(&mut self, option: u32, reply: u32, data: &[&[u8]]) {
        let len_bytes: usize = data.iter().map(|part| part.len()).sum();
        self.put_u64(OPTION_REPLY_MAGIC);
        for number in [option, reply, u32::try_from(len_bytes).expect("our own answers are short")] {
            self.0.extend(number.to_be_bytes());
        }
        data.iter().for_each(|part| self.0.extend_from_slice(part));
    }

    pub(super) fn ack(&mut self, option: u32) {
        self.reply(option, option_reply::ACK, &[]);
    }

    pub(super) fn unsupported(&mut self, option: u32) {
        self.reply(option, option_reply::ERR_UNSUP, &[b"not supported"]);
    }

    pub(super) fn invalid(&mut self, option: u32, why: &str) {
        self.reply(option, option_reply::ERR_INVALID, &[why.as_bytes()]);
    }

    pub(super) fn tls_required(&mut self, option: u32) {
        self.reply(option, option_reply::ERR_TLS_REQD, &[b"begin with STARTTLS"]);
    }

    pub(super) fn extended_headers_required(&mut self, option: u32) {
        self.reply(option, option_reply::ERR_EXT_HEADER_REQD, &[b"extended headers were negotiated"]);
    }

    pub(super) fn unknown(&mut self, option: u32) {
        self.reply(option, option_reply::ERR_UNKNOWN, &[b"no export of that name"]);
    }

    pub(super) fn too_big(&mut self, option: u32, why: &str) {
        self.reply(option, option_reply::ERR_TOO_BIG, &[why.as_bytes()]);
    }

    /// One entry of the list of exports.
    pub(super) fn server(&mut self, option: u32, name: &str) {
        let len_bytes = u32::try_from(name.len()).expect("names are short");
        self.reply(option, option_reply::SERVER, &[&len_bytes.to_be_bytes(), name.as_bytes()]);
    }

    pub(super) fn context(&mut self, option: u32, id: u32, name: &str) {
        self.reply(option, option_reply::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    /// The pieces of information about an export that every client gets.
    pub(super) fn export(&mut self, option: u32, export: &ExportInfo) {
        let (size, flags) = (export.size_bytes.to_be_bytes(), flags(export).to_be_bytes());
        self.reply(option, option_reply::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
        let maximum = u32::try_from(MAX_TRANSFER_BYTES).expect("the limit is below 4 GiB");
        let sizes = [MIN_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, maximum].map(u32::to_be_bytes);
        self.reply(option, option_reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), sizes.as_flattened()]);
    }

    pub(super) fn text(&mut self, option: u32, kind: u16, text: &str) {
        self.reply(option, option_reply::INFO, &[&kind.to_be_bytes(), text.as_bytes()]);
    }

    /// The answer to `EXPORT_NAME`, which has a form of its own.
    pub(super) fn export_name(&mut self, export: &ExportInfo, no_zeroes: bool) {
        self.put_u64(export.size_bytes);
        self.put_u16(flags(export));
        if !no_zeroes {
            self.0.resize(self.0.len() + EXPORT_NAME_ZEROES, 0);
        }
    }
}

/// What can be done with an export.
fn flags(export: &ExportInfo) -> u16 {
    use transmission_flag::*;
    let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_DF | CAN_MULTI_CONN | SEND_CACHE;
    always
        | match export.access {
            Access::ReadWrite => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
            Access::ReadOnly => READ_ONLY,
        }
}
