//! Carries out checked requests on a volume's image, through the ring of the thread that it runs on.

use super::exports::Served;
use super::rings::Ring;
use super::transmission::{Extent, Order, describe};
use crate::request::{Durability, Op, Request, Space};
use crate::store::{AlignedBuf, Image, PAGE_BYTES};
use crate::volume::{Admission, Pass};
use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

/// Zeroes of one admission: a write that waits for another must not hold up a whole disk.
const ZERO_BYTES: u64 = 64 << 20;

/// The client is gone: what has not begun need not begin.
#[derive(Debug, Default)]
pub(super) struct Gone {
    flag: Cell<bool>,
    rings: Notify,
}

impl Gone {
    pub(super) fn set(&self) {
        self.flag.set(true);
        self.rings.notify_waiters();
    }

    async fn wait(&self) {
        // Both belong to one thread: nothing comes between the look and the wait.
        if !self.flag.get() {
            self.rings.notified().await;
        }
    }
}

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum Undone {
    /// Nobody waits for it any more.
    Gone,
    /// It failed.
    Failed(io::Error),
}

impl From<io::Error> for Undone {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A volume, as one connection uses it.
pub(super) struct Disk {
    served: Arc<Served>,
    file: File,
    align: u64,
    ring: Rc<Ring>,
    pub(super) gone: Gone,
}

impl Disk {
    pub(super) fn open(served: Arc<Served>, ring: Rc<Ring>) -> io::Result<Self> {
        let image = &served.volume.image;
        let (file, align) = (File::from_std(image.try_clone_file()?), image.align_bytes());
        Ok(Self { served, file, align, ring, gone: Gone::default() })
    }

    fn image(&self) -> &Image {
        &self.served.volume.image
    }

    /// A buffer for the data of a request, and where the data lies in it: at the same distance from a multiple of the image's alignment as
    /// on the disk.
    pub(super) fn buffer(&self, request: Request) -> (AlignedBuf, Range<usize>) {
        let around = self.around(request.offset, request.len_bytes);
        let start = (request.offset - around.start) as usize;
        let buf = self.ring.pool.borrow_mut().take((around.end - around.start) as usize);
        (buf, start..start + request.len_bytes as usize)
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&self, buf: AlignedBuf) {
        self.ring.pool.borrow_mut().give(buf);
    }

    /// Reads into a buffer that was made for the request.
    pub(super) async fn read(&self, request: Request, buf: AlignedBuf) -> Result<AlignedBuf, Undone> {
        let pass = self.admit(request).await?;
        let around = self.around(request.offset, request.len_bytes);
        let result = self.read_aligned(buf, around.start).await;
        Ok(self.served.volume.complete(pass, result)?)
    }

    /// Writes a buffer that was made for the request, with the data in its place.
    pub(super) async fn write(&self, order: Order, buf: AlignedBuf) -> Result<(), Undone> {
        let pass = self.admit(order.request).await?;
        let result = self.write_admitted(order, buf).await;
        Ok(self.served.volume.complete(pass, result)?)
    }

    /// Everything that moves no data.
    pub(super) async fn change(&self, order: Order) -> Result<(), Undone> {
        match order.request.op {
            Op::Flush => self.flush().await,
            Op::Discard | Op::WriteZeroes(Space::MayFree, _) => self.zero(order, Space::MayFree).await,
            Op::WriteZeroes(Space::Keep, _) => self.zero(order, Space::Keep).await,
            // To cache is nothing that a direct store can do. The others come with data.
            Op::Cache | Op::Read | Op::Write(_) => Ok(()),
        }
    }

    /// Tells what lies in a range.
    pub(super) async fn describe(&self, request: Request, max_extents: usize) -> Result<Vec<Extent>, Undone> {
        let pass = self.admit(request).await?;
        let image = self.image().clone();
        let range = request.offset..request.offset + request.len_bytes;
        let result = self.off_the_ring(move || describe(range.clone(), image.allocated(range), max_extents)).await;
        Ok(self.served.volume.complete(pass, result)?)
    }

    /// Waits until the request may be carried out.
    async fn admit(&self, request: Request) -> Result<Pass, Undone> {
        let volume = &self.served.volume;
        loop {
            let (sender, answer) = oneshot::channel();
            let waiter = || -> crate::volume::Waiter { Box::new(move |pass| drop(sender.send(pass))) };
            match volume.admit(request, waiter) {
                Admission::Granted(pass) => return Ok(pass),
                Admission::Pending => {
                    // Waited for even if the client is gone: the pass has to be handed back.
                    let answer = answer.await.unwrap_or_else(|_| Err(io::Error::other("the volume is being closed")));
                    return answer.map_err(|error| {
                        volume.abandon();
                        Undone::Failed(error)
                    });
                }
                Admission::Closed => tokio::select! {
                    biased;
                    () = self.gone.wait() => return Err(Undone::Gone),
                    () = volume.gate.opened() => {}
                },
            }
        }
    }

    async fn write_admitted(&self, order: Order, buf: AlignedBuf) -> io::Result<()> {
        let Request { offset, len_bytes, .. } = order.request;
        let around = self.around(offset, len_bytes);
        if around == (offset..offset + len_bytes) {
            let _edges = self.served.edges.read().await;
            self.write_aligned(buf, offset).await?;
        } else {
            let _edges = self.served.edges.write().await;
            let buf = self.complete_edges(buf, around.clone(), offset..offset + len_bytes).await?;
            self.write_aligned(buf, around.start).await?;
        }
        if order.durability == Durability::Durable {
            self.sync().await?;
        }
        Ok(())
    }

    /// Reads what the image has in the first and last sector of `around` outside of `data`, and puts it into `buf`.
    async fn complete_edges(&self, mut buf: AlignedBuf, around: Range<u64>, data: Range<u64>) -> io::Result<AlignedBuf> {
        if around.start < data.start {
            let sector = self.read_sector(around.start).await?;
            let len = (data.start - around.start) as usize;
            buf[..len].copy_from_slice(&sector[..len]);
        }
        if data.end < around.end {
            let sector = self.read_sector(around.end - self.align).await?;
            let len = (around.end - data.end) as usize;
            let (to, from) = (buf.len() - len, sector.len() - len);
            buf[to..].copy_from_slice(&sector[from..]);
        }
        Ok(buf)
    }

    async fn read_sector(&self, offset: u64) -> io::Result<AlignedBuf> {
        self.read_aligned(AlignedBuf::new(self.align as usize), offset).await
    }

    async fn flush(&self) -> Result<(), Undone> {
        let pass = self.admit(Request { op: Op::Flush, offset: 0, len_bytes: 0 }).await?;
        let result = self.sync().await;
        Ok(self.served.volume.complete(pass, result)?)
    }

    /// Whole pages by the file system's means, what sticks out by writing zeroes, in parts that are admitted one after the other.
    async fn zero(&self, order: Order, space: Space) -> Result<(), Undone> {
        let Request { op, offset, len_bytes } = order.request;
        let (mut at, end) = (offset, offset + len_bytes);
        while at < end {
            let to = next_part(at, end);
            let part = Request { op, offset: at, len_bytes: to - at };
            let pass = self.admit(part).await?;
            let result = if (at | to).is_multiple_of(PAGE_BYTES) {
                let _edges = self.served.edges.read().await;
                let image = self.image().clone();
                self.off_the_ring(move || match space {
                    Space::MayFree => image.punch(at, to - at),
                    Space::Keep => image.zero(at, to - at),
                })
                .await
            } else {
                let (mut buf, data) = self.buffer(part);
                buf[data].fill(0);
                self.write_admitted(Order { request: part, durability: Durability::Cached }, buf).await
            };
            self.served.volume.complete(pass, result)?;
            at = to;
        }
        if order.durability == Durability::Durable {
            self.flush().await?;
        }
        Ok(())
    }

    /// Runs what would block the ring's thread on another one.
    async fn off_the_ring<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let _helper = self.ring.helpers.acquire().await.map_err(io::Error::other)?;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn around(&self, offset: u64, len_bytes: u64) -> Range<u64> {
        offset / self.align * self.align..(offset + len_bytes).next_multiple_of(self.align)
    }

    async fn sync(&self) -> io::Result<()> {
        self.image().note_sync(self.file.sync_data().await)
    }

    async fn read_aligned(&self, buf: AlignedBuf, offset: u64) -> io::Result<AlignedBuf> {
        let len = buf.len();
        let (bytes, shape) = buf.into_parts();
        let (result, slice) = self.file.read_exact_at(bytes.slice(shape.data(0..len)), offset).await;
        result.map(|()| AlignedBuf::from_parts(slice.into_inner(), shape))
    }

    async fn write_aligned(&self, buf: AlignedBuf, offset: u64) -> io::Result<()> {
        let len = buf.len();
        let (bytes, shape) = buf.into_parts();
        let (result, slice) = self.file.write_all_at(bytes.slice(shape.data(0..len)), offset).await;
        self.recycle(AlignedBuf::from_parts(slice.into_inner(), shape));
        result
    }
}

/// Where the part of a range of zeroes ends that begins at `at`: at the next page boundary, or after as many whole pages as are done at once.
fn next_part(at: u64, end: u64) -> u64 {
    let page_end = end / PAGE_BYTES * PAGE_BYTES;
    if at.is_multiple_of(PAGE_BYTES) && at < page_end {
        page_end.min(at.saturating_add(ZERO_BYTES))
    } else {
        end.min((at / PAGE_BYTES + 1) * PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_cut_into_whole_pages_and_what_sticks_out() {
        let parts = |offset: u64, len: u64| {
            std::iter::successors(Some(offset), |at| Some(next_part(*at, offset + len)))
                .take_while(|at| *at < offset + len)
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(0, 8192), [0]);
        assert_eq!(parts(1, 10), [1]);
        assert_eq!(parts(4095, 2), [4095, 4096]);
        assert_eq!(parts(512, 12288), [512, 4096, 12288]);
        assert_eq!(parts(4096, 2 * ZERO_BYTES + 1), [4096, 4096 + ZERO_BYTES, 4096 + 2 * ZERO_BYTES]);
    }
}
