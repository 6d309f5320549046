//! `tern`: operates a site through its daemon's admin socket.
//!
//! A verb of the command line ([`cli`]) becomes one request ([`client`]), its answer a [`report`]: a JSON document as the daemon wrote it,
//! or text for people. Exit codes are those of `blockd_api::ExitCode`. Nothing here decides what may be done: the daemon does.

mod app;
mod attach;
mod cli;
mod client;
mod console;
mod guest_agent;
mod meter;
mod pages;
mod qemu_version;
mod report;
mod table;
mod verbs;
mod watch;

fn main() -> std::process::ExitCode {
    let exit = app::run(std::env::args_os(), &mut console::Console::of_process());
    std::process::ExitCode::from(exit as u8)
}
