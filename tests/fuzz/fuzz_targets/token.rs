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
const INVITER_AND_SECRET_BYTES: usize = 48;

/// Content of which every length is right.
fn content(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut content = vec![1; INVITER_AND_SECRET_BYTES];
    content.extend_from_slice(&bytes.array::<8>());
    content.extend_from_slice(b"\x05osaka");
    let addresses = bytes.u8() % 20;
    content.push(addresses);
    for _ in 0..addresses {
        let len = bytes.u8() % 64;
        let address = bytes.slice(len.into());
        content.push(address.len() as u8);
        content.extend_from_slice(address);
    }
    content
}

fn text(mut bytes: Bytes<'_>) -> String {
    let fields;
    let content = match bytes.u8() % 3 {
        0 => return String::from_utf8_lossy(bytes.0).into_owned(),
        1 => bytes.slice(4000),
        _ => {
            fields = content(&mut bytes);
            &fields
        }
    };
    let mut token = ((content.len() + 6) as u16).to_le_bytes().to_vec();
    token.extend_from_slice(content);
    token.extend_from_slice(&blake3::hash(&token).as_bytes()[..4]);
    format!("tern1-{}", URL_SAFE_NO_PAD.encode(token))
}

fuzz_target!(|data: &[u8]| {
    let text = text(Bytes(data));
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
