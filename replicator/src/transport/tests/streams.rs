//! Frames on streams.

use super::*;
use bytes::Bytes;

const KIND: StreamKind = StreamKind(7);

#[tokio::test]
async fn frames_arrive_whole_and_in_order_in_both_directions() {
    let (one, two) = pair();
    let (dialled, accepted) = linked(&one, &two).await;
    let (mut send, mut recv) = soon(dialled.open(KIND, b"volume 5")).await.unwrap();
    let (kind, header, mut back, mut got) = soon(accepted.accept()).await.unwrap();
    assert_eq!((kind, &header[..]), (KIND, &b"volume 5"[..]));
    let frames: Vec<Bytes> = [0, 1, 70_000, 3, MAX_FRAME_BYTES].map(|len| Bytes::from(vec![len as u8; len])).to_vec();
    let sent = frames.clone();
    let sending = tokio::spawn(async move {
        for frame in sent {
            send.send(frame).await.unwrap();
        }
        send.finish();
    });
    for frame in &frames {
        assert_eq!(soon(got.recv()).await.unwrap().as_ref(), Some(frame));
    }
    assert_eq!(soon(got.recv()).await, Ok(None));
    soon(sending).await.unwrap();
    soon(back.send(Bytes::from_static(b"done"))).await.unwrap();
    assert_eq!(soon(recv.recv()).await.unwrap().unwrap(), "done");
    let stats = dialled.stats();
    assert!(stats.wire_bytes_sent > MAX_FRAME_BYTES as u64 && stats.wire_bytes_received > 0, "{stats:?}");
}

#[tokio::test]
async fn reading_can_be_broken_off_and_goes_on_where_it_was() {
    let (one, two) = pair();
    let (dialled, accepted) = linked(&one, &two).await;
    let (mut send, _recv) = soon(dialled.open(KIND, b"")).await.unwrap();
    let (_, _, _back, mut got) = soon(accepted.accept()).await.unwrap();
    let frame = Bytes::from((0..2_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let sent = frame.clone();
    let sending = tokio::spawn(async move { send.send(sent).await.map(|()| send) });
    let received = soon(async {
        loop {
            tokio::select! {
                biased;
                frame = got.recv() => break frame,
                () = tokio::task::yield_now() => {}
            }
        }
    });
    assert_eq!(received.await.unwrap(), Some(frame));
    soon(sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frame_given_up_halfway_resets_its_stream_only() {
    let (one, two) = pair();
    let (dialled, accepted) = linked(&one, &two).await;
    let (mut send, _recv) = soon(dialled.open(KIND, b"")).await.unwrap();
    let (_, _, _back, mut got) = soon(accepted.accept()).await.unwrap();
    // Nobody reads: more than the windows hold cannot be written, so the send is broken off in the middle of a frame.
    let frame = Bytes::from(vec![1; MAX_FRAME_BYTES]);
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(200), send.send(frame.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 100, "the windows have an end");
    }
    drop(send);
    let mut received = 0;
    let end = loop {
        match soon(got.recv()).await {
            Ok(Some(_)) => received += 1,
            other => break other,
        }
    };
    assert_eq!(end, Err(StreamError::GivenUp(ResetCode::GivenUp as u64)));
    assert!(received <= sent);
    assert!(dialled.is_live() && accepted.is_live());
    soon(dialled.open(KIND, b"")).await.unwrap();
    soon(accepted.accept()).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_stops_is_noticed() {
    let (one, two) = pair();
    let (dialled, accepted) = linked(&one, &two).await;
    let (send, _recv) = soon(dialled.open(KIND, b"")).await.unwrap();
    let (_, _, _back, mut got) = soon(accepted.accept()).await.unwrap();
    got.stop(ResetCode::UnknownKind);
    assert_eq!(soon(send.stopped()).await, Err(StreamError::GivenUp(ResetCode::UnknownKind as u64)));
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let (one, two) = pair();
    let (dialled, _accepted) = linked(&one, &two).await;
    let (mut send, _recv) = soon(dialled.open(KIND, b"")).await.unwrap();
    let frame = Bytes::from(vec![0; MAX_FRAME_BYTES + 1]);
    assert!(matches!(soon(send.send(frame)).await, Err(StreamError::TooLong { .. })));
    assert!(matches!(soon(dialled.open(KIND, &[0; MAX_HEADER_BYTES + 1])).await, Err(StreamError::TooLong { .. })));
    assert!(dialled.is_live());
}
