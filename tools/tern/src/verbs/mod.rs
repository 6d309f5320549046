//! Verbs: arguments into a request, the answer into a report.

mod drill;
mod forecast;
mod group;
mod peer;
mod proof;
mod quiesce;
mod recovery;
mod replication;
pub mod status;
#[cfg(test)]
pub mod tests;
mod volume;

use crate::{app::Format, cli::Verb, client::Client, meter::ProgressView, report::Report};
use blockd_api::{ApiError, ErrorCode};

/// What every verb works with.
pub struct Context<'a> {
    /// The daemon.
    pub client: &'a Client,
    /// How to print.
    pub format: Format,
    /// Where long work shows.
    pub progress: &'a ProgressView,
}

/// Runs a verb.
pub async fn run(verb: Verb, client: &Client, format: Format, progress: &ProgressView) -> Result<Report, ApiError> {
    let context = &Context { client, format, progress };
    match verb {
        Verb::Peer(verb) => peer::run(context, verb).await,
        Verb::Volume(verb) => volume::run(context, verb).await,
        Verb::Group(verb) => group::run(context, verb).await,
        Verb::Replicate(arguments) => replication::replicate(context, arguments).await,
        Verb::Mode(arguments) => replication::mode(context, arguments).await,
        Verb::Wait(arguments) => replication::wait(context, arguments).await,
        Verb::Snapshot(arguments) => replication::snapshot(context, arguments).await,
        Verb::Status(arguments) => status::status(context, &arguments).await,
        Verb::Promote(arguments) => recovery::promote(context, arguments).await,
        Verb::Commit { volume } => recovery::commit(context, volume).await,
        Verb::Rollback(arguments) => recovery::rollback(context, arguments).await,
        Verb::Demote(arguments) => recovery::demote(context, arguments).await,
        Verb::Resync(arguments) => recovery::resync(context, arguments).await,
        Verb::Verify { volume } => recovery::verify(context, volume).await,
        Verb::Scrub { volume } => proof::scrub(context, volume).await,
        Verb::Points { volume } => recovery::points(context, volume).await,
        Verb::Drill(arguments) => drill::drill(context, arguments).await,
        Verb::Forecast(arguments) => forecast::forecast(context, arguments).await,
        // Handled before there is a client.
        Verb::Completions { .. } | Verb::Man { .. } => Err(ApiError::new(ErrorCode::Internal, "this verb needs no daemon")),
    }
}
