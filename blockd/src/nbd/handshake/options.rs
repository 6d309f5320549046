//! What each option does.

use super::{
    Agreement, Context, Contexts, ExportInfo, Exports, Handshake, HandshakeError, MAX_LISTED_EXPORTS, MAX_NAME_BYTES, Progress, Replies,
    Security,
};
use crate::nbd::wire::{info, option, take_bytes, take_u16, take_u32};

/// The data of `INFO` and `GO`.
struct Wanted<'a> {
    name: &'a str,
    info: Vec<u16>,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
struct Queries<'a> {
    name: &'a str,
    queries: Vec<&'a [u8]>,
}

impl Handshake {
    pub(super) fn handle_option(&mut self, option: u32, data: &[u8], exports: &dyn Exports) -> Result<Progress, HandshakeError> {
        if self.security == Security::Required && !matches!(option, option::STARTTLS | option::ABORT) {
            return self.insist(option);
        }
        match option {
            option::STARTTLS => return Ok(self.handle_starttls(data)),
            option::EXPORT_NAME => return self.handle_export_name(data, exports),
            option::ABORT => {
                self.output.ack(option);
                return Ok(Progress::Left);
            }
            option::INFO | option::GO => return Ok(self.handle_info(option, data, exports)),
            option::LIST if !data.is_empty() => self.output.invalid(option, "LIST takes no data"),
            option::LIST => {
                for name in exports.list().iter().take(MAX_LISTED_EXPORTS) {
                    self.output.server(option, name);
                }
                self.output.ack(option);
            }
            option::STRUCTURED_REPLY => self.handle_replies(option, data, Replies::Structured),
            option::EXTENDED_HEADERS => self.handle_replies(option, data, Replies::Extended),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.handle_contexts(option, data, exports),
            _ => self.output.unsupported(option),
        }
        Ok(Progress::More)
    }

    /// Refuses what comes without TLS.
    fn insist(&mut self, option: u32) -> Result<Progress, HandshakeError> {
        if option == option::EXPORT_NAME {
            return Err(HandshakeError::TlsRequired);
        }
        self.output.tls_required(option);
        Ok(Progress::More)
    }

    fn handle_starttls(&mut self, data: &[u8]) -> Progress {
        let option = option::STARTTLS;
        match self.security {
            Security::Plain => self.output.unsupported(option),
            Security::Secured => self.output.invalid(option, "TLS is in use already"),
            _ if !data.is_empty() => self.output.invalid(option, "STARTTLS takes no data"),
            Security::Offered | Security::Required => {
                self.output.ack(option);
                return Progress::StartTls;
            }
        }
        Progress::More
    }

    fn handle_export_name(&mut self, name: &[u8], exports: &dyn Exports) -> Result<Progress, HandshakeError> {
        if self.replies == Replies::Extended {
            return Err(HandshakeError::OldStyle);
        }
        let found = export_name(name).and_then(|name| exports.find(name));
        let export = found.ok_or(HandshakeError::NoSuchExport)?;
        self.output.export_name(&export, self.no_zeroes);
        Ok(self.agree(export))
    }

    fn handle_info(&mut self, option: u32, data: &[u8], exports: &dyn Exports) -> Progress {
        let Some(wanted) = parse_info(data) else {
            self.output.invalid(option, "the lengths do not fit together");
            return Progress::More;
        };
        let Some(export) = exports.find(wanted.name) else {
            self.output.unknown(option);
            return Progress::More;
        };
        self.output.export(option, &export);
        if wanted.info.contains(&info::NAME) {
            self.output.text(option, info::NAME, &export.name);
        }
        if wanted.info.contains(&info::DESCRIPTION) {
            self.output.text(option, info::DESCRIPTION, &export.description);
        }
        self.output.ack(option);
        if option == option::GO { self.agree(export) } else { Progress::More }
    }

    /// Extended headers take the place of structured replies, never the other way round.
    fn handle_replies(&mut self, option: u32, data: &[u8], wanted: Replies) {
        if !data.is_empty() {
            self.output.invalid(option, "this option takes no data");
        } else if self.replies == wanted {
            self.output.invalid(option, "negotiated already");
        } else if self.replies == Replies::Extended {
            self.output.extended_headers_required(option);
        } else {
            self.replies = wanted;
            self.output.ack(option);
        }
    }

    fn handle_contexts(&mut self, option: u32, data: &[u8], exports: &dyn Exports) {
        if self.replies == Replies::Simple {
            return self.output.invalid(option, "negotiate structured replies or extended headers first");
        }
        if option == option::SET_META_CONTEXT {
            // A choice replaces the one before, even if it fails.
            self.contexts = None;
        }
        let Some(asked) = parse_queries(data) else {
            return self.output.invalid(option, "the lengths do not fit together");
        };
        let Some(export) = exports.find(asked.name) else {
            return self.output.unknown(option);
        };
        if option == option::LIST_META_CONTEXT {
            let any = |context: Context| asked.queries.is_empty() || asked.queries.iter().any(|query| context.is_listed_by(query));
            Context::ALL.into_iter().filter(|context| any(*context)).for_each(|context| self.output.context(option, 0, context.name()));
        } else {
            let chosen = |context: &Context| asked.queries.contains(&context.name().as_bytes());
            let chosen: Contexts = Context::ALL.into_iter().filter(chosen).collect();
            chosen.iter().for_each(|context| self.output.context(option, context.id(), context.name()));
            self.contexts = Some((export.name, chosen));
        }
        self.output.ack(option);
    }

    /// Contexts are chosen for one export, and of no use with another.
    fn agree(&mut self, export: ExportInfo) -> Progress {
        let chosen = self.contexts.take().filter(|(name, _)| *name == export.name);
        let contexts = chosen.map_or(Contexts::NONE, |(_, contexts)| contexts);
        Progress::Agreed(Agreement { export: export.name, replies: self.replies, contexts })
    }
}

fn export_name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_NAME_BYTES as usize { None } else { str::from_utf8(bytes).ok() }
}

fn take_name<'a>(data: &mut &'a [u8]) -> Option<&'a str> {
    let len_bytes = take_u32(data)?;
    export_name(take_bytes(data, len_bytes)?)
}

fn parse_info(mut data: &[u8]) -> Option<Wanted<'_>> {
    let name = take_name(&mut data)?;
    let count = take_u16(&mut data)?;
    if data.len() != usize::from(count) * 2 {
        return None;
    }
    let info = std::iter::from_fn(|| take_u16(&mut data)).collect();
    Some(Wanted { name, info })
}

fn parse_queries(mut data: &[u8]) -> Option<Queries<'_>> {
    let name = take_name(&mut data)?;
    let count = take_u32(&mut data)?;
    // The count is the client's word: nothing is reserved for it, and the data ends long before it is reached in vain.
    let mut queries = Vec::new();
    for _ in 0..count {
        let len_bytes = take_u32(&mut data)?;
        queries.push(take_bytes(&mut data, len_bytes)?);
    }
    data.is_empty().then_some(Queries { name, queries })
}
