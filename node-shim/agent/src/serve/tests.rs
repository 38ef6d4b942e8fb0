//! Conversations over real sockets, with a kubelet that the test plays. The test is the shim.

mod shim;

use std::time::Duration;

use node_shim_protocol::agent::{GuestState, GuestStatus, InterfaceRequest, Request, Response, VERSION};

use super::board::Report;
use shim::{Answer, Node, PATIENCE, Shim};

fn hello(interfaces: Vec<InterfaceRequest>) -> Request {
    Request::Hello {
        version: VERSION,
        interfaces,
    }
}

fn status(state: GuestState) -> GuestStatus {
    GuestStatus {
        state,
        boot_time_ms: 1_700_000_000_000,
        vcpus: 1,
        memory_bytes: 1 << 30,
        resets: 0,
        kernel: None,
    }
}

/// Goes on as a shim that was served before.
async fn resume(shim: &Shim, state: GuestState) {
    let status = status(state);
    shim.say(
        &Request::Resume {
            version: VERSION,
            status,
        },
        &[],
    )
    .await;
}

fn refusal(answer: Answer) -> (String, bool) {
    match answer {
        Answer::Response(Response::Refused { reason, retryable }, descriptors) if descriptors.is_empty() => {
            (reason, retryable)
        }
        other @ (Answer::Response(..) | Answer::HungUp) => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_interfaces_is_granted_kvm() {
    let node = Node::new(1);
    node.allocate("0", "shop/web");
    let Some(netns) = shim::network_namespace() else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let shim = Shim::connect(&node, "0").await;
    shim.say(&hello(Vec::new()), &[&netns]).await;
    let Answer::Response(Response::Granted { interfaces }, descriptors) = shim.hear().await else {
        panic!()
    };
    assert!(interfaces.is_empty());
    let [kvm] = descriptors.as_slice() else {
        panic!("{descriptors:?}")
    };
    let name = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(kvm))).unwrap();
    assert_eq!(name.to_str(), Some("/dev/kvm"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_network_is_refused_for_good() {
    let node = Node::new(1);
    node.allocate("0", "shop/web");
    let shim = Shim::connect(&node, "0").await;
    shim.say(
        &hello(Vec::new()),
        &[&std::fs::File::open("/proc/self/ns/net").unwrap()],
    )
    .await;
    let (reason, retryable) = refusal(shim.hear().await);
    assert!(reason.contains("hostNetwork") && !retryable, "{reason}");
    assert!(matches!(shim.hear().await, Answer::HungUp));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_namespace_is_refused_for_good() {
    let node = Node::new(1);
    node.allocate("0", "shop/web");
    for files in [vec!["/dev/null"], vec![], vec!["/dev/null", "/dev/null"]] {
        let shim = Shim::connect(&node, "0").await;
        let files: Vec<_> = files
            .into_iter()
            .map(|path| std::fs::File::open(path).unwrap())
            .collect();
        shim.say(&hello(Vec::new()), &files.iter().collect::<Vec<_>>()).await;
        assert!(!refusal(shim.hear().await).1);
        assert!(matches!(shim.hear().await, Answer::HungUp));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_refused_for_good() {
    let node = Node::new(1);
    let shim = Shim::connect(&node, "0").await;
    shim.say(
        &Request::Hello {
            version: 99,
            interfaces: Vec::new(),
        },
        &[],
    )
    .await;
    let (reason, retryable) = refusal(shim.hear().await);
    assert!(reason.contains("99") && !retryable, "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_kubelet_does_not_know_may_try_again() {
    let node = Node::new(1);
    let shim = Shim::connect(&node, "0").await;
    shim.say(&hello(Vec::new()), &[&std::fs::File::open("/dev/null").unwrap()])
        .await;
    let (reason, retryable) = refusal(shim.hear().await);
    assert!(
        reason.contains("no pod with the device tandem.dev/kvm 0") && retryable,
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_listed_a_moment_later_is_served() {
    let mut node = Node::new(1);
    let shim = Shim::connect(&node, "0").await;
    resume(&shim, GuestState::Running).await;
    node.listed_once().await;
    node.allocate("0", "shop/web");
    let Report::Guest { pod, .. } = node.report().await else {
        panic!()
    };
    assert_eq!(pod.to_string(), "shop/web");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_reported_until_the_shim_hangs_up() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let shim = Shim::connect(&node, "0").await;
    resume(&shim, GuestState::Booting).await;
    shim.say(&Request::Status(status(GuestState::Running)), &[]).await;
    for expected in [GuestState::Booting, GuestState::Running] {
        let Report::Guest { status, .. } = node.report().await else {
            panic!()
        };
        assert_eq!(status.state, expected);
    }
    drop(shim);
    assert!(matches!(node.report().await, Report::HungUp { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_is_refused_while_the_first_lives_and_served_after_it() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let first = Shim::connect(&node, "0").await;
    resume(&first, GuestState::Running).await;
    assert!(matches!(node.report().await, Report::Guest { .. }));
    let second = Shim::connect(&node, "0").await;
    assert!(refusal(second.hear().await).1);
    drop(first);
    assert!(matches!(node.report().await, Report::HungUp { .. }));
    let third = Shim::connect(&node, "0").await;
    resume(&third, GuestState::Running).await;
    assert!(matches!(node.report().await, Report::Guest { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_connection_makes_way_for_the_devices_new_pod() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/old");
    let old = Shim::connect(&node, "0").await;
    resume(&old, GuestState::Running).await;
    assert!(matches!(node.report().await, Report::Guest { .. }));
    node.allocate("0", "shop/new");
    let new = Shim::connect(&node, "0").await;
    resume(&new, GuestState::Running).await;
    let Report::Guest { pod, .. } = node.report().await else {
        panic!()
    };
    assert_eq!(pod.to_string(), "shop/new");
    assert!(matches!(old.hear().await, Answer::HungUp));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_hostile_peer_sends_ends_only_its_own_conversation() {
    let mut node = Node::new(2);
    node.allocate("0", "shop/hostile");
    node.allocate("1", "shop/honest");
    let null = std::fs::File::open("/dev/null").unwrap();
    let resume_packet = serde_json::to_vec(&Request::Resume {
        version: VERSION,
        status: status(GuestState::Running),
    })
    .unwrap();
    let deep = [b"[".repeat(30_000), b"]".repeat(30_000)].concat();
    let first_packets: [&[u8]; 6] = [
        b"{",
        b"null",
        &[0xff; 1000],
        &b" ".repeat(65_537),
        &deep,
        br#"{"Status":{}}"#,
    ];
    for packet in first_packets {
        let shim = Shim::connect(&node, "0").await;
        shim.send(packet, &[&null, &null]).await;
        assert!(matches!(shim.hear().await, Answer::HungUp));
    }
    let later_packets: [Vec<u8>; 3] = [
        resume_packet.clone(),
        serde_json::to_vec(&Request::Status(GuestStatus {
            memory_bytes: u64::MAX,
            ..status(GuestState::Running)
        }))
        .unwrap(),
        serde_json::to_vec(&hello(Vec::new())).unwrap(),
    ];
    for packet in later_packets {
        let shim = Shim::connect(&node, "0").await;
        shim.send(&resume_packet, &[]).await;
        shim.send(&packet, &[]).await;
        assert!(matches!(shim.hear().await, Answer::HungUp));
    }
    // Silent connections to one device hold up no other.
    let _silent = Shim::connect(&node, "0").await;
    let honest = Shim::connect(&node, "1").await;
    resume(&honest, GuestState::Running).await;
    let honest_report = async {
        loop {
            if let Report::Guest { pod, .. } = node.report().await
                && pod.to_string() == "shop/honest"
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, honest_report)
        .await
        .expect("the honest pod was not served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_not_waited_for() {
    let node = Node::new(1);
    let silent = Shim::connect(&node, "0").await;
    let hung_up = tokio::time::timeout(PATIENCE + Duration::from_secs(10), silent.hear())
        .await
        .unwrap();
    assert!(matches!(hung_up, Answer::HungUp));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kvm_a_vm_is_refused_with_the_reason() {
    let node = Node::new(1);
    node.allocate("0", "shop/web");
    node.kvm(Err("no vmx".into()));
    let Some(netns) = shim::network_namespace() else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let shim = Shim::connect(&node, "0").await;
    shim.say(&hello(Vec::new()), &[&netns]).await;
    assert_eq!(
        refusal(shim.hear().await),
        ("KVM does not work on this node: no vmx".into(), true)
    );
}
