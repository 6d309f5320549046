//! `tern forecast`

use super::Context;
use crate::{
    cli::ForecastArgs,
    report::Report,
    table::{Align, Table},
};
use blockd_api::{ApiError, Forecast, ForecastList, Handover, HandoverList, human_bytes, human_rate, human_seconds, routes};

/// `tern forecast`, and with `--history` what became of earlier ones.
pub async fn forecast(context: &Context<'_>, arguments: ForecastArgs) -> Result<Report, ApiError> {
    let ForecastArgs { volume, to, history } = arguments;
    if history {
        let document = context.client.get(&routes::handovers(volume.as_ref())).await?;
        return Report::of(document, context.format, |list: HandoverList| handovers(&list));
    }
    let document = context.client.get(&routes::forecast(volume.as_ref(), to.as_ref())).await?;
    Report::of(document, context.format, |list: ForecastList| forecasts(&list))
}

fn forecasts(list: &ForecastList) -> String {
    if list.volumes.is_empty() {
        return "no volume is replicated".to_owned();
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("TO", Align::Left),
        ("EVACUATION", Align::Right),
        ("IF IDLE", Align::Right),
        ("TO SEND", Align::Right),
        ("BACKLOG", Align::Right),
        ("WRITES", Align::Right),
        ("LINK", Align::Right),
        ("SHRINKS TO", Align::Right),
        ("CONFIDENCE", Align::Left),
    ]);
    list.volumes.iter().for_each(|forecast| table.row(row(forecast)));
    let mut text = table.render();
    for Forecast { name, to, note, .. } in &list.volumes {
        if let Some(note) = note {
            text.push_str(&format!("{name} to {to}: {note}\n"));
        }
    }
    text
}

fn row(forecast: &Forecast) -> [String; 10] {
    let rate = |bytes: u64| human_rate(bytes as f64 * 8.0);
    [
        forecast.name.to_string(),
        forecast.to.to_string(),
        or_dash(forecast.seconds, human_seconds),
        or_dash(forecast.seconds_if_idle, human_seconds),
        or_dash(forecast.bytes, human_bytes),
        human_bytes(forecast.backlog_bytes),
        rate(forecast.write_bytes_per_second),
        or_dash(forecast.link_bytes_per_second, rate),
        or_dash(forecast.wire_per_byte, |part| format!("{:.0} %", part * 100.0)),
        forecast.confidence.to_string(),
    ]
}

fn handovers(list: &HandoverList) -> String {
    if list.handovers.is_empty() {
        return "no handover has been seen yet".to_owned();
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("TIME", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("FORECAST", Align::Right),
        ("ACTUAL", Align::Right),
        ("ERROR", Align::Right),
        ("TO SEND", Align::Right),
    ]);
    list.handovers.iter().for_each(|handover| table.row(past(handover)));
    table.render()
}

fn past(handover: &Handover) -> [String; 8] {
    [
        handover.name.to_string(),
        or_dash(handover.time, |time| time.to_string()),
        handover.from.to_string(),
        or_dash(handover.to.as_ref(), ToString::to_string),
        or_dash(handover.forecast_seconds, human_seconds),
        or_dash(handover.actual_seconds, human_seconds),
        or_dash(handover.error_percent, |percent| format!("{percent:+.0} %")),
        or_dash(handover.forecast_bytes, human_bytes),
    ]
}

fn or_dash<T>(value: Option<T>, say: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), say)
}
