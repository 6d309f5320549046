//! Command lines that parse, and those that must not.

use super::*;
use blockd_api::{Bandwidth, Condition, Rate, Size, Span};
use clap::{CommandFactory, error::ErrorKind};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("tern").chain(line.split_whitespace()))
}

fn verb(line: &str) -> Verb {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).verb
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_line_of_the_contract_parses() {
    for line in [
        "--admin /run/a.sock --json peer invite --address vpn.example.org:7447 --ttl 15m",
        "peer join tern1abc",
        "peer join -",
        "peer list",
        "peer remove oregon",
        "volume create vm1 --size 10G",
        "volume create vm1 --size 10G --backing /dev/vg/vm1 --import /images/a.qcow2",
        "volume create vm1 --import a.qcow2",
        "volume list --json",
        "volume show vm1",
        "volume show vm1 --qemu --memory 4G",
        "volume show vm1 --qemu=10.0 --memory 4G",
        "volume show vm1 --libvirt",
        "volume delete vm1 --yes",
        "volume resize vm1 20G",
        "volume export vm1 --nbd unix:/run/a.sock",
        "volume export vm1 --nbd tcp:127.0.0.1:10809 --vhost-user /run/b.sock",
        "volume export vm1 --nbd unix:/run/a.sock --read-only",
        "volume export vm1 --remove",
        "volume export vm1 --nbd unix:/run/a.sock --remove",
        "replicate vm1 --to oregon",
        "replicate vm1 --to oregon --mode sync --rpo 5s --bandwidth 50Mbit",
        "replicate vm1 --to oregon --bandwidth none",
        "replicate vm1 --to oregon --bandwidth 08:00-18:00=20Mbit,else=200Mbit",
        "replicate vm1 --stop",
        "replicate vm1 --to oregon --stop",
        "replicate vm1 --to oregon --mode snapshot --schedule 15m",
        "mode vm1 barrier --to oregon",
        "mode vm1 snapshot --schedule none",
        "status",
        "status vm1 --watch",
        "status vm1 --watch --interval 500ms",
        "wait vm1 --for in-sync --timeout 60s",
        "wait vm1 --for primary",
        "wait vm1 --for committed=12",
        "snapshot vm1",
        "snapshot vm1 --quiesce /run/vm1.ga",
        "points vm1",
        "promote vm1",
        "promote vm1 --force",
        "promote vm1 --at 7",
        "demote vm1 --force",
        "resync vm1 --discard-local",
        "resync vm1 --discard-local --yes",
        "drill vm1 --nbd unix:/run/a.sock --at 7",
        "drill vm1 --vhost-user /run/a.sock",
        "drill vm1 --end",
        "drill vm1 --report",
        "drill vm1 --end --report /tmp/drills.json",
        "verify vm1",
        "scrub vm1",
        "forecast",
        "forecast vm1",
        "forecast vm1 --to oregon",
        "forecast vm1 --history",
        "completions bash",
        "man /tmp",
    ] {
        verb(line);
    }
}

#[test]
fn wrong_command_lines_are_usage() {
    for line in [
        "",
        "frobnicate",
        "volume create vm1",
        "volume create ../vm1 --size 1G",
        "volume create vm1 --size 10GB",
        "volume export vm1",
        "volume export vm1 --remove --read-only",
        "volume export vm1 --nbd /run/a.sock",
        "volume export vm1 --nbd tcp:localhost:1",
        "volume show vm1 --qemu --libvirt",
        "volume show vm1 --qemu=new",
        "volume show vm1 --memory 1G",
        "forecast vm1 --to oregon --history",
        "replicate vm1",
        "replicate vm1 --to oregon --mode fast",
        "replicate vm1 --stop --rpo 5s",
        "replicate vm1 --to oregon --rpo 5",
        "replicate vm1 --to oregon --bandwidth 50M",
        "replicate vm1 --to oregon --bandwidth 08:00-18:00=20Mbit,night=200Mbit",
        "mode vm1",
        "wait vm1",
        "wait vm1 --for godot",
        "status --watch --json",
        "status --interval 1s",
        "resync vm1 --yes",
        "promote vm1 --at latest",
        "drill vm1",
        "drill vm1 --end --at 7",
        "drill vm1 --nbd unix:/run/a.sock --vhost-user /run/b.sock",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(!matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion), "{line}");
    }
}

#[test]
fn a_volume_that_is_to_be_served_nowhere_is_told_every_way() {
    for (line, end) in [("volume export vm1", "--remove"), ("drill vm1", "--end")] {
        let error = parse(line).expect_err(line).to_string();
        assert!(["--nbd", "--vhost-user", end].iter().all(|way| error.contains(way)), "{error}");
    }
}

#[test]
fn values_arrive_as_they_were_meant() {
    let Verb::Replicate(arguments) = verb("replicate vm1 --to oregon --rpo 5s --bandwidth 50Mbit") else { panic!() };
    assert_eq!((arguments.mode, arguments.rpo), (None, Some(Span::from_seconds(5))));
    assert_eq!(arguments.bandwidth, Some(Bandwidth::AtMost(Rate::from_bits_per_second(50_000_000).unwrap())));
    let Verb::Wait(arguments) = verb("wait vm1 --for committed=12") else { panic!() };
    assert_eq!((arguments.condition, arguments.timeout), (Condition::Committed(12), Span::from_seconds(60)));
    let Verb::Volume(VolumeVerb::Create(arguments)) = verb("volume create vm1 --size 10G --import a.qcow2") else { panic!() };
    assert_eq!(arguments.size, Some(Size::gib(10)));
    assert!(arguments.import.is_some_and(|path| path.is_absolute()));
    let Verb::Volume(VolumeVerb::Export(arguments)) = verb("volume export vm1 --nbd unix:a.sock --vhost-user b.sock") else { panic!() };
    let here = std::env::current_dir().unwrap();
    assert_eq!(arguments.nbd.map(|address| address.to_string()), Some(format!("unix:{}/a.sock", here.display())));
    assert_eq!(arguments.vhost_user.map(|path| path.as_path().to_owned()), Some(here.join("b.sock")));
}
