//! What a primary, and the status, see of a standby's thread.

use super::super::SegmentDir;
use super::super::tests::{BLOCK, Image, Primary, Site};
use super::*;
use replicator_engine::generation::{Id, Lineage};
use replicator_engine::wire::{Against, Attach, Compare, Envelope, Message, Refusal};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::sync::Semaphore;

const SOON: Duration = Duration::from_secs(60);

/// A standby with a recovery point, and the end of a stream to it.
struct Stream {
    service: StandbyService,
    image: Arc<Image>,
    primary: Primary,
    session: Session,
    answers: tokio_mpsc::Receiver<Bytes>,
}

impl Stream {
    fn open(capacity: usize) -> Self {
        let (site, image) = (Site::new(8, Base::Point), Image::new(8));
        let opened = image.clone();
        let open: Open<SegmentDir> = Box::new(move || Ok(site.open(&opened)));
        let service = StandbyService::start(open, ScrubPace::default(), ScrubBudget::default()).unwrap();
        let (sink, answers) = tokio_mpsc::channel(capacity);
        service.tell(Input::Connected(1, sink));
        Self { service, image, primary: Primary { blocks: 8, epoch: 0 }, session: 1, answers }
    }

    fn reconnect(&mut self) {
        self.service.tell(Input::Disconnected(self.session));
        self.connect();
    }

    /// One more stream; the one before is still there.
    fn connect(&mut self) {
        let (sink, answers) = tokio_mpsc::channel(8);
        self.session += 1;
        self.answers = answers;
        self.service.tell(Input::Connected(self.session, sink));
    }

    fn send(&self, frame: Bytes) {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        self.service.tell(Input::Frame(self.session, frame, room));
    }

    fn send_epoch(&mut self) {
        self.primary.epoch_frames(3, 7).into_iter().for_each(|frame| self.send(frame));
    }

    async fn answer(&mut self) -> Option<Message> {
        let answer = tokio::time::timeout(SOON, self.answers.recv()).await.unwrap();
        answer.map(|frame| Envelope::decode(frame).unwrap().message)
    }

    async fn status(&self, holds: impl FnMut(&StandbyStatus) -> bool) -> StandbyStatus {
        tokio::time::timeout(SOON, self.service.status().wait_for(holds)).await.unwrap().unwrap().clone()
    }
}

#[tokio::test]
async fn a_primary_that_asks_and_takes_no_answers_is_let_go() {
    let mut stream = Stream::open(2);
    stream.send(stream.primary.attach_frame());
    (0..5).for_each(|ticket| stream.send(Primary::frame(Message::Compare(Compare::new(ticket, Against::Point)))));
    stream.service.settle().await.unwrap();
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    assert!(matches!(stream.answer().await, Some(Message::Compared(_))));
    assert_eq!(stream.answer().await, None);
}

#[test]
fn a_scrub_that_is_due_waits_while_the_image_must_stay_as_it_is_and_while_its_disk_is_gone() {
    let (site, image) = (Site::new(8, Base::Point), Image::new(8));
    let pace = ScrubPace { every: Some(Duration::ZERO), ..ScrubPace::default() };
    let (mut shell, _status) = Shell::open(Box::new(move || Ok(site.open(&image))), Scrub::new(pace, ScrubBudget::default())).unwrap();
    assert_eq!(shell.scrub.wait(), Duration::ZERO);
    shell.settled = true;
    shell.scrub();
    assert!(shell.scrub.wait() > Duration::ZERO);
    (shell.settled, shell.standby, shell.scrub) = (false, None, Scrub::new(pace, ScrubBudget::default()));
    shell.scrub();
    assert!(shell.scrub.wait() > Duration::ZERO);
}

#[tokio::test]
async fn a_full_disk_is_one_state_until_everything_is_folded() {
    let mut stream = Stream::open(8);
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    stream.image.full.store(true, SeqCst);
    stream.send_epoch();
    assert_eq!(stream.answer().await, Some(Message::Committed(1)));
    assert!(matches!(stream.answer().await, Some(Message::Refused(refused)) if refused.reason == Refusal::Storage));
    let suspended = stream.status(|status| status.error.is_some() && !status.attached).await;
    assert!(suspended.full && suspended.committed == 1, "{suspended:?}");

    let mut status = stream.service.status();
    status.mark_unchanged();
    for _ in 0..3 {
        stream.reconnect();
        stream.send(stream.primary.attach_frame());
        assert!(matches!(stream.answer().await, Some(Message::Refused(refused)) if Some(&refused.text) == suspended.error.as_ref()));
        assert_eq!(stream.answer().await, None);
        assert_eq!(*status.borrow(), suspended);
    }

    stream.image.full.store(false, SeqCst);
    stream.reconnect();
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    let resumed = stream.status(|status| status.error.is_none()).await;
    assert_eq!((resumed.full, stream.image.bytes()[3]), (false, 7));
}

#[tokio::test]
async fn a_primary_is_attached_once_it_was_taken_and_has_caught_up_with_its_first_epoch() {
    let mut stream = Stream::open(8);
    // It says nothing yet; of another volume it would be refused.
    stream.send(Primary::frame(Message::Abandon));
    assert!(matches!(stream.answer().await, Some(Message::Refused(_))));
    let seen = stream.service.status().borrow().clone();
    assert_eq!((seen.attached, seen.caught_up, seen.cut_unix_ms), (false, false, None));
    stream.reconnect();
    stream.send(stream.primary.attach_frame());
    let seen = stream.status(|status| status.attached).await;
    assert!(seen.has_point && !seen.caught_up);
    let [blocks, commit] = stream.primary.epoch_frames(3, 7);
    stream.send(blocks);
    assert!(!stream.status(|status| status.staged).await.caught_up);
    stream.send(commit);
    assert_eq!(stream.status(|status| status.caught_up).await.cut_unix_ms, Some(1001));
    stream.reconnect();
    assert_eq!(stream.status(|status| !status.attached).await.cut_unix_ms, Some(1001));
}

fn attach_frame(lineage: Lineage) -> Bytes {
    let generation = lineage.current();
    Envelope { generation, message: Message::Attach(Attach { volume: Id([7; 16]), size_bytes: 8 * BLOCK, lineage }) }.encode()
}

#[tokio::test]
async fn a_stream_that_begins_beside_an_attached_primary_takes_its_place_once_it_is_judged() {
    let mut stream = Stream::open(8);
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    stream.connect();
    let (first, second) = (stream.session - 1, stream.session);
    // A frame that is no attach, as the first of its stream.
    stream.send(Primary::frame(Message::Abandon));
    assert!(matches!(stream.answer().await, Some(Message::Refused(refused)) if refused.reason == Refusal::Protocol));
    assert_eq!(stream.answer().await, None);
    stream.session = first;
    stream.send_epoch();
    assert_eq!(stream.status(|status| status.caught_up).await.session, Some(first));
    stream.session = second;
    stream.connect();
    assert_eq!(stream.status(|_| true).await.session, Some(first), "it has not said yet whose it is");
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    let third = stream.session;
    stream.status(|status| status.session == Some(third)).await;
}

#[tokio::test]
async fn a_standby_that_learned_of_a_later_generation_acknowledges_nothing_for_the_one_before() {
    let mut stream = Stream::open(8);
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Attached(_))));
    stream.send_epoch();
    assert_eq!(stream.answer().await, Some(Message::Committed(1)));
    let mine = stream.status(|status| status.caught_up).await.lineage.unwrap();
    // It branched before the epoch that is committed here.
    let later = mine.promoted(Id([9; 16]), 0);
    let mut attached = std::mem::replace(&mut stream.answers, tokio_mpsc::channel(1).1);
    stream.connect();
    stream.send(attach_frame(later.clone()));
    assert!(matches!(stream.answer().await, Some(Message::Refused(refused)) if refused.reason == Refusal::Diverged));
    let told = Envelope::decode(attached.recv().await.unwrap()).unwrap().message;
    assert!(matches!(told, Message::Refused(refused) if refused.reason == Refusal::Stale && refused.lineage == later));
    assert_eq!(attached.recv().await, None);
    assert_eq!(stream.status(|status| !status.attached).await.rival, Some(later));
    stream.connect();
    stream.send(stream.primary.attach_frame());
    assert!(matches!(stream.answer().await, Some(Message::Refused(refused)) if refused.reason == Refusal::Stale));
}
