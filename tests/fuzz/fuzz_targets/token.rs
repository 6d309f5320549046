//! Any text as a pairing token, and any content behind a good length and checksum: what decodes comes back when it is encoded again.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use replicator::pairing::Token;
use tern_fuzz::Bytes;
use tern_fuzz::sys::peak_bytes;

/// A token has 4096 characters at most.
const MAX_PEAK_BYTES: usize = 64 << 10;

fn text(bytes: &mut Bytes<'_>) -> String {
    if bytes.u8().is_multiple_of(2) {
        return String::from_utf8_lossy(bytes.0).into_owned();
    }
    let content = bytes.slice(4000);
    let mut token = ((content.len() + 6) as u16).to_le_bytes().to_vec();
    token.extend_from_slice(content);
    token.extend_from_slice(&blake3::hash(&token).as_bytes()[..4]);
    format!("tern1-{}", URL_SAFE_NO_PAD.encode(token))
}

fuzz_target!(|data: &[u8]| {
    let text = text(&mut Bytes(data));
    let (decoded, peak_bytes) = peak_bytes(|| Token::decode(&text));
    assert!(peak_bytes <= MAX_PEAK_BYTES, "{} bytes took {peak_bytes}", text.len());
    match decoded {
        Ok(token) => {
            let _ = token.check_age(u64::MAX);
            assert_eq!(Token::decode(&token.encode()), Ok(token));
        }
        Err(error) => assert!(error.to_string().len() < 200),
    }
});
