//! What the pages in docs/ say, for tests that hold the code against them.

/// The wire.
pub(crate) const PROTOCOL: &str = include_str!("../../../../docs/protocol.md");

/// The disk.
#[cfg_attr(test, allow(dead_code, reason = "the replicator's tests use it"))]
pub(crate) const FORMATS: &str = include_str!("../../../../docs/formats.md");

/// The bytes of an example: hexadecimal at the beginning of each line, words after two spaces.
pub(crate) fn example(page: &str, name: &str) -> Vec<u8> {
    let begin = format!("Example (`{name}`):\n\n```text\n");
    let (_, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("the page has no example {name}"));
    let (lines, _) = rest.split_once("```").expect("the example ends");
    let digits: Vec<u8> = lines.lines().flat_map(|line| line.split("  ").next().unwrap_or_default().bytes()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).unwrap_or_else(|_| panic!("{name}: no byte: {pair:?}"));
    digits.chunks(2).map(byte).collect()
}

/// Checks that the page names the limit with this value.
pub(crate) fn check_limit(page: &str, name: &str, value: u64) {
    assert!(page.contains(&format!("`{name}` = {value}")), "the page does not say that {name} is {value}");
}
