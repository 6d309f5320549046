//! What a paired site may not ask for.

use crate::Scene;
use crate::forger::{ask, open, soon};
use replicator::transport::StreamKind;
use serde_json::{Value, json};

fn standby(name: &str, volume: &str, size_bytes: u64) -> Value {
    let lineage = json!([{"counter": 1, "id": "01".repeat(16), "branch_epoch": 0}]);
    json!({"ask": "create-standby", "name": name, "volume": volume, "size_bytes": size_bytes, "lineage": lineage})
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_make_no_sense_are_refused_and_others_answered() {
    let scene = Scene::start().await;
    let link = scene.forger.link().await;
    let mut without_lineage = standby("vm7", &"07".repeat(16), 1 << 20);
    without_lineage["lineage"] = json!([]);
    let mut twice = standby("vm7", &"07".repeat(16), 1 << 20);
    twice["lineage"] = json!([twice["lineage"][0], twice["lineage"][0]]);
    for (question, words) in [
        (json!({"ask": "the-way"}), "unknown variant"),
        (json!([1, 2, 3]), ""),
        (standby("../vm7", &"07".repeat(16), 1 << 20), "name"),
        (standby("vm7", "../../etc/passwd", 1 << 20), "id"),
        (standby("vm7", &"07".repeat(16), 0), "size"),
        (standby("vm7", &"07".repeat(16), 4095), "size"),
        (standby("vm7", &"07".repeat(16), u64::MAX / 4096 * 4096), "size"),
        (without_lineage, "lineage"),
        (twice, "lineage"),
    ] {
        let answer = ask(&link, &serde_json::to_vec(&question).unwrap()).await;
        assert_eq!((&answer["answer"], &answer["code"]), (&"refused".into(), &"invalid-request".into()), "{question}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| message.contains(words)), "{question}: {answer}");
    }
    assert_eq!(ask(&link, b"{\"ask\":\"ping\"").await["answer"], "refused");
    assert_eq!(ask(&link, &[0xff; 60_000]).await["answer"], "refused");
    let (_send, mut recv) = open(&link, StreamKind(99), b"").await;
    let error = soon(recv.read_to_end(1)).await.unwrap_err();
    assert!(error.to_string().contains("reset"), "a stream of an unknown kind: {error}");
    assert_eq!(ask(&link, br#"{"ask":"ping"}"#).await["answer"], "done", "the link works on");
    let volumes = scene.pair.a.tern(&["volume", "list"]);
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 1, "{volumes}");
    scene.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_shared_with_a_site_is_out_of_its_reach() {
    let scene = Scene::start().await;
    let link = scene.forger.link().await;
    let volume = scene.volume();
    for force in [false, true] {
        let question = json!({"ask": "handover", "volume": volume, "generation": "09".repeat(16), "force": force});
        let answer = ask(&link, &serde_json::to_vec(&question).unwrap()).await;
        assert_eq!((&answer["answer"], &answer["code"]), (&"refused".into(), &"not-found".into()), "{answer}");
    }
    let detach = json!({"ask": "detach", "volume": volume});
    ask(&link, &serde_json::to_vec(&detach).unwrap()).await;
    for (name, id) in [("vm1", "07".repeat(16)), ("vm7", volume)] {
        let answer = ask(&link, &serde_json::to_vec(&standby(name, &id, 16 << 20)).unwrap()).await;
        assert_eq!((&answer["answer"], &answer["code"]), (&"refused".into(), &"already-exists".into()), "{answer}");
    }
    assert_eq!(scene.pair.a.volume()["peer"], "oregon");
    scene.end();
}
