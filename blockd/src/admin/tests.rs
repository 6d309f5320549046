//! The server over a real socket, with a daemon that answers what a test wants.

use super::*;
use crate::unix_socket::SocketAccess;
use blockd_api::{
    ApiError, BeginDrill, ChangeGroup, Condition, CreateGroup, CreateVolume, DeleteVolume, Demote, Done, Drill, DrillList, ErrorCode,
    ErrorDocument, Event, Export, ForecastList, GroupList, GroupStatus, HandoverList, Invite, InvitePeer, JoinPeer, MAX_REQUEST_BYTES,
    Peer, PeerList, PointList, Progress, Promote, Promotion, PromotionKind, Replicate, ResizeVolume, Resync, Resynced, ScrubStatus,
    SetMode, SiteName, Snapshot, Status, StopReplication, TakeBack, Unexport, Verification, VolumeInfo, VolumeList, VolumeName,
    VolumeStatus, Waited,
};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Notify, oneshot},
};

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Steps that a test takes with an operation.
#[derive(Default)]
struct Fake {
    started: Notify,
    go_on: Notify,
    finished: Notify,
    dropped: Arc<Notify>,
}

/// Tells when it is dropped: how a test sees that an operation was cancelled.
struct TellDrop(Arc<Notify>);

impl Drop for TellDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn refused<T>() -> Outcome<T> {
    Err(ApiError::new(ErrorCode::WrongState, "not in this test"))
}

impl Control for Fake {
    async fn status(&self, volume: Option<VolumeName>) -> Outcome<Status> {
        match volume {
            Some(name) => Err(ApiError::new(ErrorCode::NotFound, format!("there is no volume {name}")).with_hint("see `tern volume list`")),
            None => Ok(Status {
                site: "osaka".parse().unwrap(),
                id: "5f".to_owned(),
                volumes: vec![],
                groups: vec![],
                journal: blockd_api::Usage::default(),
                spill: blockd_api::Usage::default(),
            }),
        }
    }
    async fn forecast(&self, _: Option<VolumeName>, _: Option<SiteName>) -> Outcome<ForecastList> {
        refused()
    }
    async fn handovers(&self, _: Option<VolumeName>) -> Outcome<HandoverList> {
        refused()
    }
    async fn create_volume(&self, request: CreateVolume, _: ProgressSink) -> Outcome<VolumeInfo> {
        Err(ApiError::new(ErrorCode::AlreadyExists, format!("{} exists", request.name)))
    }
    async fn list_volumes(&self) -> Outcome<VolumeList> {
        Ok(VolumeList::default())
    }
    async fn show_volume(&self, _: VolumeName) -> Outcome<VolumeInfo> {
        panic!("a fault of the daemon's own");
    }
    async fn delete_volume(&self, _: VolumeName, request: DeleteVolume) -> Outcome<Done> {
        if request.yes { Ok(Done {}) } else { Err(ApiError::new(ErrorCode::WouldLoseData, "3 GiB").with_hint("--yes accepts it")) }
    }
    async fn resize_volume(&self, _: VolumeName, _: ResizeVolume) -> Outcome<VolumeInfo> {
        panic!("a fault of the daemon's own");
    }
    async fn export_volume(&self, _: VolumeName, _: Export) -> Outcome<VolumeInfo> {
        refused()
    }
    async fn unexport_volume(&self, _: VolumeName, _: Unexport) -> Outcome<VolumeInfo> {
        refused()
    }
    async fn invite_peer(&self, _: InvitePeer) -> Outcome<Invite> {
        refused()
    }
    async fn join_peer(&self, _: JoinPeer) -> Outcome<Peer> {
        refused()
    }
    async fn list_peers(&self) -> Outcome<PeerList> {
        Ok(PeerList::default())
    }
    async fn remove_peer(&self, _: SiteName) -> Outcome<Done> {
        Ok(Done {})
    }
    async fn create_group(&self, _: CreateGroup) -> Outcome<GroupStatus> {
        refused()
    }
    async fn change_group(&self, _: VolumeName, _: ChangeGroup) -> Outcome<GroupStatus> {
        refused()
    }
    async fn delete_group(&self, _: VolumeName) -> Outcome<Done> {
        refused()
    }
    async fn list_groups(&self, _: Option<VolumeName>) -> Outcome<GroupList> {
        Ok(GroupList::default())
    }
    async fn replicate(&self, _: VolumeName, _: Replicate) -> Outcome<VolumeStatus> {
        refused()
    }
    async fn stop_replication(&self, _: VolumeName, _: StopReplication) -> Outcome<VolumeStatus> {
        refused()
    }
    async fn set_mode(&self, _: VolumeName, _: SetMode) -> Outcome<VolumeStatus> {
        refused()
    }
    async fn wait(&self, _: VolumeName, _: Condition, _: ProgressSink) -> Outcome<Waited> {
        let _tell = TellDrop(Arc::clone(&self.dropped));
        std::future::pending().await
    }
    async fn snapshot(&self, _: VolumeName, _: ProgressSink) -> Outcome<Snapshot> {
        Ok(Snapshot { epoch: 7, seconds: 0.1 })
    }
    async fn points(&self, _: VolumeName) -> Outcome<PointList> {
        refused()
    }
    async fn begin_drill(&self, _: VolumeName, _: BeginDrill) -> Outcome<Drill> {
        refused()
    }
    async fn end_drill(&self, _: VolumeName) -> Outcome<Drill> {
        refused()
    }
    async fn drills(&self, _: VolumeName) -> Outcome<DrillList> {
        refused()
    }
    async fn commit(&self, _: VolumeName) -> Outcome<Promotion> {
        refused()
    }
    async fn rollback(&self, _: VolumeName, _: TakeBack, _: ProgressSink) -> Outcome<VolumeStatus> {
        refused()
    }
    async fn promote(&self, _: VolumeName, _: Promote, progress: ProgressSink) -> Outcome<Promotion> {
        progress.report(Progress::blocks("final cut", 1, Some(2)));
        self.started.notify_one();
        self.go_on.notified().await;
        progress.report(Progress::blocks("final cut", 2, Some(2)));
        self.finished.notify_one();
        Ok(Promotion { kind: PromotionKind::Handover, epoch: 9, generation: 2, seconds: 0.5, lost_bytes: Some(0), damaged_blocks: 0 })
    }
    async fn demote(&self, _: VolumeName, _: Demote, _: ProgressSink) -> Outcome<VolumeStatus> {
        refused()
    }
    async fn resync(&self, _: VolumeName, _: Resync, _: ProgressSink) -> Outcome<Resynced> {
        refused()
    }
    async fn scrub(&self, _: VolumeName, _: ProgressSink) -> Outcome<ScrubStatus> {
        refused()
    }
    async fn verify(&self, _: VolumeName, progress: ProgressSink) -> Outcome<Verification> {
        let _tell = TellDrop(Arc::clone(&self.dropped));
        progress.report(Progress::blocks("compare", 1, None));
        self.started.notify_one();
        std::future::pending().await
    }
}

struct Server {
    path: PathBuf,
    fake: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        Self::start_with(Limits::new(MAX_CONNECTIONS))
    }

    fn start_with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.sock");
        let socket = AdminSocket::bind(&path, SocketAccess::PRIVATE).unwrap();
        let fake = Arc::new(Fake::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let control = Arc::clone(&fake);
        let served = tokio::spawn(async move {
            let (listener, guard) = socket.into_listener();
            let stopped = async {
                let _ = stopped.await;
            };
            serve_router(listener, router(control), limits, stopped).await;
            drop(guard);
        });
        Self { path, fake, stop: Some(stop), served, _dir: dir }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// Sends raw bytes and reads the whole answer: status and body.
    async fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        let _ = stream.write_all(request).await;
        answer(stream).await
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.raw(head(method, path, body.len(), body).as_bytes()).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
    }
}

fn head(method: &str, path: &str, length: usize, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: tern\r\ncontent-length: {length}\r\n\r\n{body}")
}

async fn answer(stream: UnixStream) -> (u16, String) {
    answer_after(Vec::new(), stream).await
}

async fn answer_after(mut bytes: Vec<u8>, mut stream: UnixStream) -> (u16, String) {
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server answers in time");
    let text = String::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return (0, text) };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.contains("chunked") { unchunk(body) } else { body.to_owned() };
    (status, body)
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = rest.get(length + 2..).unwrap_or_default();
    }
    whole
}

fn code(document: &Value) -> &str {
    document["error"]["code"].as_str().unwrap_or_else(|| panic!("no error document: {document}"))
}

#[tokio::test]
async fn reads_answer_with_their_documents() {
    let server = Server::start();
    let (status, document) = server.request("GET", "/v1/status", "").await;
    assert_eq!((status, document["site"].as_str()), (200, Some("osaka")));
    assert_eq!(server.request("GET", "/v1/peers", "").await, (200, serde_json::json!({"peers": []})));
    assert_eq!(server.request("POST", "/v1/peers/oregon/remove", "").await, (200, serde_json::json!({})));
}

#[tokio::test]
async fn errors_of_the_daemon_keep_their_code_and_hint() {
    let server = Server::start();
    let (status, document) = server.request("GET", "/v1/status?volume=vm9", "").await;
    assert_eq!((status, code(&document)), (404, "not-found"));
    assert_eq!(document["error"]["hint"], "see `tern volume list`");
    let (status, document) = server.request("DELETE", "/v1/volumes/vm1?yes=false", "").await;
    assert_eq!((status, code(&document)), (409, "would-lose-data"));
    assert_eq!(server.request("DELETE", "/v1/volumes/vm1?yes=true", "").await.0, 200);
}

#[tokio::test]
async fn a_wrong_request_is_an_error_document() {
    let server = Server::start();
    let large = " ".repeat(MAX_REQUEST_BYTES + 1);
    for (method, path, body, status, code_wanted) in [
        ("GET", "/v1/nothing", "", 404, "not-found"),
        ("GET", "/v1/volumes/vm1/dance", "", 404, "not-found"),
        ("PATCH", "/v1/status", "", 405, "invalid-request"),
        ("GET", "/v1/volumes/..%2f..", "", 400, "invalid-request"),
        ("GET", "/v1/volumes/%ff", "", 400, "invalid-request"),
        ("GET", "/v1/status?volume=a/b", "", 400, "invalid-request"),
        ("GET", "/v1/status?volumes=vm1", "", 400, "invalid-request"),
        ("DELETE", "/v1/volumes/vm1?yes=maybe", "", 400, "invalid-request"),
        ("POST", "/v1/volumes", "{", 400, "invalid-request"),
        ("POST", "/v1/volumes", "", 400, "invalid-request"),
        ("POST", "/v1/volumes", r#"{"name":"vm1","size":1}"#, 400, "invalid-request"),
        ("POST", "/v1/volumes", &large, 413, "invalid-request"),
        ("POST", "/v1/volumes/vm1/promote", r#"{"froce":true}"#, 400, "invalid-request"),
        ("POST", "/v1/volumes/vm1/export", r#"{"kind":"nbd","address":"unix:relative"}"#, 400, "invalid-request"),
        ("POST", "/v1/volumes/vm1/wait", r#"{"for":"godot"}"#, 400, "invalid-request"),
    ] {
        let (found, document) = server.request(method, path, body).await;
        assert_eq!((found, code(&document)), (status, code_wanted), "{method} {path}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_end_their_connection_only() {
    let server = Server::start();
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0xff; 70_000]] {
        let (status, _) = server.raw(garbage).await;
        assert!(status == 0 || (400..500).contains(&status), "{status}");
    }
    assert_eq!(server.request("GET", "/v1/status", "").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_is_given_up() {
    let server = Server::start();
    // Time is paused: it jumps as soon as both sides only wait.
    let (status, _) = server.raw(b"GET /v1/status HTTP/1.1\r\nhost:").await;
    assert!(status == 0 || status == 408, "{status}");
    let (status, body) = server.raw(head("POST", "/v1/peers/invite", 100, "{").as_bytes()).await;
    assert_eq!(status, 408, "{body}");
    assert_eq!(serde_json::from_str::<ErrorDocument>(&body).unwrap().error.code, ErrorCode::Timeout);
}

#[tokio::test]
async fn a_client_beyond_the_limit_is_told_so() {
    let server = Server::start_with(Limits::new(1));
    let first = server.connect().await;
    // The first is accepted in order, before the second.
    let (status, body) = answer(server.connect().await).await;
    assert_eq!(status, 503);
    assert_eq!(serde_json::from_str::<ErrorDocument>(&body).unwrap().error.code, ErrorCode::Unavailable);
    drop(first);
}

#[tokio::test]
async fn a_long_operation_streams_progress_and_ends_with_its_result() {
    let server = Server::start();
    let mut stream = server.connect().await;
    stream.write_all(head("POST", "/v1/volumes/vm1/promote", 2, "{}").as_bytes()).await.unwrap();
    tokio::time::timeout(PATIENCE, server.fake.started.notified()).await.unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"}}\n\r\n") {
        begun.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    server.fake.go_on.notify_one();
    let (status, body) = answer_after(begun, stream).await;
    assert_eq!(status, 200);
    let events: Vec<Event<Promotion>> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0], Event::Progress(Progress::blocks("final cut", 1, Some(2))));
    let Event::Result(promotion) = events.last().unwrap() else { panic!("{events:?}") };
    assert_eq!(promotion.epoch, 9);
}

#[tokio::test]
async fn an_operation_that_fails_at_once_has_its_http_status() {
    let server = Server::start();
    let (status, document) = server.request("POST", "/v1/volumes", r#"{"name":"vm1","size_bytes":4096}"#).await;
    assert_eq!((status, code(&document)), (409, "already-exists"));
    let (status, document) = server.request("POST", "/v1/volumes/vm1/snapshot", "").await;
    assert_eq!((status, document["result"]["epoch"].as_u64()), (200, Some(7)));
}

#[tokio::test]
async fn hanging_up_does_not_stop_a_promotion_and_does_stop_a_comparison() {
    let server = Server::start();
    for (op, on_hangup) in [("promote", &server.fake.finished), ("verify", &*server.fake.dropped)] {
        let mut stream = server.connect().await;
        stream.write_all(head("POST", &format!("/v1/volumes/vm1/{op}"), 0, "").as_bytes()).await.unwrap();
        tokio::time::timeout(PATIENCE, server.fake.started.notified()).await.unwrap();
        drop(stream);
        server.fake.go_on.notify_one();
        tokio::time::timeout(PATIENCE, on_hangup.notified()).await.expect(op);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_in_time_and_says_hello_meanwhile() {
    let server = Server::start();
    let (status, body) = server.raw(head("POST", "/v1/volumes/vm1/wait", 34, r#"{"for":"primary","timeout":"12s"} "#).as_bytes()).await;
    assert_eq!(status, 200);
    let lines: Vec<Event<VolumeStatus>> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "two heartbeats in twelve seconds, and the end: {body}");
    // This daemon knows no vm1, and says so when it is asked why.
    assert!(matches!(lines.last(), Some(Event::Error(error)) if error.code == ErrorCode::NotFound));
    tokio::time::timeout(PATIENCE, server.fake.dropped.notified()).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_an_error_of_one_request() {
    let server = Server::start();
    let (status, document) = server.request("POST", "/v1/volumes/vm1/resize", r#"{"size_bytes":1}"#).await;
    assert_eq!((status, code(&document)), (500, "internal"));
    let (status, document) = server.request("GET", "/v1/volumes/vm1", "").await;
    assert_eq!((status, code(&document)), (500, "internal"));
}

#[tokio::test]
async fn stopping_removes_the_socket_and_ends_idle_clients() {
    let mut server = Server::start();
    let idle = server.connect().await;
    server.stop.take();
    tokio::time::timeout(PATIENCE, &mut server.served).await.unwrap().unwrap();
    assert!(!server.path.exists());
    assert_eq!(answer(idle).await.1, "");
}
