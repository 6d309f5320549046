//! The whole program against a daemon that answers what a test says: requests, output and exit codes.

use crate::{app, console::Console};
use blockd_api::ExitCode;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// What the fake was asked: method, path with query, body.
type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A daemon with one answer for everything, on a thread of its own; it ends with the test.
struct Fake {
    asked: Asked,
    path: PathBuf,
    _dir: tempfile::TempDir,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Fake {
    fn answering(status: u16, body: impl Into<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let asked = Asked::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (seen, body) = (Arc::clone(&asked), Bytes::from(body.into()));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, seen, status, body) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { asked, path, _dir: dir, _stop: stop }
    }

    fn run(&self, line: &str) -> Ended {
        run_at(self.path.to_str().unwrap(), line)
    }

    fn asked(&self) -> Vec<(String, String, Value)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(listener: tokio::net::UnixListener, seen: Asked, status: u16, body: Bytes) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (seen, body) = (Arc::clone(&seen), body.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (seen, body) = (Arc::clone(&seen), body.clone());
            async move {
                let (head, sent) = request.into_parts();
                let sent = sent.collect().await?.to_bytes();
                let sent = serde_json::from_slice(&sent).unwrap_or(Value::Null);
                seen.lock().unwrap().push((head.method.to_string(), head.uri.to_string(), sent));
                let mut response = Response::new(Full::new(body));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, hyper::Error>(response)
            }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }
}

struct Ended {
    exit: ExitCode,
    out: String,
    err: String,
}

impl Ended {
    fn document(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "one document: {:?}", self.out);
        serde_json::from_str(&self.out).unwrap()
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn run_at(socket: &str, line: &str) -> Ended {
    let (out, err) = (Buffer::default(), Buffer::default());
    let args = ["tern", "--admin", socket].into_iter().chain(line.split_whitespace()).map(OsString::from);
    let exit = app::run(args, &mut Console::of_writers(out.clone(), err.clone()));
    Ended { exit, out: out.text(), err: err.text() }
}

fn refusal(code: &str) -> String {
    json!({"error": {"code": code, "message": "vm1 has 3 blocks unsent", "hint": "--force accepts that"}}).to_string()
}

/// A status of one volume, with every field.
pub fn example_status() -> Value {
    let mut status = json!({"site": "osaka", "id": "5f", "volumes": [{"name": "vm1", "size_bytes": 10u64 << 30, "role": "primary", "state": "catching-up",
        "promise_held": true, "mode": "async", "peer": "oregon", "generation": 3, "epoch_open": 812, "epoch_committed": 810,
        "rpo_seconds": 0.4, "rpo_target_seconds": 5.0, "point_age_seconds": 1.4, "schedule": null, "next_cut": null, "bandwidth_bits_per_second": 50_000_000, "backlog_bytes": 12u64 << 20,
        "dirty_blocks": 3072, "changed_bytes": 3u64 << 30, "wire_bytes_sent": 1u64 << 30, "wire_bytes_received": 5 << 20,
        "zero_blocks": 6, "duplicate_blocks": 7, "delta_blocks": 8, "full_blocks": 9, "evacuation_seconds": 1.2,
        "attached": ["vhost-user", "nbd"], "last_error": null, "replicas": [{"site": "oregon", "mode": "async", "state": "catching-up",
            "epoch_committed": 810, "rpo_seconds": 0.4, "backlog_bytes": 12u64 << 20}]}],
        "journal": {"used_bytes": 1u64 << 30, "quota_bytes": 20u64 << 30}, "spill": {"used_bytes": 0, "quota_bytes": 10u64 << 30}});
    status["volumes"][0]["bandwidth"] = json!("08:00-18:00=50Mbit,else=200Mbit");
    status
}

#[test]
fn exit_codes_follow_the_daemons_error() {
    for (code, status, exit) in [
        ("not-found", 404, ExitCode::Failed),
        ("peer-unreachable", 502, ExitCode::Failed),
        ("invalid-request", 400, ExitCode::Usage),
        ("timeout", 504, ExitCode::TimedOut),
        ("would-lose-data", 409, ExitCode::Refused),
        ("client-active", 409, ExitCode::Refused),
        ("something-newer", 500, ExitCode::Failed),
    ] {
        let fake = Fake::answering(status, refusal(code));
        for line in ["promote vm1", "status vm1", "volume delete vm1"] {
            let ended = fake.run(line);
            assert_eq!((ended.exit, ended.out.as_str()), (exit, ""), "{line} {code}");
            assert_eq!(ended.err, "tern: vm1 has 3 blocks unsent; --force accepts that\n");
            let ended = fake.run(&format!("--json {line}"));
            assert_eq!((ended.exit, ended.err.as_str()), (exit, ""), "{line} {code}");
            assert_eq!(ended.document()["error"]["hint"], "--force accepts that");
        }
    }
}

#[test]
fn an_error_at_the_end_of_a_stream_is_an_error_too() {
    let progress = json!({"progress": {"phase": "final cut", "done": 1, "total": 2, "unit": "blocks"}});
    let fake = Fake::answering(200, format!("{progress}\n{}\n", refusal("client-active")));
    assert_eq!(fake.run("promote vm1").exit, ExitCode::Refused);
    let broken = Fake::answering(200, format!("{progress}\n"));
    let ended = broken.run("promote vm1");
    assert_eq!(ended.exit, ExitCode::Failed);
    assert!(ended.err.contains("went away before the operation ended"), "{}", ended.err);
}

#[test]
fn nobody_at_the_socket_is_one_line_with_the_cure() {
    let ended = run_at("/nonexistent/blockd.sock", "status");
    assert_eq!(ended.exit, ExitCode::Failed);
    let expected = "tern: cannot reach blockd at /nonexistent/blockd.sock: there is no such socket; \
        start blockd, or name its socket with --admin PATH or $TERN_ADMIN\n";
    assert_eq!(ended.err, expected);
    let ended = run_at("/nonexistent/blockd.sock", "--json wait vm1 --for primary");
    assert_eq!(ended.document()["error"]["code"], "unavailable");
}

#[test]
fn somebody_else_at_the_socket_is_an_error() {
    for body in ["", "<html>hello</html>", "[1,2", "{\"progress\":1}"] {
        let fake = Fake::answering(500, body);
        for line in ["status", "verify vm1"] {
            let ended = fake.run(line);
            assert_eq!((ended.exit, ended.err.lines().count()), (ExitCode::Failed, 1), "{line} {body}: {}", ended.err);
        }
    }
}

#[test]
fn usage_is_two_and_a_document_under_json() {
    let ended = run_at("/nonexistent", "volume create vm1 --size 10GB");
    assert_eq!((ended.exit, ended.out.as_str()), (ExitCode::Usage, ""));
    assert!(ended.err.contains("10G"), "{}", ended.err);
    let ended = run_at("/nonexistent", "volume create vm1 --size 10GB --json");
    assert_eq!(ended.exit, ExitCode::Usage);
    assert_eq!(ended.document()["error"]["code"], "invalid-request");
    assert_eq!(run_at("/nonexistent", "--json").document()["error"]["message"], "a verb is missing");
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "--version", "volume --help", "promote --help"] {
        let ended = run_at("/nonexistent", line);
        assert_eq!((ended.exit, ended.err.as_str()), (ExitCode::Done, ""), "{line}");
        assert!(!ended.out.is_empty());
    }
}

#[test]
fn a_forecast_is_one_line_a_standby_with_what_is_to_be_known_of_it() {
    let forecast = json!({"name": "vm1", "to": "oregon", "seconds": 2.5, "seconds_if_idle": 1.5, "bytes": 5_242_880, "confidence": "low",
        "backlog_bytes": 10_485_760, "write_bytes_per_second": 1_250_000, "link_bytes_per_second": 10_000_000, "wire_per_byte": 0.5,
        "fixed_seconds": null, "note": "no handover has been seen yet"});
    let fake = Fake::answering(200, json!({ "volumes": [forecast] }).to_string());
    let expected = "VOLUME  TO      EVACUATION  IF IDLE   TO SEND   BACKLOG       WRITES         LINK  SHRINKS TO  CONFIDENCE\n\
        vm1     oregon       2.5 s    1.5 s  5.00 MiB  10.0 MiB  10.0 Mbit/s  80.0 Mbit/s        50 %  low\n\
        vm1 to oregon: no handover has been seen yet\n";
    assert_eq!(fake.run("forecast vm1 --to oregon").out, expected);
    assert_eq!(fake.asked()[0].1, "/v1/forecast?volume=vm1&to=oregon");
    let past = json!({"name": "vm1", "time": "2026-11-22T09:00:00Z", "from": "osaka", "to": null, "epoch": 7, "forecast_seconds": 2.0,
        "actual_seconds": null, "error_percent": null, "forecast_bytes": 0});
    let fake = Fake::answering(200, json!({ "handovers": [past] }).to_string());
    let expected = "VOLUME  TIME                  FROM   TO  FORECAST  ACTUAL  ERROR  TO SEND\n\
        vm1     2026-11-22T09:00:00Z  osaka  -      2.0 s       -      -      0 B\n";
    assert_eq!(fake.run("forecast --history").out, expected);
    assert_eq!(fake.asked()[0].1, "/v1/handovers");
}

#[test]
fn json_passes_on_what_the_daemon_wrote() {
    let document = json!({"site": "osaka", "volumes": [{"state": "a-state-of-the-future"}], "news": [1, 2]});
    let fake = Fake::answering(200, document.to_string());
    assert_eq!(fake.run("status --json").document(), document);
    let ended = fake.run("status");
    assert_eq!(ended.exit, ExitCode::Failed);
    assert!(ended.err.contains("--json"), "{}", ended.err);
}

#[test]
fn status_is_one_line_a_volume() {
    let fake = Fake::answering(200, example_status().to_string());
    let ended = fake.run("status vm1");
    let expected = "VOLUME  ROLE     STATE        MODE   PEER      RPO   BACKLOG  EVACUATION  ATTACHED\n\
        vm1     primary  catching-up  async  oregon  0.4 s  12.0 MiB       1.2 s  vhost-user,nbd\n\
        vm1: sends at most 50.0 Mbit/s now, by 08:00-18:00=50Mbit,else=200Mbit in UTC\n";
    assert_eq!((ended.exit, ended.out.as_str()), (ExitCode::Done, expected));
    assert_eq!(fake.asked(), [("GET".to_owned(), "/v1/status?volume=vm1".to_owned(), Value::Null)]);
}

#[test]
fn a_difference_found_is_a_result_and_a_failure() {
    let result = |different: u64| json!({"result": {"blocks_compared": 100, "blocks_different": different, "at_epoch": 7}}).to_string();
    let same = Fake::answering(200, result(0)).run("verify vm1");
    assert_eq!((same.exit, same.out.as_str()), (ExitCode::Done, "vm1: 100 blocks compared, 0 differ, at epoch 7\n"));
    let ended = Fake::answering(200, result(2)).run("verify vm1 --json");
    assert_eq!(ended.exit, ExitCode::Failed);
    assert_eq!(ended.document()["blocks_different"], 2);
}

#[test]
fn requests_say_what_was_typed() {
    let volume = json!({"name": "vm1", "size_bytes": 4096, "backing": "/x", "exports": [], "role": "standalone", "allocated_bytes": null});
    for (line, method, path, body) in [
        ("volume delete vm1", "DELETE", "/v1/volumes/vm1?yes=false", Value::Null),
        ("volume delete vm1 --yes", "DELETE", "/v1/volumes/vm1?yes=true", Value::Null),
        ("volume resize vm1 8K", "POST", "/v1/volumes/vm1/resize", json!({"size_bytes": 8192, "yes": false})),
        ("volume export vm1 --nbd unix:/a", "POST", "/v1/volumes/vm1/export", json!({"kind": "nbd", "address": "unix:/a"})),
        ("volume export vm1 --vhost-user /a", "POST", "/v1/volumes/vm1/export", json!({"kind": "vhost-user", "path": "/a"})),
        (
            "volume export vm1 --nbd unix:/a --read-only",
            "POST",
            "/v1/volumes/vm1/export",
            json!({"kind": "nbd", "address": "unix:/a", "access": "read-only"}),
        ),
        ("volume export vm1 --remove", "POST", "/v1/volumes/vm1/unexport", json!({"export": null})),
    ] {
        let fake = Fake::answering(200, volume.to_string());
        assert_eq!(fake.run(line).exit, ExitCode::Done, "{line}");
        assert_eq!(fake.asked(), [(method.to_owned(), path.to_owned(), body)], "{line}");
    }
    let status = &example_status()["volumes"][0];
    for (line, path, body) in [
        ("replicate vm1 --stop", "/v1/volumes/vm1/stop", json!({"to": null, "force": false})),
        (
            "replicate vm1 --to oregon --rpo 5s --bandwidth 50Mbit",
            "/v1/volumes/vm1/replicate",
            json!({"to": "oregon", "mode": null, "rpo": "5s", "bandwidth": "50Mbit", "on_disconnect": null, "ack_timeout": null, "schedule": null,
                "fence": null, "lease": null, "witness": null, "auto_promote": null, "force": false}),
        ),
        (
            "replicate vm1 --to oregon --fence lease --lease 5s --witness kyoto --auto-promote 30s",
            "/v1/volumes/vm1/replicate",
            json!({"to": "oregon", "mode": null, "rpo": null, "bandwidth": null, "on_disconnect": null, "ack_timeout": null, "schedule": null,
                "fence": "lease", "lease": "5s", "witness": "kyoto", "auto_promote": "30s", "force": false}),
        ),
        ("mode vm1 async", "/v1/volumes/vm1/mode", json!({"mode": "async", "schedule": null, "to": null})),
        ("mode vm1 snapshot --schedule 15m", "/v1/volumes/vm1/mode", json!({"mode": "snapshot", "schedule": "15m", "to": null})),
    ] {
        let fake = Fake::answering(200, status.to_string());
        assert_eq!(fake.run(line).exit, ExitCode::Done, "{line}");
        assert_eq!(fake.asked(), [("POST".to_owned(), path.to_owned(), body)], "{line}");
    }
    for (line, path, body) in [
        ("wait vm1 --for committed=7", "/v1/volumes/vm1/wait", json!({"for": "committed=7", "timeout": "1m"})),
        ("demote vm1 --force", "/v1/volumes/vm1/demote", json!({"force": true})),
    ] {
        let fake = Fake::answering(200, json!({ "result": status }).to_string());
        assert_eq!(fake.run(line).exit, ExitCode::Done, "{line}");
        assert_eq!(fake.asked(), [("POST".to_owned(), path.to_owned(), body)], "{line}");
    }
}

#[test]
fn a_promotion_says_what_was_lost() {
    for (lost, told) in [(json!(0), "nothing lost"), (json!(3 << 20), "3.00 MiB lost"), (Value::Null, "cannot be known")] {
        let result = json!({"kind": "failover", "epoch": 9, "generation": 2, "seconds": 0.5, "lost_bytes": lost});
        let ended = Fake::answering(200, json!({ "result": result }).to_string()).run("promote vm1 --force");
        assert_eq!(ended.exit, ExitCode::Done);
        assert!(ended.out.contains(told), "{}", ended.out);
    }
}

#[test]
fn show_tells_how_to_attach_or_that_it_cannot_be() {
    let volume = |exports: Value| {
        json!({"name": "vm1", "size_bytes": 4096, "backing": "/x", "exports": exports, "role": "primary", "allocated_bytes": 0}).to_string()
    };
    let both = json!([{"kind": "nbd", "address": "unix:/run/n.sock"}, {"kind": "vhost-user", "path": "/run/v.sock"}]);
    let fake = Fake::answering(200, volume(both));
    assert!(fake.run("volume show vm1").out.contains("nbd+unix:///vm1?socket=/run/n.sock"));
    assert!(fake.run("volume show vm1 --qemu").out.contains("path=/run/v.sock"));
    assert_eq!(fake.run("volume show vm1 --qemu --json").document()["qemu"][0], "-m");
    assert!(fake.run("volume show vm1 --libvirt").out.contains("<disk type='vhostuser'"));
    assert_eq!(fake.run("volume show vm1 --qemu --memory 4095").exit, ExitCode::Usage);
    let ended = Fake::answering(200, volume(json!([]))).run("volume show vm1 --qemu");
    assert_eq!(ended.exit, ExitCode::Failed);
    assert!(ended.err.contains("tern volume export vm1"), "{}", ended.err);
}

#[test]
fn watching_needs_a_terminal() {
    let ended = run_at("/nonexistent", "status --watch");
    assert_eq!(ended.exit, ExitCode::Usage);
    assert!(ended.err.contains("terminal"), "{}", ended.err);
}
