//! Who gets a link and who does not.

use super::*;

#[tokio::test]
async fn peers_prove_their_keys_to_each_other() {
    let (one, two) = (
        Site::with(Settings { site_name: "osaka".into(), features: 0b110, ..Settings::default() }),
        Site::with(Settings { site_name: "oregon".into(), features: 0b011, ..Settings::default() }),
    );
    one.known.add(two.id());
    two.known.add(one.id());
    let (dialled, accepted) = linked(&one, &two).await;
    assert_eq!((dialled.peer(), accepted.peer()), (two.id(), one.id()));
    assert_eq!((dialled.hello().site_name.as_str(), accepted.hello().site_name.as_str()), ("oregon", "osaka"));
    assert_eq!((dialled.direction(), accepted.direction()), (Direction::Dialled, Direction::Accepted));
    assert_eq!((dialled.version(), accepted.version()), (1, 1));
    assert_eq!((dialled.features(), accepted.features()), (0b010, 0b010));
    assert_eq!(dialled.remote_address(), two.address());
}

/// Lesson: a refused connection says why, at both ends (zrepl#517).
#[tokio::test]
async fn an_unknown_key_is_refused_and_told_so() {
    let (stranger, two) = (Site::new(), Site::new());
    let error = stranger.dial(&two).await.unwrap_err();
    assert_eq!(error.code(), Some(CloseCode::UnknownKey), "{error}");
    assert!(error.to_string().contains(&stranger.id().short()), "{error}");
}

#[tokio::test]
async fn a_site_with_another_key_than_the_pinned_one_is_refused() {
    let (one, two) = pair();
    let pinned = Identity::ephemeral().unwrap().id();
    match soon(one.transport.dial(two.address(), pinned)).await {
        Err(DialError::WrongKey { expected, found, .. }) => assert_eq!((expected, found), (pinned, two.id())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_highest_common_version_is_spoken() {
    let speaking = |oldest, newest| Site::with(Settings { versions: VersionRange { oldest, newest }, ..Settings::default() });
    let (older, newer) = (speaking(1, 2), speaking(2, 4));
    older.known.add(newer.id());
    newer.known.add(older.id());
    let (dialled, accepted) = linked(&older, &newer).await;
    assert_eq!((dialled.version(), accepted.version()), (2, 2));
    let (dialled, accepted) = linked(&newer, &older).await;
    assert_eq!((dialled.version(), accepted.version()), (2, 2));
}

#[tokio::test]
async fn without_a_common_version_the_refusal_names_both_ranges() {
    let speaking = |oldest, newest| Site::with(Settings { versions: VersionRange { oldest, newest }, ..Settings::default() });
    let (older, newer) = (speaking(1, 2), speaking(3, 4));
    older.known.add(newer.id());
    newer.known.add(older.id());
    let error = older.dial(&newer).await.unwrap_err();
    assert_eq!(error.code(), Some(CloseCode::NoCommonVersion));
    let text = error.to_string();
    assert!(text.contains("1 to 2") && text.contains("3 to 4"), "{text}");
}

#[tokio::test]
async fn nobody_at_the_address_is_no_answer() {
    let one = Site::with(Settings { dial_deadline: Duration::from_millis(200), ..Settings::default() });
    let deaf = std::net::UdpSocket::bind(localhost()).unwrap();
    let dialling = one.transport.dial(deaf.local_addr().unwrap(), one.id());
    assert!(matches!(soon(dialling).await, Err(DialError::NoAnswer { .. })));
}

#[tokio::test]
async fn a_stopping_site_says_so() {
    let (one, two) = pair();
    let (dialled, _accepted) = linked(&one, &two).await;
    two.transport.stop().await;
    assert_eq!(soon(dialled.closed()).await.code(), Some(CloseCode::Stopping));
    assert!(!dialled.is_live());
}

#[tokio::test]
async fn a_restarted_peer_is_reached_again() {
    let identity = Identity::ephemeral().unwrap();
    let one = Site::new();
    let two = Site::at(localhost(), identity.clone(), Settings::default());
    one.known.add(identity.id());
    two.known.add(one.id());
    let (dialled, accepted) = linked(&one, &two).await;
    let instance = dialled.hello().instance;
    drop((accepted, two));
    soon(dialled.closed()).await;
    let two = Site::at(localhost(), identity, Settings::default());
    two.known.add(one.id());
    let (again, _accepted) = linked(&one, &two).await;
    assert_ne!(again.hello().instance, instance);
}
