//! A thread that makes holes and zeroes: file systems do that in the foreground.

use super::mailbox::{Mailbox, Message};
use crate::request::Space;
use crate::store::Image;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// A range that is to read as zeroes.
pub(super) struct Job {
    pub(super) mailbox: Arc<Mailbox>,
    /// The operation's, for the answer.
    pub(super) key: usize,
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
        job.mailbox.send(Message::Zeroed(job.key, result));
    }
}
