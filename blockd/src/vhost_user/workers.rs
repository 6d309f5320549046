//! The threads of a connection's queues, as its front end sees them.
//!
//! Queue `q` is number `q / threads` of thread `q % threads`. A thread begins with the first queue that needs it.

use super::device::Device;
use super::handler::QUEUES;
use super::mailbox::{Control, Mailbox, Message};
use super::queue::{Change, Setup};
use super::service::VhostUserOptions;
use super::worker::Worker;
use super::zeroing::Job;
use crate::bells::Rope;
use crate::debt::Inbox;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::GuestMemoryMmap;

/// See the module's documentation. Dropped, it completes what was begun, and ends the threads.
pub(super) struct Workers {
    client: UnixStream,
    device: Arc<Device>,
    zeroing: Sender<Job>,
    cpus: Arc<[usize]>,
    poll: Duration,
    threads: Vec<Option<Thread>>,
}

struct Thread {
    mailbox: Arc<Mailbox>,
    handle: JoinHandle<()>,
    /// Rings when the volume's gate changes.
    _bell: Rope,
}

impl Workers {
    /// As many threads at most as the options say, none of which runs yet, for the client at `client`.
    pub(super) fn new(client: UnixStream, device: Arc<Device>, zeroing: Sender<Job>, options: &VhostUserOptions) -> Self {
        let threads = (0..options.threads.clamp(1, QUEUES)).map(|_| None).collect();
        Self { client, device, zeroing, cpus: options.cpus.clone(), poll: options.poll, threads }
    }

    /// The number of a queue within its thread.
    pub(super) fn place(&self, queue: usize) -> usize {
        queue / self.threads.len()
    }

    /// Has a queue run, with its rings in `memory`.
    pub(super) fn start(&mut self, setup: Setup, memory: &Arc<GuestMemoryMmap>) -> io::Result<()> {
        let index = setup.number % self.threads.len();
        if self.threads[index].is_none() {
            self.threads[index] = Some(self.spawn(index, memory.clone())?);
        }
        self.ask(setup.number, |done| Control::Start(Box::new(setup), done)).unwrap_or_else(|| Err(gone()))
    }

    /// Changes a queue, if it runs.
    pub(super) fn change(&self, queue: usize, change: Change) -> io::Result<()> {
        self.ask(queue, |done| Control::Change(self.place(queue), change, done)).ok_or_else(gone)
    }

    /// Has a queue complete what it has taken, and stop. Returns what it would take next; `None` if it did not run.
    pub(super) fn stop(&self, queue: usize) -> io::Result<Option<u16>> {
        self.ask(queue, |done| Control::Stop(self.place(queue), done)).ok_or_else(gone)
    }

    /// Has all queues find their rings and chains in `memory` from now on.
    pub(super) fn use_memory(&self, memory: &Arc<GuestMemoryMmap>) -> io::Result<()> {
        let mut running = self.threads.iter().flatten();
        running.try_for_each(|thread| thread.ask(|done| Control::Memory(memory.clone(), done)).ok_or_else(gone))
    }

    fn ask<T>(&self, queue: usize, control: impl FnOnce(Sender<T>) -> Control) -> Option<T> {
        self.threads[queue % self.threads.len()].as_ref()?.ask(control)
    }

    fn spawn(&self, index: usize, memory: Arc<GuestMemoryMmap>) -> io::Result<Thread> {
        let mailbox = Arc::new(Mailbox::new()?);
        let (started, start) = mpsc::channel();
        let (device, zeroing, places) = (self.device.clone(), self.zeroing.clone(), QUEUES.div_ceil(self.threads.len()));
        let poll = self.poll;
        let cpu = self.cpus.get(index % self.cpus.len().max(1)).copied();
        let run = {
            let (mailbox, client) = (mailbox.clone(), HangUp(self.client.try_clone()?));
            move || {
                // Dropped after the worker.
                let _client = client;
                let worker = pin(cpu).and_then(|()| Worker::new(device, memory, mailbox, zeroing, places, poll));
                let (worker, result) = worker.map_or_else(|error| (None, Err(error)), |worker| (Some(worker), Ok(())));
                let _ = started.send(result);
                worker.into_iter().for_each(Worker::run);
            }
        };
        let handle = std::thread::Builder::new().name("vhost-queues".into()).spawn(run)?;
        start.recv().unwrap_or_else(|_| Err(gone()))?;
        let _bell = {
            let mailbox = mailbox.clone();
            self.device.volume.gate.bells().add(move || mailbox.ring())
        };
        // It may have changed before there was a bell.
        mailbox.ring();
        Ok(Thread { mailbox, handle, _bell })
    }
}

impl Thread {
    /// Asks and waits for the answer; `None` if the thread has failed.
    fn ask<T>(&self, control: impl FnOnce(Sender<T>) -> Control) -> Option<T> {
        let (done, answer) = mpsc::channel();
        self.mailbox.send(Message::Control(control(done)));
        // A thread that has ended has dropped its end, or will never look: the mailbox is then dropped with us.
        loop {
            match answer.recv_timeout(LIVENESS_PERIOD) {
                Ok(answer) => return Some(answer),
                Err(mpsc::RecvTimeoutError::Timeout) if !self.handle.is_finished() => {}
                Err(_) => return None,
            }
        }
    }
}

/// Hangs up if its thread panics: the guest would wait for ever. The client connects anew, and what was in flight is finished by new threads.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A client that is gone already needs no hanging up.
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

/// How often whoever waits for a thread looks whether it is still there.
const LIVENESS_PERIOD: Duration = Duration::from_secs(1);

fn gone() -> io::Error {
    io::Error::other("the thread of the queue has failed")
}

fn pin(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

impl Drop for Workers {
    fn drop(&mut self) {
        let threads: Vec<Thread> = self.threads.drain(..).flatten().collect();
        threads.iter().for_each(|thread| thread.mailbox.send(Message::Control(Control::Close)));
        for thread in threads {
            if thread.handle.join().is_err() {
                tracing::error!(volume = self.device.volume.name, "vhost-user: a thread of queues failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_client_whose_thread_has_failed_is_hung_up_on_and_no_other() {
        let [(served, mut client), (other, mut another)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let [fails, ends] = [&served, &other].map(|stream| HangUp(stream.try_clone().unwrap()));
        let failed = std::thread::spawn(move || {
            let _client = fails;
            panic!("as a fault of ours would");
        });
        assert!(failed.join().is_err());
        std::thread::spawn(move || drop(ends)).join().unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        another.set_nonblocking(true).unwrap();
        assert_eq!(another.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
