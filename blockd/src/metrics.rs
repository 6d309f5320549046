//! What Prometheus sees: the fields of the status, and how long things take.
//!
//! Durations are recorded by whoever completes a request, without a lock and without an allocation: a [`VolumeMetrics`] is fetched once
//! per front end, not per request. Everything else is read from the status when somebody asks, so that no number exists twice.
//!
//! Samples have exactly the names of the contract (`tern_wire_bytes_sent`, no `_total`), which is Prometheus's text format 0.0.4 and not
//! OpenMetrics.

mod collect;
mod groups;
mod histogram;
mod http;

pub use histogram::Histogram;
pub use http::serve;

use crate::events::Teller;
use crate::request::Op;
use blockd_api::{PeerList, Status, VolumeName};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What a client's request asked for, as the label `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RequestOp {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
}

impl RequestOp {
    /// As what a request is measured, if it is.
    pub fn of(op: Op) -> Option<Self> {
        match op {
            Op::Read => Some(Self::Read),
            Op::Write(_) => Some(Self::Write),
            Op::Flush => Some(Self::Flush),
            Op::Discard => Some(Self::Discard),
            Op::WriteZeroes(..) => Some(Self::WriteZeroes),
            Op::Cache => None,
        }
    }

    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }
}

/// The durations of one volume.
#[derive(Debug, Default)]
pub struct VolumeMetrics {
    requests: [Histogram; RequestOp::ALL.len()],
    /// From a flush's or a FUA write's arrival to its acknowledgement.
    pub flush: Histogram,
    /// From an epoch's cut to its commit.
    pub epoch_commit: Histogram,
}

impl VolumeMetrics {
    /// The durations of one kind of request, from its arrival to its acknowledgement.
    pub fn request(&self, op: RequestOp) -> &Histogram {
        &self.requests[op as usize]
    }

    /// Records a request that was acknowledged after `elapsed`.
    pub fn observe_request(&self, op: RequestOp, elapsed: Duration) {
        self.request(op).observe(elapsed);
        if op == RequestOp::Flush {
            self.flush.observe(elapsed);
        }
    }
}

/// The metrics of all volumes.
#[derive(Debug)]
pub struct Metrics {
    volumes: Mutex<BTreeMap<VolumeName, Arc<VolumeMetrics>>>,
    teller: Arc<Teller>,
    /// For how long each group's writes were held for a cut.
    groups: Mutex<BTreeMap<VolumeName, Arc<Histogram>>>,
}

impl Metrics {
    /// Those of a daemon whose events this one tells.
    pub fn new(teller: Arc<Teller>) -> Self {
        Self { volumes: Mutex::default(), groups: Mutex::default(), teller }
    }

    /// The handles of a volume, made at the first call. To be kept, not asked for per request.
    pub fn volume(&self, name: &VolumeName) -> Arc<VolumeMetrics> {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(volumes.entry(name.clone()).or_default())
    }

    /// For how long a group's writes are held for a cut, made at the first call.
    pub fn group(&self, name: &VolumeName) -> Arc<Histogram> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(groups.entry(name.clone()).or_default())
    }

    /// Forgets a group that has ended.
    pub fn remove_group(&self, name: &VolumeName) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Forgets a deleted volume.
    pub fn remove_volume(&self, name: &VolumeName) {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The page that Prometheus reads.
    pub fn encode(&self, status: Status, peers: PeerList) -> Result<String, std::fmt::Error> {
        let durations = self.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let holds = self.groups.lock().unwrap_or_else(PoisonError::into_inner).clone();
        collect::encode(collect::Scrape { status, peers, durations, events: self.teller.counts().collect(), holds })
    }
}
