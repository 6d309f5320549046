//! A Rust source without what is not code.

/// Blanks comments, strings and character literals; every line keeps its number.
pub fn code_only(text: &str) -> String {
    let mut scanner = Scanner { rest: text, code: String::with_capacity(text.len()), after_word: false };
    while scanner.step() {}
    scanner.code
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
    /// Whether the character before `rest` belongs to an identifier: then an `r` does not start a raw string.
    after_word: bool,
}

impl Scanner<'_> {
    fn step(&mut self) -> bool {
        let Some(next) = self.rest.chars().next() else { return false };
        if self.rest.starts_with("//") {
            self.blank(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.blank(block_comment_len(self.rest));
        } else if let Some(len) = self.raw_string_len() {
            self.blank(len);
        } else if next == '"' {
            self.blank(quoted_len(self.rest, '"'));
        } else if let Some(len) = char_literal_len(self.rest) {
            self.blank(len);
        } else {
            self.after_word = next.is_alphanumeric() || next == '_';
            self.code.push(next);
            self.rest = &self.rest[next.len_utf8()..];
        }
        true
    }

    fn blank(&mut self, len: usize) {
        let (gone, rest) = self.rest.split_at(len);
        self.code.extend(gone.chars().filter(|c| *c == '\n'));
        self.code.push(' ');
        self.after_word = false;
        self.rest = rest;
    }

    fn raw_string_len(&self) -> Option<usize> {
        if self.after_word {
            return None;
        }
        let prefix = ["r", "br", "cr"]
            .into_iter()
            .find(|prefix| self.rest.strip_prefix(*prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"')))?;
        let body = &self.rest[prefix.len()..];
        let hashes = body.len() - body.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let opening = prefix.len() + hashes + 1;
        let close = self.rest[opening..].find(&end);
        Some(close.map_or(self.rest.len(), |at| opening + at + end.len()))
    }
}

fn block_comment_len(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a literal that begins with `quote`, both quotes included.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `'x'` and `'\n'`, but not the lifetime `'a`.
fn char_literal_len(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        return Some(quoted_len(text, '\''));
    }
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::code_only;

    #[test]
    fn comments_and_literals_go_and_lines_stay() {
        let text = "a // unsafe\n/* unsafe /* nested */\n */ b \"un\\\"safe\" r#\"un\"safe\"# c '\"' d\n'\\'' e<'f>";
        let code = code_only(text);
        assert!(!code.contains("safe"), "{code}");
        assert_eq!(code.split_whitespace().collect::<String>(), "abcde<'f>");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn an_open_literal_at_the_end_is_no_trouble() {
        for text in ["\"abc", "r#\"abc", "/* abc", "'", "'\\", "br"] {
            code_only(text);
        }
    }

    #[test]
    fn identifiers_that_end_in_r_are_not_raw_strings() {
        assert_eq!(code_only("for\"x\"y").replace(' ', ""), "fory");
    }
}
