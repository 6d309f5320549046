//! The page, from one look at everything.

use super::{Histogram, RequestOp, VolumeMetrics};
use crate::events::Kind;
use blockd_api::{FrontEnd, Mode, PeerList, Role, State, Status, VolumeName, VolumeStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What one page is made of.
#[derive(Debug)]
pub struct Scrape {
    /// All volumes.
    pub status: Status,
    /// All links.
    pub peers: PeerList,
    /// What the front ends recorded.
    pub durations: BTreeMap<VolumeName, Arc<VolumeMetrics>>,
    /// What happened how often.
    pub events: Vec<(Kind, u64)>,
    /// For how long groups were held.
    pub holds: BTreeMap<VolumeName, Arc<Histogram>>,
}

/// The page.
pub fn encode(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tern");
    registry.register_collector(Box::new(scrape));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

type Read<T> = fn(&VolumeStatus) -> T;

/// Whole numbers of a volume's status.
const WHOLE: &[(&str, &str, MetricType, Read<u64>)] = &[
    ("size_bytes", "Size of the volume", MetricType::Gauge, |volume| volume.size_bytes),
    ("promise_held", "1 if a disaster now costs no more than the mode says", MetricType::Gauge, |volume| volume.promise_held.into()),
    ("generation", "Counter of the newest generation", MetricType::Gauge, |volume| volume.generation),
    ("epoch_open", "The epoch that collects changes", MetricType::Gauge, |volume| volume.epoch_open),
    ("epoch_committed", "The newest recovery point", MetricType::Gauge, |volume| volume.epoch_committed),
    ("backlog_bytes", "What is still to send, uncompressed", MetricType::Gauge, |volume| volume.backlog_bytes),
    ("dirty_blocks", "Blocks of 4 KiB that may differ from the standby", MetricType::Gauge, |volume| volume.dirty_blocks),
    ("points", "Recovery points that a standby holds", MetricType::Gauge, |volume| volume.points),
    ("undo_bytes", "What the older recovery points take on a standby's disk", MetricType::Gauge, |volume| volume.undo_bytes),
    ("kept_bytes", "What an old state that is kept takes on a standby's disk", MetricType::Gauge, |volume| volume.kept_bytes),
    ("error", "1 if last_error is set", MetricType::Gauge, |volume| volume.last_error.is_some().into()),
    ("changed_bytes", "What clients wrote", MetricType::Counter, |volume| volume.changed_bytes),
    ("wire_bytes_sent", "What went out, headers included", MetricType::Counter, |volume| volume.wire_bytes_sent),
    ("wire_bytes_received", "What came in, headers included", MetricType::Counter, |volume| volume.wire_bytes_received),
    ("zero_blocks", "Blocks sent as zeroes", MetricType::Counter, |volume| volume.zero_blocks),
    ("duplicate_blocks", "Blocks that the standby had already", MetricType::Counter, |volume| volume.duplicate_blocks),
    ("delta_blocks", "Blocks sent as a difference", MetricType::Counter, |volume| volume.delta_blocks),
    ("full_blocks", "Blocks sent whole", MetricType::Counter, |volume| volume.full_blocks),
];

/// Numbers that are not always known; no sample then.
const OPTIONAL: &[(&str, &str, Read<Option<f64>>)] = &[
    ("rpo_seconds", "Age of the oldest acknowledged write that is not in a committed epoch", |volume| volume.rpo_seconds),
    ("lease_left_seconds", "What is left of the lease that this primary needs", |volume| volume.lease.as_ref()?.left_seconds),
    ("scrub_damaged_blocks", "Blocks that a standby's disk has lost, and that are to be sent again", |volume| {
        Some(volume.scrub.as_ref()?.damaged_blocks as f64)
    }),
    ("scrub_found_blocks", "Lost blocks that were found, ever", |volume| Some(volume.scrub.as_ref()?.found_blocks as f64)),
    ("scrub_repaired_blocks", "Lost blocks that were sent again, ever", |volume| Some(volume.scrub.as_ref()?.repaired_blocks as f64)),
    ("scrub_unknown_blocks", "Blocks of a standby that cannot be checked before a verify", |volume| {
        Some(volume.scrub.as_ref()?.unknown_blocks as f64)
    }),
    ("scrub_timestamp_seconds", "When a standby's image was looked through last", |volume| {
        Some(volume.scrub.as_ref()?.last?.unix_seconds() as f64)
    }),
    ("verify_blocks_compared", "Blocks that the last comparison with the standby looked at", |volume| {
        Some(volume.verified.as_ref()?.blocks_compared as f64)
    }),
    ("verify_blocks_different", "Blocks that it found different", |volume| Some(volume.verified.as_ref()?.blocks_different as f64)),
    ("verify_failed", "1 if it could not be done", |volume| Some(f64::from(u8::from(volume.verified.as_ref()?.error.is_some())))),
    ("verify_timestamp_seconds", "When it ended", |volume| Some(volume.verified.as_ref()?.time.unix_seconds() as f64)),
    ("rpo_target_seconds", "The age that was asked for", |volume| volume.rpo_target_seconds),
    ("evacuation_seconds", "How long an evacuation would take now", |volume| volume.evacuation_seconds),
    ("point_age_seconds", "Time since the newest recovery point was cut", |volume| volume.point_age_seconds),
    ("next_cut_timestamp_seconds", "When the next cut is due by its schedule", |volume| {
        volume.next_cut.map(|time| time.unix_seconds() as f64)
    }),
    ("bandwidth_bits_per_second", "Most that may be sent now", |volume| volume.bandwidth_bits_per_second.map(|bits| bits as f64)),
];

type Is<T> = fn(&VolumeStatus, T) -> bool;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        for (name, help, kind, read) in WHOLE {
            self.samples(encoder, name, help, *kind, |volume| Some(read(volume)))?;
        }
        for (name, help, read) in OPTIONAL {
            self.samples(encoder, name, help, MetricType::Gauge, read)?;
        }
        self.words(encoder, "role", Role::ALL, Role::as_str, |volume, role| volume.role == role)?;
        self.words(encoder, "state", State::ALL, State::as_str, |volume, state| volume.state == state)?;
        self.words(encoder, "mode", Mode::ALL, Mode::as_str, |volume, mode| volume.mode == mode)?;
        self.words(encoder, "attached", FrontEnd::ALL, FrontEnd::as_str, |volume, front_end| volume.attached.contains(&front_end))?;
        self.encode_replicas(encoder)?;
        self.encode_groups(encoder)?;
        self.encode_site(encoder)?;
        self.encode_links(encoder)?;
        self.encode_durations(encoder)
    }
}

impl Scrape {
    /// One family with a sample for each volume that has a value.
    fn samples<T: EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        help: &str,
        kind: MetricType,
        read: impl Fn(&VolumeStatus) -> Option<T>,
    ) -> fmt::Result {
        // A counter's samples are written as a gauge's: the other way appends `_total` to the name.
        let mut family = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
        for volume in &self.status.volumes {
            if let Some(value) = read(volume) {
                family.encode_family(&[("volume", volume.name.as_str())])?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// A word of the status: a sample for each word that it could be, 1 for the one that it is.
    fn words<T: Copy>(
        &self,
        encoder: &mut DescriptorEncoder,
        name: &str,
        all: &[T],
        as_str: fn(T) -> &'static str,
        is: Is<T>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, "1 for the word that holds.", None, MetricType::Gauge)?;
        for volume in &self.status.volumes {
            for word in all {
                let labels = [("volume", volume.name.as_str()), (name, as_str(*word))];
                family.encode_family(&labels)?.encode_gauge(&u64::from(is(volume, *word)))?;
            }
        }
        Ok(())
    }

    fn encode_replicas(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let replicas = || self.status.volumes.iter().flat_map(|volume| volume.replicas.iter().map(move |replica| (volume, replica)));
        let mut family =
            encoder.encode_descriptor("replica_promise_held", "Whether a standby's promise holds.", None, MetricType::Gauge)?;
        for (volume, replica) in replicas() {
            let held = u64::from(replica.promise_held);
            family.encode_family(&[("volume", &*volume.name), ("site", &*replica.site)])?.encode_gauge(&held)?;
        }
        let mut family = encoder.encode_descriptor("replica_backlog_bytes", "What a standby still has to get.", None, MetricType::Gauge)?;
        for (volume, replica) in replicas() {
            family.encode_family(&[("volume", &*volume.name), ("site", &*replica.site)])?.encode_gauge(&replica.backlog_bytes)?;
        }
        let mut family = encoder.encode_descriptor("replica_rpo_seconds", "Age of what a standby lacks.", None, MetricType::Gauge)?;
        for (volume, replica) in replicas() {
            if let Some(seconds) = replica.rpo_seconds {
                family.encode_family(&[("volume", &*volume.name), ("site", &*replica.site)])?.encode_gauge(&seconds)?;
            }
        }
        let mut family = encoder.encode_descriptor("replica_epoch_committed", "A standby's recovery point.", None, MetricType::Gauge)?;
        for (volume, replica) in replicas() {
            family.encode_family(&[("volume", &*volume.name), ("site", &*replica.site)])?.encode_gauge(&replica.epoch_committed)?;
        }
        Ok(())
    }

    fn encode_site(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (journal, spill) = (self.status.journal, self.status.spill);
        for (name, help, bytes) in [
            ("journal_used_bytes", "Journal space in use.", journal.used_bytes),
            ("journal_quota_bytes", "Most that the journal may take.", journal.quota_bytes),
            ("spill_used_bytes", "Spill space in use.", spill.used_bytes),
            ("spill_quota_bytes", "Most that the spill may take.", spill.quota_bytes),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&bytes)?;
        }
        let mut events = encoder.encode_descriptor("events", "What happened since the daemon began.", None, MetricType::Counter)?;
        for (kind, count) in &self.events {
            events.encode_family(&[("event", kind.as_str())])?.encode_gauge(count)?;
        }
        let build = [("version", env!("CARGO_PKG_VERSION")), ("site", self.status.site.as_str())];
        let mut info = encoder.encode_descriptor("build_info", "Version and site.", None, MetricType::Gauge)?;
        info.encode_family(&build)?.encode_gauge(&1u64)
    }

    fn encode_links(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor("link_connected", "1 while a peer is connected.", None, MetricType::Gauge)?;
        for peer in &self.peers.peers {
            family.encode_family(&[("peer", peer.name.as_str())])?.encode_gauge(&u64::from(peer.connected))?;
        }
        let mut family = encoder.encode_descriptor("link_rtt_seconds", "Round trip time to a peer.", None, MetricType::Gauge)?;
        for peer in &self.peers.peers {
            if let Some(rtt_ms) = peer.rtt_ms {
                family.encode_family(&[("peer", peer.name.as_str())])?.encode_gauge(&(rtt_ms / 1000.0))?;
            }
        }
        Ok(())
    }

    fn encode_durations(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help = "From a request's arrival to its acknowledgement.";
        let mut family = encoder.encode_descriptor("request_seconds", help, None, MetricType::Histogram)?;
        for (name, volume) in &self.durations {
            for op in RequestOp::ALL {
                let snapshot = volume.request(op).snapshot();
                let labels = [("volume", name.as_str()), ("op", op.as_str())];
                let mut metric = family.encode_family(&labels)?;
                metric.encode_histogram::<NoLabelSet>(snapshot.sum_seconds, snapshot.count, &snapshot.buckets, None)?;
            }
        }
        self.histogram(encoder, "flush_seconds", "From a flush's or FUA write's arrival to its acknowledgement.", |volume| &volume.flush)?;
        self.histogram(encoder, "epoch_commit_seconds", "From an epoch's cut to its commit.", |volume| &volume.epoch_commit)
    }

    fn histogram(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str, of: fn(&VolumeMetrics) -> &Histogram) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (name, volume) in &self.durations {
            let snapshot = of(volume).snapshot();
            let labels = [("volume", name.as_str())];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(snapshot.sum_seconds, snapshot.count, &snapshot.buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use std::time::Duration;

    fn page() -> String {
        let status =
            serde_json::from_value(serde_json::json!({"site": "osaka", "id": "5f", "volumes": [{"name": "vm1", "size_bytes": 4096,
            "role": "primary", "state": "in-sync", "promise_held": true, "mode": "async", "peer": "oregon", "generation": 3,
            "epoch_open": 812, "epoch_committed": 810, "rpo_seconds": 0.4, "backlog_bytes": 1, "dirty_blocks": 2, "changed_bytes": 3,
            "wire_bytes_sent": u64::MAX, "wire_bytes_received": 5, "zero_blocks": 6, "duplicate_blocks": 7, "delta_blocks": 8,
            "full_blocks": 9, "evacuation_seconds": null, "attached": ["nbd"], "last_error": null, "replicas": [{"site": "oregon",
                "mode": "async", "state": "in-sync", "epoch_committed": 810, "rpo_seconds": 0.4, "backlog_bytes": 1}]}],
            "journal": {"used_bytes": 10, "quota_bytes": 20}}))
            .unwrap();
        let peers = serde_json::from_value(serde_json::json!({"peers": [{"name": "oregon", "id": "6f", "address": null, "connected": true,
            "rtt_ms": 27.0}]}))
        .unwrap();
        let metrics = Metrics::new(Arc::new(crate::events::Teller::start(None).unwrap()));
        metrics.volume(&"vm1".parse().unwrap()).observe_request(RequestOp::Flush, Duration::from_micros(15));
        metrics.encode(status, peers).unwrap()
    }

    #[test]
    fn samples_have_the_names_of_the_contract() {
        let page = page();
        for line in [
            "tern_rpo_seconds{volume=\"vm1\"} 0.4",
            "tern_wire_bytes_sent{volume=\"vm1\"} 18446744073709551615",
            "tern_events{event=\"proof-failed\"} 0",
            "tern_promise_held{volume=\"vm1\"} 1",
            "tern_state{volume=\"vm1\",state=\"in-sync\"} 1",
            "tern_state{volume=\"vm1\",state=\"suspended\"} 0",
            "tern_attached{volume=\"vm1\",attached=\"nbd\"} 1",
            "tern_replica_backlog_bytes{volume=\"vm1\",site=\"oregon\"} 1",
            "tern_journal_quota_bytes 20",
            "tern_link_rtt_seconds{peer=\"oregon\"} 0.027",
            "tern_request_seconds_bucket{le=\"0.00002\",volume=\"vm1\",op=\"flush\"} 1",
            "tern_flush_seconds_count{volume=\"vm1\"} 1",
            "tern_epoch_commit_seconds_bucket{le=\"+Inf\",volume=\"vm1\"} 0",
            "# TYPE tern_wire_bytes_sent counter",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn what_is_not_known_has_no_sample() {
        assert!(!page().contains("tern_evacuation_seconds{"));
    }

    #[test]
    fn every_number_of_a_status_is_a_metric() {
        let page = page();
        let volume = serde_json::to_value(VolumeStatus {
            rpo_target_seconds: Some(1.0),
            point_age_seconds: Some(1.0),
            bandwidth: Some("1bit".parse().unwrap()),
            bandwidth_bits_per_second: Some(1),
            evacuation_seconds: Some(1.0),
            ..example()
        });
        for (field, value) in volume.unwrap().as_object().unwrap() {
            if value.is_number() || value.is_boolean() {
                assert!(page.contains(&format!("# TYPE tern_{field} ")), "{field}");
            }
        }
    }

    fn example() -> VolumeStatus {
        VolumeStatus {
            name: "vm1".parse().unwrap(),
            size_bytes: 1,
            role: Role::Primary,
            state: State::InSync,
            promise_held: true,
            mode: Mode::Async,
            peer: None,
            generation: 1,
            epoch_open: 1,
            epoch_committed: 1,
            rpo_seconds: Some(1.0),
            rpo_target_seconds: None,
            point_age_seconds: None,
            schedule: None,
            next_cut: None,
            bandwidth: None,
            bandwidth_bits_per_second: None,
            backlog_bytes: 1,
            dirty_blocks: 1,
            changed_bytes: 1,
            wire_bytes_sent: 1,
            wire_bytes_received: 1,
            zero_blocks: 1,
            duplicate_blocks: 1,
            delta_blocks: 1,
            full_blocks: 1,
            evacuation_seconds: None,
            attached: vec![],
            last_error: None,
            replicas: vec![],
            lease: None,
            points: 1,
            undo_bytes: 1,
            kept_bytes: 1,
            scrub: None,
            verified: None,
            diverged: None,
            going_back: None,
            trial: None,
        }
    }
}
