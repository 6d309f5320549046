//! Views of recovery points that others read while the standby goes on.

use super::service::{Input, StandbyService, is_stopping};
use super::{PastError, Standby};
use crate::disk::{Pages, SegmentFiles};
use crate::undo::{Point, View};
use replicator_engine::block::Run;
use replicator_engine::tracker::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Most views of a volume: each may cost memory for every block that has undo.
const MAX_VIEWS: usize = 4;

type ViewId = u64;

/// What is asked of the thread that owns the standby.
pub(super) enum Ask {
    Open(Option<Epoch>, oneshot::Sender<Result<(ViewId, Point), PastError>>),
    OpenOld(oneshot::Sender<Result<(ViewId, Point), PastError>>),
    Read(ViewId, Run, mpsc::SyncSender<Result<Pages, PastError>>),
    Close(ViewId),
}

impl Ask {
    /// The standby cannot be opened.
    pub fn refuse(self, error: &dyn std::error::Error) {
        let refused = || PastError::Disk(io::Error::other(error.to_string()));
        // Whoever asked may be gone.
        match self {
            Self::Open(_, reply) | Self::OpenOld(reply) => drop(reply.send(Err(refused()))),
            Self::Read(_, _, reply) => drop(reply.send(Err(refused()))),
            Self::Close(_) => {}
        }
    }
}

/// The volume at a recovery point, which stays there until this is dropped.
pub struct OpenView {
    id: ViewId,
    point: Point,
    inbox: mpsc::Sender<Input>,
}

impl OpenView {
    pub(super) fn new(id: ViewId, point: Point, inbox: mpsc::Sender<Input>) -> Self {
        Self { id, point, inbox }
    }

    /// Its point.
    pub fn point(&self) -> Point {
        self.point
    }

    /// Reads `run`, which lies in the volume. Blocks, on the disk and on what the standby does before.
    pub fn read(&self, run: Run) -> Result<Pages, PastError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let asked = self.inbox.send(Input::View(Ask::Read(self.id, run, reply)));
        asked.ok().and_then(|()| answer.recv().ok()).unwrap_or_else(|| Err(is_stopping().into()))
    }
}

impl Drop for OpenView {
    fn drop(&mut self) {
        // A standby that is gone has closed it.
        let _ = self.inbox.send(Input::View(Ask::Close(self.id)));
    }
}

impl StandbyService {
    /// The volume at a point, or at the newest; it stays that, whatever is folded meanwhile.
    pub async fn open_view(&self, at: Option<Epoch>) -> Result<OpenView, PastError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::View(Ask::Open(at, reply)));
        let (id, point) = answer.await.unwrap_or_else(|_| Err(is_stopping().into()))?;
        Ok(OpenView::new(id, point, self.inbox.clone()))
    }

    /// The old primary's last state that is kept here.
    pub async fn open_old(&self) -> Result<OpenView, PastError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::View(Ask::OpenOld(reply)));
        let (id, point) = answer.await.unwrap_or_else(|_| Err(is_stopping().into()))?;
        Ok(OpenView::new(id, point, self.inbox.clone()))
    }

    /// Lets that go, for good.
    pub async fn forget_old(&self) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.tell(Input::ForgetOld(reply));
        answer.await.unwrap_or_else(|_| Err(is_stopping()))
    }
}

/// Those that are open. One whose point is gone stays, and gives errors.
#[derive(Default)]
pub(super) struct Views {
    open: BTreeMap<ViewId, (Epoch, Option<View>)>,
    /// Those of an old primary's last state.
    old: BTreeSet<ViewId>,
    last_id: ViewId,
}

impl Views {
    pub fn answer<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, ask: Ask) {
        match ask {
            Ask::Open(at, reply) => {
                if let Err(Ok((id, _))) = reply.send(self.open(standby, at)) {
                    self.close(standby, id);
                }
            }
            Ask::OpenOld(reply) => {
                let kept = standby.old_that_can_be_read().map_err(PastError::Disk);
                self.last_id += 1;
                let (id, is_kept) = (self.last_id, kept.is_ok());
                if reply.send(kept.map(|kept| (id, kept.point))).is_ok() && is_kept {
                    self.old.insert(id);
                }
            }
            Ask::Read(id, run, reply) if self.old.contains(&id) => drop(reply.send(standby.read_old(run))),
            Ask::Read(id, run, reply) => drop(reply.send(self.read(standby, id, run))),
            Ask::Close(id) if self.old.remove(&id) => {}
            Ask::Close(id) => self.close(standby, id),
        }
    }

    /// The standby was opened again: what was read of the one before is void.
    pub fn reopen<F: SegmentFiles>(&mut self, standby: &mut Standby<F>) {
        standby.tell_group();
        for (epoch, view) in self.open.values_mut().filter(|(_, view)| view.is_some()) {
            let reopened = standby.open_view(*epoch);
            *view = reopened.inspect_err(|error| tracing::warn!(epoch, %error, "a recovery point that is in use is lost")).ok();
        }
    }

    fn open<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, at: Option<Epoch>) -> Result<(ViewId, Point), PastError> {
        if self.open.len() == MAX_VIEWS {
            return Err(PastError::Disk(io::Error::other(format!("{MAX_VIEWS} recovery points are in use already"))));
        }
        let epoch = at.unwrap_or(standby.place().committed);
        let view = standby.open_view(epoch)?;
        let point = view.point;
        self.last_id += 1;
        self.open.insert(self.last_id, (epoch, Some(view)));
        Ok((self.last_id, point))
    }

    fn read<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, id: ViewId, run: Run) -> Result<Pages, PastError> {
        let (epoch, view) = self.open.get_mut(&id).ok_or(PastError::NotKept(0))?;
        let view = view.as_mut().ok_or(PastError::NotKept(*epoch))?;
        let mut content = Pages::new(run.len);
        standby.read_view(view, run, &mut content)?;
        Ok(content)
    }

    fn close<F: SegmentFiles>(&mut self, standby: &mut Standby<F>, id: ViewId) {
        if let Some((_, Some(view))) = self.open.remove(&id) {
            standby.close_view(&view);
        }
    }
}
