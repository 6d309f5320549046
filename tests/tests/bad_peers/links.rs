//! Before there is a link: keys, versions, hellos. And frames that are none.

use crate::Scene;
use crate::forger::{Forger, VERSION, end_of, framed, hello, soon};
use replicator::transport::{CloseCode, Closed, MAX_FRAME_BYTES};

/// More than a log may have lines for.
const NOISE: usize = 60;
/// Lines that so much of the same may cost.
const MAX_LINES: usize = 15;

/// How the other side ends a connection on which this is all that is said.
async fn answer_to(forger: &Forger, bytes: &[u8]) -> Closed {
    let connection = forger.connect().await;
    if let Ok((mut send, _recv)) = soon(connection.open_bi()).await {
        let _ = soon(send.write_all(bytes)).await;
        let _ = send.finish();
        return end_of(&connection).await;
    }
    end_of(&connection).await
}

fn assert_closed(closed: &Closed, code: CloseCode, words: &str) {
    assert!(closed.code() == Some(code) && closed.to_string().contains(words), "{closed}, not {code:?} {words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_and_logged_and_fills_neither_log_nor_memory() {
    let scene = Scene::start().await;
    let directory = tempfile::tempdir().unwrap();
    let stranger = Forger::unknown(directory.path(), scene.pair.a.listen());
    assert_closed(&answer_to(&stranger, &framed(&hello(VERSION))).await, CloseCode::UnknownKey, "no peer of this site");
    assert_eq!(scene.pair.a.logged(&["WARN", "connection refused", "unknown key"]).len(), 1, "one line");
    for _ in 0..NOISE {
        assert_closed(&answer_to(&stranger, &framed(&[0; 1000])).await, CloseCode::UnknownKey, "");
    }
    let lines = scene.pair.a.logged(&["connection refused"]).len();
    assert!(lines <= MAX_LINES, "{lines} lines");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_protocol_version_is_told_so_and_logged() {
    let scene = Scene::start().await;
    let closed = answer_to(&scene.forger, &framed(&hello(9))).await;
    assert_closed(&closed, CloseCode::NoCommonVersion, "this site speaks protocol 1, yours 9");
    assert_eq!(scene.pair.a.logged(&["WARN", "connection refused", "the peer speaks protocol 9"]).len(), 1, "one line");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_none_is_refused_with_what_is_wrong() {
    let scene = Scene::start().await;
    let whole = framed(&hello(VERSION));
    for (bytes, words) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], ""),
        (&framed(b"not a hello at all"), "magic"),
        (&whole[..whole.len() / 2], "middle of a frame"),
        (b"", ""),
        (&u32::MAX.to_le_bytes(), "4294967295 bytes"),
    ] {
        let closed = answer_to(&scene.forger, bytes).await;
        let refused = matches!(closed.code(), Some(CloseCode::BadHello | CloseCode::BadFrame));
        assert!(refused && closed.to_string().contains(words), "{bytes:?}: {closed}");
    }
    assert_eq!(scene.pair.a.logged(&["WARN", "connection refused", "bad hello"]).len(), 5, "a line each");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_too_long_or_cut_off_end_the_link_with_the_reason() {
    let scene = Scene::start().await;
    let too_long = (MAX_FRAME_BYTES as u32 + 1).to_le_bytes();
    for (bytes, words) in [
        (&too_long[..], "longer than"),
        (&u32::MAX.to_le_bytes(), "longer than"),
        (b"\x08\x00", "middle of a frame"),
        (b"\x08\x00\x00\x00abc", "middle of a frame"),
        (&framed(b""), "without a kind"),
        (&framed(b"\x01"), "without a kind"),
        (&framed(&[0; 70_000]), "longer than"),
    ] {
        let connection = scene.forger.link().await;
        let (mut send, _recv) = soon(connection.open_bi()).await.unwrap();
        let _ = soon(send.write_all(bytes)).await;
        let _ = send.finish();
        assert_closed(&end_of(&connection).await, CloseCode::BadFrame, words);
    }
    scene.end();
}
