//! From arguments to an exit code.

use crate::{
    cli::{Cli, Verb},
    client::Client,
    console::{Console, Watched},
    meter::ProgressView,
    pages, verbs, watch,
};
use blockd_api::{ApiError, ErrorCode, ErrorDocument, ExitCode};
use clap::{Parser, error::ErrorKind};
use std::ffi::OsString;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document on standard output, errors too.
    Json,
}

/// Runs the program and says how it ends.
pub fn run(args: impl IntoIterator<Item = OsString>, console: &mut Console) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return wrong_command_line(&error, &args, console),
    };
    let format = if cli.json { Format::Json } else { Format::Text };
    match execute(cli, format, console) {
        Ok(exit) => exit,
        Err(error) => {
            fail(&error, format, console);
            error.code.exit_code()
        }
    }
}

fn execute(cli: Cli, format: Format, console: &mut Console) -> Result<ExitCode, ApiError> {
    match &cli.verb {
        Verb::Completions { shell } => {
            console.print(&pages::completions(*shell));
            return Ok(ExitCode::Done);
        }
        Verb::Man { dir } => return pages::man(dir).map(|()| ExitCode::Done),
        _ => {}
    }
    let no_runtime = |error| ApiError::new(ErrorCode::Internal, format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
    let client = Client::new(cli.admin);
    runtime.block_on(async {
        if let Verb::Status(arguments) = &cli.verb
            && arguments.watch
        {
            if console.screen == Watched::Not {
                let error = ApiError::new(ErrorCode::InvalidRequest, "--watch draws on a terminal, and standard output is none");
                return Err(error.with_hint("leave it out"));
            }
            return watch::run(&client, arguments).await.map(|()| ExitCode::Done);
        }
        let progress = ProgressView::new(console.progress, format);
        let report = verbs::run(cli.verb, &client, format, &progress).await?;
        // The bar leaves the line before the result takes it.
        drop(progress);
        console.print(&report.text);
        if let Some(remark) = &report.remark {
            console.complain(&format!("tern: {remark}\n"));
        }
        Ok(report.exit)
    })
}

fn fail(error: &ApiError, format: Format, console: &mut Console) {
    match format {
        Format::Text => console.print_error(error),
        Format::Json => console.print_document(&ErrorDocument { error: error.clone() }),
    }
}

/// Help and version go to standard output and are no errors; the rest is usage.
fn wrong_command_line(error: &clap::Error, args: &[OsString], console: &mut Console) -> ExitCode {
    let rendered = error.render();
    if !error.use_stderr() {
        let text = if console.screen == Watched::Terminal { rendered.ansi().to_string() } else { rendered.to_string() };
        console.print(&text);
        return ExitCode::Done;
    }
    // The command line did not parse, so the flag has to be looked for by hand.
    if args.iter().any(|arg| arg == "--json") {
        let text = rendered.to_string();
        let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let message = match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => "a verb is missing".to_owned(),
            _ => first.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let error = ApiError::new(ErrorCode::InvalidRequest, message).with_hint("see `tern --help`");
        console.print_document(&ErrorDocument { error });
    } else {
        let text = if console.progress == Watched::Terminal { rendered.ansi().to_string() } else { rendered.to_string() };
        console.complain(&text);
    }
    ExitCode::Usage
}
