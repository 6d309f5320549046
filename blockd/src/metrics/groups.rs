//! The part of the page that tells of consistency groups.

use super::collect::Scrape;
use blockd_api::GroupStatus;
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::fmt;

type Read = fn(&GroupStatus) -> Option<f64>;

const NUMBERS: &[(&str, &str, MetricType, Read)] = &[
    ("group_promise_held", "1 if every member's promise holds and all are cut together", MetricType::Gauge, |group| {
        Some(f64::from(u8::from(group.promise_held)))
    }),
    ("group_point_age_seconds", "Time since the newest recovery point that all members have was cut", MetricType::Gauge, |group| {
        group.point_age_seconds
    }),
    ("group_cuts", "Cuts of all members", MetricType::Counter, |group| Some(group.cuts as f64)),
    ("group_cuts_given_up", "Cuts given up because writes would have been held for too long", MetricType::Counter, |group| {
        Some(group.cuts_given_up as f64)
    }),
];

impl Scrape {
    pub(super) fn encode_groups(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        for (name, help, kind, read) in NUMBERS {
            let mut family = encoder.encode_descriptor(name, &format!("{help}."), None, *kind)?;
            for group in &self.status.groups {
                if let Some(value) = read(group) {
                    family.encode_family(&[("group", group.name.as_str())])?.encode_gauge(&value)?;
                }
            }
        }
        let help = "For how long the writes of all members were held for a cut.";
        let mut family = encoder.encode_descriptor("group_hold_seconds", help, None, MetricType::Histogram)?;
        for (name, holds) in &self.holds {
            let snapshot = holds.snapshot();
            let labels = [("group", name.as_str())];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(snapshot.sum_seconds, snapshot.count, &snapshot.buckets, None)?;
        }
        Ok(())
    }
}
