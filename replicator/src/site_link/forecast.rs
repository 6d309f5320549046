//! What sites tell each other of handovers: how long one would take, and how long it took.

use serde::{Deserialize, Serialize};

/// A handover, as the site saw it that stepped down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// When it was ordered there, by that site's clock.
    pub began_unix_ms: u64,
    /// How long it would take, as was reckoned then; `None` if that could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast_ms: Option<u64>,
    /// What it would send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast_bytes: Option<u64>,
    /// How long what was missing took to get to the standby.
    pub sending_ms: u64,
    /// How long it took until that site had stepped down.
    pub took_ms: u64,
}

/// How long a handover would take, as the primary reckons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForecastRecord {
    /// How long; `None`: nobody knows, or it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The same if clients stop writing now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_if_idle: Option<f64>,
    /// What it would send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What the standby lacks, before it is compressed.
    pub backlog_bytes: u64,
    /// Content that changes in a second.
    pub changes_per_second: u64,
    /// What the link takes in a second, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_per_second: Option<u64>,
    /// What a thousand bytes of content become on their way, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_per_mille: Option<u64>,
    /// What earlier handovers took beside sending, if there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_ms: Option<u64>,
    /// What it rests on, in a word.
    pub basis: String,
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::check;
    use super::super::request::{Answer, Question};
    use super::*;
    use replicator_engine::generation::Id;

    #[test]
    fn questions_and_answers_are_the_documented_ones() {
        let volume = Id([0x77; 16]).to_string();
        check(&Question::Forecast { volume: volume.clone() });
        check(&Question::TookOver { volume, epoch: 17, took_ms: 2310 });
        let (sending_ms, took_ms) = (1900, 2100);
        let began_unix_ms = 1_795_300_000_000;
        let handed = HandedOver { began_unix_ms, forecast_ms: Some(2200), forecast_bytes: Some(5_242_880), sending_ms, took_ms };
        check(&Answer::Granted { epoch: 17, handed: Some(handed) });
        check(&Answer::Forecast(ForecastRecord {
            seconds: Some(2.5),
            seconds_if_idle: Some(1.5),
            bytes: Some(5_242_880),
            backlog_bytes: 10_485_760,
            changes_per_second: 1_048_576,
            link_per_second: Some(4_194_304),
            payload_per_mille: Some(500),
            fixed_ms: Some(180),
            basis: "measured".into(),
        }));
    }
}
