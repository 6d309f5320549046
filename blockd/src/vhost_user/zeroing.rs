//! A thread that makes holes and zeroes: file systems do that in the foreground.

use super::mailbox::{Debt, Message};
use crate::request::Space;
use crate::store::Image;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// A range that is to read as zeroes.
pub(super) struct Job {
    /// The operation that waits for it.
    pub(super) key: usize,
    pub(super) debt: Debt,
    pub(super) space: Space,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// Starts the thread. It ends when every sender is gone. Its queue is as long as the connection has operations, at most.
pub(super) fn start(image: Image) -> io::Result<(Sender<Job>, JoinHandle<()>)> {
    let (sender, jobs) = mpsc::channel();
    let thread = std::thread::Builder::new().name("vhost-zero".into()).spawn(move || serve(&image, &jobs))?;
    Ok((sender, thread))
}

fn serve(image: &Image, jobs: &Receiver<Job>) {
    for job in jobs {
        let result = match job.space {
            Space::MayFree => image.punch(job.offset, job.len_bytes),
            Space::Keep => image.zero(job.offset, job.len_bytes),
        };
        job.debt.answer(Message::Zeroed(job.key, result));
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Mailbox;
    use super::*;
    use std::sync::Arc;

    #[test]
    fn whoever_waits_for_a_thread_that_has_failed_is_told() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let (sender, jobs) = mpsc::channel();
        let send = |key| {
            let debt = Debt::new(&mailbox, Message::Zeroed(key, Err(io::ErrorKind::Other.into())));
            let _ = sender.send(Job { key, debt, space: Space::Keep, offset: 0, len_bytes: 4096 });
        };
        [1, 2].into_iter().for_each(send);
        let failing = std::thread::spawn(move || {
            let _job = jobs.recv();
            panic!("as a fault of ours would");
        });
        assert!(failing.join().is_err());
        send(3);
        let told = mailbox.take().into_iter().map(|message| match message {
            Message::Zeroed(key, Err(_)) => key,
            _ => panic!("another message"),
        });
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        assert_eq!(told, [1, 2, 3], "each once");
    }
}
