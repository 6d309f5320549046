//! The binary between two real namespaces. Needs root; without it each test says so and is left out.

use std::{
    io,
    net::UdpSocket,
    path::Path,
    process::Command as Process,
    time::{Duration, Instant},
};

use wanem::{
    Command, Emulator, Error, Options, QueueLimit, Side,
    command::{Direction, Scope},
    namespace::{NamespaceName, inside},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wanem");
/// IPv4 and UDP headers of a datagram.
const HEADER_BYTES: u64 = 28;
/// Long enough for the busiest machine; nothing waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

struct Lab {
    wan: Emulator,
    a: UdpSocket,
    b: UdpSocket,
}

/// Two namespaces of this test's own and a UDP socket at each end, or `None` without root.
fn lab(test: &str, change: impl FnOnce(&mut Options)) -> Option<Lab> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: {test} needs root");
        return None;
    }
    let name = |side: &str| -> NamespaceName { format!("wanem-{}-{test}-{side}", std::process::id()).parse().unwrap() };
    let mut options = Options::new(name("a"), name("b"));
    change(&mut options);
    let wan = Emulator::start(Path::new(PROGRAM), &options).unwrap();
    let socket = |side, address: &str, peer: &str| {
        let socket = inside(side, || UdpSocket::bind(address)).unwrap().unwrap();
        socket.connect(peer).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let a = socket(&options.a, "10.99.0.1:7000", "10.99.0.2:7000");
    let b = socket(&options.b, "10.99.0.2:7000", "10.99.0.1:7000");
    Some(Lab { wan, a, b })
}

fn receive(socket: &UdpSocket) -> io::Result<usize> {
    socket.recv(&mut [0; 2_000])
}

#[test]
fn an_echo_takes_the_round_trip_and_is_counted() {
    let rtt = Duration::from_millis(60);
    let Some(mut lab) = lab("echo", |options| options.link.rtt = rtt) else { return };
    let begin = Instant::now();
    lab.a.send(&[1; 100]).unwrap();
    receive(&lab.b).unwrap();
    assert!(begin.elapsed() >= rtt / 2);
    lab.b.send(&[2; 200]).unwrap();
    receive(&lab.a).unwrap();
    assert!(begin.elapsed() >= rtt, "{:?}", begin.elapsed());
    let report = lab.wan.stats().unwrap();
    let (there, back) = (report.a_to_b.counters, report.b_to_a.counters);
    assert_eq!((there.sent.packets, there.delivered.bytes), (1, 100 + HEADER_BYTES));
    assert_eq!((back.sent.packets, back.delivered.bytes), (1, 200 + HEADER_BYTES));
}

#[test]
fn a_burst_arrives_at_the_rate_and_in_order() {
    let Some(lab) = lab("rate", |options| options.link.rate = "2Mbit".parse().unwrap()) else { return };
    let begin = Instant::now();
    for number in 0..50_u8 {
        lab.a.send(&[number; 1_000 - HEADER_BYTES as usize]).unwrap();
    }
    for number in 0..50 {
        let mut buffer = [0; 2_000];
        lab.b.recv(&mut buffer).unwrap();
        assert_eq!(buffer[0], number);
    }
    // 50 kB at 2 Mbit/s.
    assert!(begin.elapsed() >= Duration::from_millis(200), "{:?}", begin.elapsed());
}

#[test]
fn a_full_queue_drops_and_every_packet_is_accounted_for() {
    let Some(mut lab) = lab("queue", |options| {
        options.link.rate = "1Mbit".parse().unwrap();
        options.link.queue = QueueLimit::Bytes(10_000);
    }) else {
        return;
    };
    for _ in 0..40 {
        lab.a.send(&[0; 1_000 - HEADER_BYTES as usize]).unwrap();
    }
    // At least what fits the queue comes through.
    for _ in 0..10 {
        receive(&lab.b).unwrap();
    }
    let counters = lab.wan.stats().unwrap().a_to_b.counters;
    assert_eq!(counters.sent.packets, 40);
    assert!(counters.dropped_queue.packets > 0, "{counters:?}");
    assert!(counters.queue_peak_bytes <= 10_000);
}

#[test]
fn a_cut_link_is_silent_until_it_heals() {
    let Some(mut lab) = lab("cut", |_| ()) else { return };
    lab.wan.send(Command::Cut(Scope::One(Direction::AToB))).unwrap();
    lab.a.send(&[1; 10]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lab.wan.stats().unwrap().a_to_b.counters.dropped_cut.packets == 0 {
        assert!(Instant::now() < deadline, "the packet reached the emulator");
    }
    lab.b.send(&[2; 20]).unwrap();
    assert_eq!(receive(&lab.a).unwrap(), 20, "the other direction works");
    lab.wan.send(Command::Heal(Scope::Both)).unwrap();
    lab.a.send(&[3; 30]).unwrap();
    assert_eq!(receive(&lab.b).unwrap(), 30, "and nothing of the cut came through");
}

#[test]
fn settings_change_while_it_runs() {
    let Some(mut lab) = lab("set", |_| ()) else { return };
    lab.wan.send("set rtt 120ms".parse().unwrap()).unwrap();
    lab.wan.send("set loss 0%".parse().unwrap()).unwrap();
    let begin = Instant::now();
    lab.a.send(&[1; 10]).unwrap();
    receive(&lab.b).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(60));
    assert_eq!(lab.wan.stats().unwrap().rtt_ns, 120_000_000);
}

#[test]
fn programs_run_at_either_side_and_nothing_is_left_behind() {
    let mut names = Vec::new();
    let Some(lab) = lab("end", |options| names = vec![options.a.path(), options.b.path()]) else { return };
    let output = lab.wan.command(Side::B, "cat").arg("/proc/net/fib_trie").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("10.99.0.2"));
    let control = lab.wan.control().to_owned();
    assert!(names.iter().all(|name| name.exists()) && control.exists());
    drop(lab);
    assert!(!names.iter().any(|name| name.exists()) && !control.exists());
}

#[test]
fn counters_are_written_in_the_end_and_a_namespace_that_was_there_stays() {
    let Some(lab) = lab("stats", |_| ()) else { return };
    let file = std::env::temp_dir().join(format!("wanem-{}-stats.json", std::process::id()));
    let name = |side: &str| format!("wanem-{}-stats-{side}", std::process::id());
    // A second WAN between the same namespaces, on a device of its own; its input ends at once.
    let second = Process::new(PROGRAM)
        .args(["run", "--a", &name("a"), "--b", &name("b"), "--device", "wan1", "--a-ip", "10.98.0.1/30", "--b-ip", "10.98.0.2/30"])
        .args(["--create-namespaces", "--rate", "1Mbit", "--rtt", "1ms", "--watch-stdin", "--stats"])
        .arg(&file)
        .stdin(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let report: wanem::Report = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report.rate_bits_per_second, Some(1_000_000));
    std::fs::remove_file(&file).unwrap();
    lab.a.send(&[1; 10]).unwrap();
    assert_eq!(receive(&lab.b).unwrap(), 10);
}

#[test]
fn a_device_in_use_is_an_error_that_names_it() {
    let Some(lab) = lab("busy", |_| ()) else { return };
    let name = |side: &str| format!("wanem-{}-busy-{side}", std::process::id()).parse().unwrap();
    let error = Emulator::start(Path::new(PROGRAM), &Options::new(name("a"), name("b"))).unwrap_err();
    assert!(matches!(&error, Error::NotStarted(message) if message.contains("wan0")), "{error}");
    drop(lab);
}

#[test]
fn bad_arguments_are_refused() {
    let run = |arguments: &[&str]| {
        let output = Process::new(PROGRAM).arg("run").args(arguments).args(["--rate", "1Mbit", "--rtt", "1ms"]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run(&["--a", "same", "--b", "same"]).contains("must differ"));
    assert!(run(&["--a", "a/b", "--b", "c"]).contains("namespace's name"));
    if rustix::process::geteuid().is_root() {
        assert!(run(&["--a", "no-such-namespace", "--b", "c"]).contains("ip netns add no-such-namespace"));
    } else {
        assert!(run(&["--a", "no-such-namespace", "--b", "c"]).contains("needs root"));
    }
}
