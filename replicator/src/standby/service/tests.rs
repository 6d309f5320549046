//! What a primary, and the status, see of a standby's thread.

use super::super::SegmentDir;
use super::super::tests::{Image, Primary, Site};
use super::*;
use replicator_engine::wire::{Against, Compare};
use std::sync::Arc;
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
        let service = StandbyService::start(open).unwrap();
        let (sink, answers) = tokio_mpsc::channel(capacity);
        service.tell(Input::Connected(1, sink));
        Self { service, image, primary: Primary { blocks: 8, epoch: 0 }, session: 1, answers }
    }

    fn reconnect(&mut self) {
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
