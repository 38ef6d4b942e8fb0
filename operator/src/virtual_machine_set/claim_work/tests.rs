//! What is done about claims that the API server does not admit, by an API server that says so.

use std::{net::Ipv4Addr, time::Duration};

use axum::{
    Router,
    http::{Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::IntoResponse,
};
use jiff::Timestamp;
use kube::{
    Client, Config,
    core::DeserializeGuard,
    runtime::{
        events::{Recorder, Reporter},
        reflector,
        watcher::Event,
    },
};
use serde_json::Value;

use super::*;
use crate::virtual_machine_set::{
    member,
    set_member::{SetMember, Status},
    tests::with_claims,
};

/// web-0 and web-3 are refused, web-1's claim is that of another set, web-2's and web-4's are as they should be.
async fn answer(method: Method, uri: Uri, body: String) -> impl IntoResponse + use<> {
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    let name = body["metadata"]["name"].as_str().unwrap_or(last);
    let failure = |code: StatusCode| json!({ "kind": "Status", "status": "Failure", "code": code.as_u16(), "reason": "", "message": "no" });
    let partial = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": { "name": name, "namespace": "default", "labels": { "tandem.dev/vm-set": "another" } },
    });
    let code = match (method, name) {
        (_, "data-web-0" | "data-web-3") => StatusCode::FORBIDDEN,
        (Method::POST, "data-web-1") => StatusCode::CONFLICT,
        _ => StatusCode::OK,
    };
    let answer = match code {
        StatusCode::OK if body["kind"] == "PersistentVolumeClaim" => body,
        StatusCode::OK => partial,
        code => failure(code),
    };
    (code, [(CONTENT_TYPE, "application/json")], answer.to_string())
}

async fn client() -> Client {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    let uri = format!("http://{address}").parse().expect("a URI");
    Client::try_from(Config::new(uri)).expect("a client")
}

#[tokio::test]
async fn what_is_refused_is_said_and_keeps_nothing_else_from_being_done() {
    let set = with_claims(&json!({ "whenScaled": "Delete" }));
    let wanted = member::wanted(&set);
    let (claims, mut writer) = reflector::store();
    let mut vms = Vec::new();
    for name in ["web-3", "web-4"] {
        let mut vm = member::vm(&set, name, &wanted.revision);
        vm.metadata.uid = Some(name.to_owned());
        let (metadata, status) = (vm.metadata, Status::default());
        vms.push(Arc::new(DeserializeGuard(Ok(SetMember { metadata, status }))));
        let claim = claims::claim(&set, &set.spec.volume_claim_templates[0], name, &Owner::Nobody);
        let claim = serde_json::to_value(claim).and_then(serde_json::from_value);
        writer.apply_watcher_event(&Event::Apply(claim.expect("metadata of a claim")));
    }
    let client = client().await;
    let reporter = Reporter {
        controller: "test".to_owned(),
        instance: None,
    };
    let context = SetContext {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        members: reflector::store().0,
        claims,
        listed: [Arc::default(), Arc::default()],
    };
    let members: Vec<Member> = vms
        .iter()
        .map(|vm| member::read(vm, Duration::ZERO, Timestamp::UNIX_EPOCH))
        .collect();
    let plan = plan::plan(&wanted, &members);
    let mut work = ClaimWork::of(&set, &wanted, &vms, &members, &context);
    let applied = work.apply().await.expect("no failure");
    let refused = "the API server did not admit the claim data-web-0: no";
    assert_eq!(applied.rejected.as_deref(), Some(refused));
    let now = work.without_later(&plan);
    assert_eq!(
        (now.create, now.delete),
        (vec!["web-2".to_owned()], vec!["web-4".to_owned()])
    );
}
