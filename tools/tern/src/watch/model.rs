//! What the view shows: the last status, and what only shows over time.

use blockd_api::{ApiError, Status, VolumeName, VolumeStatus};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

/// Samples of link use that are kept for each volume.
pub const HISTORY: usize = 240;

/// Where the selection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// To the volume above.
    Up,
    /// To the one below.
    Down,
    /// To the first.
    First,
    /// To the last.
    Last,
}

/// The state of the view.
#[derive(Debug, Default)]
pub struct Model {
    status: Option<Status>,
    trends: BTreeMap<VolumeName, Trend>,
    selected: usize,
    trouble: Option<String>,
}

/// What a volume did while we looked.
#[derive(Debug, Default)]
pub struct Trend {
    sent: Option<(Instant, u64)>,
    /// Bits a second sent, oldest first.
    pub rates: VecDeque<f64>,
    /// Largest backlog seen: the full length of the backlog's bar.
    pub peak_backlog_bytes: u64,
}

impl Model {
    /// Takes a new status.
    pub fn update(&mut self, status: Status, now: Instant) {
        self.trouble = None;
        self.trends.retain(|name, _| status.volumes.iter().any(|volume| volume.name == *name));
        for volume in &status.volumes {
            self.trends.entry(volume.name.clone()).or_default().update(volume, now);
        }
        self.selected = self.selected.min(status.volumes.len().saturating_sub(1));
        self.status = Some(status);
    }

    /// The daemon did not answer.
    pub fn fail(&mut self, error: &ApiError) {
        self.trouble = Some(error.to_string());
    }

    /// Moves the selection.
    pub fn select(&mut self, step: Move) {
        let last = self.volumes().len().saturating_sub(1);
        self.selected = match step {
            Move::Up => self.selected.saturating_sub(1),
            Move::Down => (self.selected + 1).min(last),
            Move::First => 0,
            Move::Last => last,
        };
    }

    /// The last status.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// The volumes of the last status.
    pub fn volumes(&self) -> &[VolumeStatus] {
        self.status.as_ref().map_or(&[], |status| &status.volumes)
    }

    /// The selected volume's place.
    pub fn selected(&self) -> usize {
        self.selected
    }

    /// Why the last status is not of now.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What a volume did.
    pub fn trend(&self, name: &VolumeName) -> Option<&Trend> {
        self.trends.get(name)
    }
}

impl Trend {
    fn update(&mut self, volume: &VolumeStatus, now: Instant) {
        self.peak_backlog_bytes = self.peak_backlog_bytes.max(volume.backlog_bytes);
        if let Some((before, bytes)) = self.sent {
            let seconds = now.saturating_duration_since(before).as_secs_f64();
            if seconds > 0.0 {
                // A counter that fell is another volume of the same name.
                let sent_bytes = volume.wire_bytes_sent.saturating_sub(bytes);
                self.rates.push_back(sent_bytes as f64 * 8.0 / seconds);
            }
        }
        if self.rates.len() > HISTORY {
            self.rates.pop_front();
        }
        self.sent = Some((now, volume.wire_bytes_sent));
    }

    /// Bits a second sent now.
    pub fn rate(&self) -> f64 {
        self.rates.back().copied().unwrap_or(0.0)
    }

    /// The top of the curve: the volume's limit, or else the most that was seen.
    pub fn full_rate(&self, volume: &VolumeStatus) -> f64 {
        let seen = self.rates.iter().copied().fold(0.0, f64::max);
        volume.bandwidth_bits_per_second.map_or(seen, |limit| limit as f64)
    }
}
