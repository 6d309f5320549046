//! Progress bars of long operations.
//!
//! The [`Meter`] makes what a daemon reports fit to be looked at: within a phase the bar never goes back and never leaves 0–100 %, even if
//! the work grows while it is done.

use crate::{app::Format, console::Watched};
use blockd_api::{Progress, Unit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{cell::RefCell, time::Duration};

/// Bytes of a block: blocks are shown as bytes, which people can relate to their link.
const BLOCK_BYTES: u64 = 4096;

/// Where a bar stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The phase.
    pub phase: String,
    /// How much is done: at most the total, never less than before in this phase.
    pub position: u64,
    /// How much there is; `None` where nobody knows.
    pub total: Option<u64>,
}

impl Reading {
    /// How much of the phase is done, 0 to 100; 0 while the total is unknown.
    #[cfg(test)]
    pub fn percent(&self) -> f64 {
        match self.total {
            Some(0) => 100.0,
            Some(total) => self.position as f64 / total as f64 * 100.0,
            None => 0.0,
        }
    }
}

/// Turns reports into readings.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<Reading>,
}

impl Meter {
    /// Takes a report.
    pub fn read(&mut self, progress: &Progress) -> Reading {
        let scale = if progress.unit == Unit::Blocks { BLOCK_BYTES } else { 1 };
        let done = progress.done.saturating_mul(scale);
        let total = progress.total.map(|total| total.saturating_mul(scale));
        let before = self.last.take().filter(|last| last.phase == progress.phase);
        // Once known, a total is not forgotten, or the bar would jump back to nothing.
        let total = total.or_else(|| before.as_ref().and_then(|last| last.total));
        let position = match (before, total) {
            (None, None) => done,
            (None, Some(total)) => done.min(total),
            (Some(last), None) => done.max(last.position),
            (Some(last), Some(total)) => done.max(held(&last, total)).min(total),
        };
        let reading = Reading { phase: progress.phase.clone(), position, total };
        self.last = Some(reading.clone());
        reading
    }
}

/// The smallest position out of a new total that shows no less than the last reading did.
fn held(last: &Reading, total: u64) -> u64 {
    match last.total {
        None => 0,
        Some(0) => total,
        Some(before) => {
            let scaled = (u128::from(last.position) * u128::from(total)).div_ceil(u128::from(before));
            u64::try_from(scaled).unwrap_or(total)
        }
    }
}

/// Bars on a terminal, nothing elsewhere.
pub struct ProgressView {
    state: Option<RefCell<Bars>>,
}

#[derive(Default)]
struct Bars {
    meter: Meter,
    bar: Option<(String, ProgressBar)>,
}

impl ProgressView {
    /// A view for people at a terminal who did not ask for JSON.
    pub fn new(stream: Watched, format: Format) -> Self {
        let shown = stream == Watched::Terminal && format == Format::Text;
        Self { state: shown.then(RefCell::default) }
    }

    /// Shows a report.
    pub fn tell(&self, progress: &Progress) {
        if let Some(state) = &self.state {
            state.borrow_mut().tell(progress);
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        if let Some((_, bar)) = self.state.take().and_then(|state| state.into_inner().bar) {
            bar.finish_and_clear();
        }
    }
}

impl Bars {
    fn tell(&mut self, progress: &Progress) {
        let reading = self.meter.read(progress);
        if self.bar.as_ref().is_none_or(|(phase, _)| *phase != reading.phase) {
            if let Some((_, done)) = self.bar.take() {
                done.finish_and_clear();
            }
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.set_message(reading.phase.clone());
            self.bar = Some((reading.phase.clone(), bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_style(style(reading.total, progress.unit));
            if let Some(total) = reading.total {
                bar.set_length(total);
            }
            bar.set_position(reading.position);
        }
    }
}

fn style(total: Option<u64>, unit: Unit) -> ProgressStyle {
    let template = match (total, unit) {
        (Some(_), Unit::Steps) => "{msg} {wide_bar:.cyan/blue} {percent:>3} %  {pos}/{len}  {eta} left",
        (Some(_), _) => {
            "{msg} {wide_bar:.cyan/blue} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
        }
        (None, Unit::Steps) => "{spinner:.cyan} {msg}  {elapsed}",
        (None, _) => "{spinner:.cyan} {msg}  {binary_bytes}  {binary_bytes_per_sec}  {elapsed}",
    };
    // The templates are ours: a wrong one shows as indicatif's own bar, and fails the test below.
    ProgressStyle::with_template(template).map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("█▉▊▋▌▍▎▏ "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reports() -> impl Strategy<Value = Vec<Progress>> {
        let number = prop_oneof![0..200u64, Just(u64::MAX), any::<u64>()];
        let report = ("[ab]", number.clone(), proptest::option::of(number), any::<bool>()).prop_map(|(phase, done, total, blocks)| {
            let unit = if blocks { Unit::Blocks } else { Unit::Bytes };
            Progress { phase, done, total, unit }
        });
        proptest::collection::vec(report, 0..40)
    }

    proptest! {
        #[test]
        fn a_bar_never_goes_back_within_a_phase_nor_leaves_its_scale(reports in reports()) {
            let mut meter = Meter::default();
            let mut last: Option<Reading> = None;
            for report in reports {
                let reading = meter.read(&report);
                prop_assert!((0.0..=100.0).contains(&reading.percent()), "{reading:?}");
                if let Some(last) = last.filter(|last| last.phase == reading.phase && last.total.is_some()) {
                    prop_assert!(reading.percent() >= last.percent() - 1e-9, "{last:?} then {reading:?}");
                }
                last = Some(reading);
            }
        }
    }

    #[test]
    fn blocks_are_shown_as_bytes_and_the_end_is_a_hundred() {
        let mut meter = Meter::default();
        let reading = meter.read(&Progress::blocks("compare", 3, Some(3)));
        assert_eq!((reading.position, reading.percent()), (12_288, 100.0));
    }

    #[test]
    fn every_template_is_valid() {
        for total in [None, Some(1)] {
            for unit in [Unit::Bytes, Unit::Steps] {
                let shown = style(total, unit);
                let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::hidden()).with_style(shown);
                bar.set_message("phase");
                bar.finish();
            }
        }
        assert!(ProgressStyle::with_template("{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_bar:.cyan/blue}").is_ok());
    }
}
