//! How a limit is recorded: bits a second, `null` for none, and the text of a calendar, which earlier releases did not have.

use blockd_api::{Bandwidth, Rate};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Recorded {
    Unlimited,
    BitsPerSecond(u64),
    Calendar(String),
}

pub(super) fn serialize<S: Serializer>(bandwidth: &Bandwidth, serializer: S) -> Result<S::Ok, S::Error> {
    let recorded = match bandwidth {
        Bandwidth::Unlimited => Recorded::Unlimited,
        Bandwidth::AtMost(rate) => Recorded::BitsPerSecond(rate.bits_per_second()),
        Bandwidth::By(calendar) => Recorded::Calendar(calendar.to_string()),
    };
    recorded.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bandwidth, D::Error> {
    match Recorded::deserialize(deserializer)? {
        Recorded::Unlimited => Ok(Bandwidth::Unlimited),
        Recorded::BitsPerSecond(bits) => Ok(Rate::from_bits_per_second(bits).map_or(Bandwidth::Unlimited, Bandwidth::AtMost)),
        Recorded::Calendar(text) => text.parse().map_err(D::Error::custom),
    }
}
