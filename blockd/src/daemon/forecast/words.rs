//! What a forecast says to people.

use blockd_api::{Confidence, Forecast, SiteName, VolumeName, human_bytes};
use replicator::site_link::forecast::ForecastRecord;
use replicator_engine::forecast::Basis;

/// A first step that lasts longer is given up: see `handover`.
const GIVEN_UP_SECONDS: f64 = 60.0;

/// Words of [`ForecastRecord::basis`] beside those of the engine's.
pub(super) const NOT_CONNECTED: &str = "not-connected";
pub(super) const NO_POINT: &str = "no-point";
pub(super) const FAILOVER: &str = "failover";

/// The word for what a forecast rests on.
pub(super) fn word(basis: Basis) -> &'static str {
    match basis {
        Basis::Measured => "measured",
        Basis::LinkLongAgo => "link-long-ago",
        Basis::NoHandover => "no-handover",
        Basis::NoYield => "no-yield",
        Basis::LinkFaster => "link-faster",
        Basis::LinkUnknown => "link-unknown",
        Basis::Endless => "endless",
    }
}

/// What an operator is to know of a forecast, beside the figures.
fn note(of: &ForecastRecord) -> Option<String> {
    let per_second = |bytes: u64| format!("{}/s", human_bytes(bytes));
    let note = match of.basis.as_str() {
        "link-long-ago" => "nothing has filled the link for a while: it may be another now".to_owned(),
        "no-handover" => "no handover has been seen yet: what it costs beside sending is reckoned from round trips and commits".to_owned(),
        "no-yield" => "nothing was sent yet that would tell how far content shrinks: it is taken to be incompressible".to_owned(),
        "link-faster" => "nothing but a limit has kept the link full yet: it may well be faster".to_owned(),
        "link-unknown" => "nothing has been sent yet that would have told how fast the link is".to_owned(),
        "endless" => {
            let changes = of.changes_per_second.saturating_mul(of.payload_per_mille.unwrap_or(1000)) / 1000;
            let (changes, link) = (per_second(changes), of.link_per_second.map_or_else(|| "nothing".to_owned(), per_second));
            format!(
                "does not end: clients change what costs {changes} to send, the link takes {link}; stop the guest first, or raise --bandwidth"
            )
        }
        NOT_CONNECTED => "the standby is not connected, or has not said yet what it has".to_owned(),
        NO_POINT => "the first sync has not ended: until then the standby cannot be promoted".to_owned(),
        FAILOVER => "the primary does not answer: this is how long a promotion with --force took from the last recovery point".to_owned(),
        _ => String::new(),
    };
    if of.seconds.is_some_and(|seconds| seconds > GIVEN_UP_SECONDS) {
        let patience = "`tern promote` gives up after a minute and keeps what was sent; `tern wait --for in-sync` at the primary first";
        return Some(if note.is_empty() { patience.to_owned() } else { format!("{note}; {patience}") });
    }
    Some(note).filter(|note| !note.is_empty())
}

fn confidence(of: &ForecastRecord) -> Confidence {
    match of.basis.as_str() {
        _ if of.seconds.is_none() => Confidence::None,
        "measured" => Confidence::High,
        _ => Confidence::Low,
    }
}

pub(super) fn shown(name: &VolumeName, to: &SiteName, of: &ForecastRecord) -> Forecast {
    Forecast {
        name: name.clone(),
        to: to.clone(),
        seconds: of.seconds.map(to_the_millisecond),
        seconds_if_idle: of.seconds_if_idle.map(to_the_millisecond),
        bytes: of.bytes,
        confidence: confidence(of),
        backlog_bytes: of.backlog_bytes,
        write_bytes_per_second: of.changes_per_second,
        link_bytes_per_second: of.link_per_second,
        wire_per_byte: of.payload_per_mille.map(|per_mille| per_mille as f64 / 1000.0),
        fixed_seconds: of.fixed_ms.map(|ms| ms as f64 / 1000.0),
        note: note(of),
    }
}

/// As exact as it can be.
pub(super) fn to_the_millisecond(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
