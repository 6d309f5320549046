//! A workload as `fio` carries it out.

use super::workload::{Op, Order, Workload};
use crate::load::{Disk, Load, Transferred};
use anyhow::Result;
use std::time::Duration;

impl Workload {
    /// Loads all disks at once, each as deep as this says; returns the sum.
    pub fn fio(&self, disks: &[Disk], duration: Duration) -> Result<Transferred> {
        let rw = match (self.order, self.op) {
            (Order::Random, Op::Read) => "randread",
            (Order::Random, _) => "randwrite",
            (Order::Sequential, Op::Read) => "read",
            (Order::Sequential, _) => "write",
        };
        let (rw, runtime) = (format!("--rw={rw}"), format!("--runtime={}ms", duration.as_millis()));
        let (size, depth) = (format!("--bs={}", self.block_bytes), format!("--iodepth={}", self.depth));
        let mut options = vec![&*rw, &runtime, &size, &depth, "--time_based", "--norandommap"];
        options.extend(["--lat_percentiles=1", "--percentile_list=50:99:99.9"]);
        let load = if self.op == Op::WriteFlush {
            let flushed: Vec<_> = disks.iter().map(Disk::flushed).collect();
            Load::run(&flushed, &options, duration)?
        } else {
            Load::run(disks, &options, duration)?
        };
        let done = load.finish()?;
        Ok(if self.op == Op::Read { done.read } else { done.write })
    }
}
