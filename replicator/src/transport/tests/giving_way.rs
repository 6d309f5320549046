//! Questions whose link gives way to another.

use super::links::Linked;
use super::*;
use crate::pairing::Peer;
use crate::site_link::request::{self, Answer, AskError, Question};
use tokio::task::JoinHandle;

/// Two sites of which only the test dials: it is the lower one's link that is kept.
fn sites() -> (Linked, Linked) {
    let (one, two) = (Linked::new(1), Linked::new(2));
    let (lower, higher) = if one.id() < two.id() { (one, two) } else { (two, one) };
    for (site, other) in [(&lower, &higher), (&higher, &lower)] {
        site.book.record(Peer { id: other.id(), name: "other".into(), addresses: Vec::new() }, &[]).unwrap();
    }
    (lower, higher)
}

/// Has one site dial the other; on return this is the link of both.
async fn link_up(from: &Linked, to: &Linked) {
    let dialled = soon(from.transport.dial(to.transport.local_address().unwrap(), to.id())).await.unwrap();
    from.links.adopt(dialled);
    let is_it = |link: &Link| link.is_live() && link.direction() == Direction::Accepted;
    soon(to.links.changed().wait_for(|links| links.get(&from.id()).is_some_and(is_it))).await.unwrap();
}

fn ask(from: &Linked, to: &Linked) -> JoinHandle<Result<Answer, AskError>> {
    let (links, site) = (from.links.clone(), to.id());
    tokio::spawn(async move { request::ask(&links, &site, &Question::Ping, PATIENCE).await })
}

/// Another link carries the question in the end.
async fn asked_again(asker: &mut Linked, answerer: &mut Linked, cross: impl AsyncFnOnce(&Linked, &mut Linked)) {
    let asked = ask(asker, answerer);
    let first = soon(answerer.streams.recv()).await.unwrap();
    cross(asker, answerer).await;
    soon(first.link.closed()).await;
    let second = soon(answerer.streams.recv()).await.unwrap();
    assert!(second.link.is_live() && !second.link.is(&first.link));
    assert_eq!(request::question(&second).unwrap(), request::question(&first).unwrap());
    soon(request::answer(second, &Answer::Done)).await.unwrap();
    assert_eq!(soon(asked).await.unwrap(), Ok(Answer::Done));
}

#[tokio::test]
async fn a_question_is_asked_again_if_the_asker_gives_its_own_link_up_for_the_one_it_accepts() {
    let (mut lower, mut higher) = sites();
    link_up(&higher, &lower).await;
    asked_again(&mut higher, &mut lower, async |higher, lower| link_up(lower, higher).await).await;
}

#[tokio::test]
async fn a_question_is_asked_again_if_the_asker_gives_the_link_it_accepted_up_for_its_own() {
    let (mut lower, mut higher) = sites();
    link_up(&higher, &lower).await;
    asked_again(&mut lower, &mut higher, async |lower, higher| link_up(lower, higher).await).await;
}

#[tokio::test]
async fn a_site_that_is_busy_with_the_first_asking_is_asked_until_it_is_done() {
    let (mut lower, mut higher) = sites();
    link_up(&higher, &lower).await;
    let refused = Answer::Refused { code: "busy".into(), message: String::new() };
    let asked = ask(&lower, &higher);
    soon(request::answer(soon(higher.streams.recv()).await.unwrap(), &refused)).await.unwrap();
    assert_eq!(soon(asked).await.unwrap(), Ok(refused.clone()), "busy with something else");
    asked_again(&mut lower, &mut higher, async |lower, higher| {
        link_up(lower, higher).await;
        soon(request::answer(soon(higher.streams.recv()).await.unwrap(), &refused)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_question_whose_link_is_lost_is_not_asked_again() {
    let (mut lower, higher) = sites();
    link_up(&higher, &lower).await;
    let asked = ask(&higher, &lower);
    soon(lower.streams.recv()).await.unwrap();
    lower.transport.stop().await;
    match soon(asked).await.unwrap() {
        Err(AskError::Lost(StreamError::Closed(closed))) => assert_eq!(closed.code(), Some(CloseCode::Stopping)),
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(ask(&higher, &lower)).await.unwrap(), Err(AskError::NotConnected));
}

#[tokio::test]
async fn the_links_that_a_question_goes_over_share_one_deadline() {
    let (lower, higher) = sites();
    link_up(&higher, &lower).await;
    let deadline = Duration::from_millis(200);
    let (links, site) = (higher.links.clone(), lower.id());
    let asked = tokio::spawn(async move { request::ask(&links, &site, &Question::Ping, deadline).await });
    let replacing = async {
        loop {
            link_up(&lower, &higher).await;
        }
    };
    tokio::select! {
        () = replacing => {}
        ended = soon(asked) => assert_eq!(ended.unwrap(), Err(AskError::Late { deadline })),
    }
}
