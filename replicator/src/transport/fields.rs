//! Fields of the small messages that are exchanged before replication begins (hello, pairing, tokens): little-endian numbers, fixed
//! arrays, and texts with a length byte or two before them. Reading never panics and never takes more than the message holds.

/// Longest text in one field, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 255;

/// A message that does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// It ends too early.
    #[error("cut short at {0}")]
    CutShort(&'static str),
    /// A field has a value that it cannot have.
    #[error("{0} is not valid")]
    Invalid(&'static str),
}

/// Takes fields off the front of a message.
pub(crate) struct FieldReader<'a> {
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub(crate) fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], FieldError> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(FieldError::CutShort(name))?;
        self.rest = rest;
        Ok(*field)
    }

    pub(crate) fn u8(&mut self, name: &'static str) -> Result<u8, FieldError> {
        self.array::<1>(name).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, name: &'static str) -> Result<u16, FieldError> {
        self.array(name).map(u16::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, name: &'static str) -> Result<u64, FieldError> {
        self.array(name).map(u64::from_le_bytes)
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<String, FieldError> {
        let len = usize::from(self.u8(name)?);
        let (text, rest) = self.rest.split_at_checked(len).ok_or(FieldError::CutShort(name))?;
        self.rest = rest;
        let text = std::str::from_utf8(text).map_err(|_| FieldError::Invalid(name))?;
        if text.chars().any(char::is_control) { Err(FieldError::Invalid(name)) } else { Ok(text.to_owned()) }
    }

    /// A count byte and that many texts.
    pub(crate) fn texts(&mut self, name: &'static str, most: usize) -> Result<Vec<String>, FieldError> {
        let count = usize::from(self.u8(name)?);
        if count > most {
            return Err(FieldError::Invalid(name));
        }
        (0..count).map(|_| self.text(name)).collect()
    }
}

/// Appends a text; one that is too long is cut at a character's edge.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a count byte and the texts, at most `most` of them.
pub(crate) fn put_texts(out: &mut Vec<u8>, texts: &[String], most: usize) {
    let texts = &texts[..texts.len().min(most).min(usize::from(u8::MAX))];
    out.push(texts.len() as u8);
    texts.iter().for_each(|text| put_text(out, text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        let mut out = Vec::new();
        put_text(&mut out, "ōsaka");
        put_texts(&mut out, &["a:1".to_owned(), "[::1]:2".to_owned()], 8);
        let mut reader = FieldReader::new(&out);
        assert_eq!(reader.text("name").unwrap(), "ōsaka");
        assert_eq!(reader.texts("addresses", 8).unwrap(), ["a:1", "[::1]:2"]);
        assert_eq!(reader.u8("more"), Err(FieldError::CutShort("more")));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut out = Vec::new();
        put_text(&mut out, &"é".repeat(200));
        assert_eq!(FieldReader::new(&out).text("name").unwrap(), "é".repeat(127));
    }

    #[test]
    fn control_characters_and_too_many_texts_are_invalid() {
        assert_eq!(FieldReader::new(b"\x02a\n").text("name"), Err(FieldError::Invalid("name")));
        assert_eq!(FieldReader::new(b"\x01\xff").text("name"), Err(FieldError::Invalid("name")));
        assert_eq!(FieldReader::new(b"\x09").texts("addresses", 8), Err(FieldError::Invalid("addresses")));
        assert_eq!(FieldReader::new(b"\x05ab").text("name"), Err(FieldError::CutShort("name")));
    }
}
