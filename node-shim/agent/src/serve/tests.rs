//! Conversations over real sockets, with a kubelet that the test plays. The test is the shim.

mod shim;

use std::time::Duration;

use node_shim_protocol::agent::{
    AttachDisk, DiskOptions, GuestState, GuestStatus, InterfaceRequest, Plugged, RESUME_VERSION, Request, Resize,
    Resized, Response, VERSION,
};
use node_shim_protocol::control::{Failure, FailureKind};

use super::report::{DiskQuestion, Report, ShimLink, What};
use shim::{Answer, Node, PATIENCE, POD_UID, Shim};

fn hello(interfaces: Vec<InterfaceRequest>) -> Request {
    Request::Hello {
        version: VERSION,
        pod_uid: POD_UID.to_owned(),
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
        hindrance: None,
        disks: Vec::new(),
        interfaces: Vec::new(),
    }
}

#[test]
fn the_agent_ends_when_the_kubelet_forgot_its_devices() {
    let cases = [
        (false, &[][..], false),
        (true, &[], true),
        // By a device plugin of an earlier version.
        (false, &["net/tun"], true),
        (false, &["null"], false),
    ];
    for (told, there, expected) in cases {
        let given = super::was_given_devices(told, |name| there.contains(&name));
        assert_eq!(given, expected, "{told} {there:?}");
    }
}

/// Goes on as a shim that was served before.
async fn resume(shim: &Shim, state: GuestState) {
    let status = status(state);
    shim.say(
        &Request::Resume {
            version: VERSION,
            pod_uid: POD_UID.to_owned(),
            status,
        },
        &[],
    )
    .await;
}

/// The next state of a guest, and whose it is; other reports are passed over.
async fn guest(node: &mut Node) -> (String, GuestStatus) {
    loop {
        let Report { pod, what, .. } = node.report().await;
        if let What::Guest(status) = what {
            return (pod.to_string(), status);
        }
    }
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
async fn a_vm_of_an_older_release_goes_on() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/old");
    for (version, goes_on) in [
        (RESUME_VERSION, true),
        (RESUME_VERSION - 1, false),
        (VERSION + 1, false),
    ] {
        let shim = Shim::connect(&node, "0").await;
        let request = Request::Resume {
            version,
            pod_uid: POD_UID.to_owned(),
            status: status(GuestState::Running),
        };
        shim.say(&request, &[]).await;
        if goes_on {
            assert_eq!(guest(&mut node).await.1, status(GuestState::Running));
        } else {
            assert!(!refusal(shim.hear().await).1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_refused_for_good() {
    let node = Node::new(1);
    let shim = Shim::connect(&node, "0").await;
    shim.say(
        &Request::Hello {
            version: 99,
            pod_uid: POD_UID.to_owned(),
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
    assert_eq!(guest(&mut node).await.0, "shop/web (p1)");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_reported_until_the_shim_hangs_up() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let shim = Shim::connect(&node, "0").await;
    resume(&shim, GuestState::Booting).await;
    shim.say(&Request::Status(status(GuestState::Running)), &[]).await;
    for expected in [GuestState::Booting, GuestState::Running] {
        assert_eq!(guest(&mut node).await.1.state, expected);
    }
    drop(shim);
    assert!(matches!(node.report().await.what, What::HungUp));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_is_refused_while_the_first_lives_and_served_after_it() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let first = Shim::connect(&node, "0").await;
    resume(&first, GuestState::Running).await;
    guest(&mut node).await;
    let second = Shim::connect(&node, "0").await;
    assert!(refusal(second.hear().await).1);
    drop(first);
    assert!(matches!(node.report().await.what, What::HungUp));
    let third = Shim::connect(&node, "0").await;
    resume(&third, GuestState::Running).await;
    guest(&mut node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_connection_makes_way_for_the_devices_new_pod() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/old");
    let old = Shim::connect(&node, "0").await;
    resume(&old, GuestState::Running).await;
    guest(&mut node).await;
    node.allocate("0", "shop/new");
    let new = Shim::connect(&node, "0").await;
    resume(&new, GuestState::Running).await;
    assert_eq!(guest(&mut node).await.0, "shop/new (p1)");
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
        pod_uid: POD_UID.to_owned(),
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
    let unasked = Resized {
        sequence: 1,
        failure: None,
        status: status(GuestState::Running),
    };
    let later_packets: [Vec<u8>; 4] = [
        resume_packet.clone(),
        serde_json::to_vec(&Request::Status(GuestStatus {
            memory_bytes: u64::MAX,
            ..status(GuestState::Running)
        }))
        .unwrap(),
        serde_json::to_vec(&hello(Vec::new())).unwrap(),
        serde_json::to_vec(&Request::Resized(unasked)).unwrap(),
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
            if guest(&mut node).await.0.starts_with("shop/honest ") {
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

fn size(sequence: u64) -> Resize {
    Resize {
        sequence,
        vcpus: 4,
        memory_bytes: 4 << 30,
    }
}

/// A running shim, and where sizes for its guest go.
async fn running(node: &mut Node) -> (Shim, tokio::sync::watch::Sender<Option<Resize>>) {
    let (shim, link) = linked(node).await;
    (shim, link.sizes)
}

/// A running shim, and where what it is asked for goes.
async fn linked(node: &mut Node) -> (Shim, ShimLink) {
    node.allocate("0", "shop/web");
    let shim = Shim::connect(node, "0").await;
    resume(&shim, GuestState::Running).await;
    let What::Connected(link) = node.report().await.what else {
        panic!("first of all it is said that the conversation has begun")
    };
    guest(node).await;
    (shim, link)
}

async fn hear_size(shim: &Shim) -> Resize {
    match shim.hear().await {
        Answer::Response(Response::Resize(resize), descriptors) if descriptors.is_empty() => resize,
        other @ (Answer::Response(..) | Answer::HungUp) => panic!("no size: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_is_passed_to_the_shim_and_its_answer_back() {
    let mut node = Node::new(1);
    let (shim, sizes) = running(&mut node).await;
    for (sequence, failure) in [
        (
            1,
            Some(Failure {
                kind: FailureKind::Invalid,
                message: "the VM can have 1 to 2 vCPUs, not 4".to_owned(),
            }),
        ),
        // The same again, as after a while.
        (1, None),
        (2, None),
    ] {
        sizes.send_replace(Some(size(sequence)));
        assert_eq!(hear_size(&shim).await, size(sequence));
        let resized = Resized {
            sequence,
            failure,
            status: status(GuestState::Running),
        };
        shim.say(&Request::Resized(resized.clone()), &[]).await;
        let What::Resized(answer) = node.report().await.what else {
            panic!("no answer")
        };
        assert_eq!(answer, resized);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_is_sent_while_the_shim_is_listened_to_slowly() {
    let mut node = Node::new(1);
    let (shim, sizes) = running(&mut node).await;
    // More than are listened to at once.
    for resets in 0..30 {
        let status = GuestStatus {
            resets,
            ..status(GuestState::Running)
        };
        shim.say(&Request::Status(status), &[]).await;
    }
    while guest(&mut node).await.1.resets < 22 {}
    sizes.send_replace(Some(size(1)));
    assert_eq!(hear_size(&shim).await, size(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_asked_for_sizes_only_once_it_was_granted_what_it_needs() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let Some(netns) = shim::network_namespace() else {
        return eprintln!("SKIPPED: network namespaces need root");
    };
    let shim = Shim::connect(&node, "0").await;
    shim.say(&hello(Vec::new()), &[&netns]).await;
    let Report {
        what: What::Connected(ShimLink { sizes, .. }),
        ..
    } = node.report().await
    else {
        panic!("not connected")
    };
    sizes.send_replace(Some(size(1)));
    assert!(matches!(
        shim.hear().await,
        Answer::Response(Response::Granted { .. }, _)
    ));
    assert_eq!(hear_size(&shim).await, size(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_end_the_conversation() {
    let resized = |sequence, memory_bytes| Resized {
        sequence,
        failure: None,
        status: GuestStatus {
            memory_bytes,
            ..status(GuestState::Running)
        },
    };
    for answer in [resized(2, 1 << 30), resized(1, u64::MAX)] {
        let mut node = Node::new(1);
        let (shim, sizes) = running(&mut node).await;
        sizes.send_replace(Some(size(1)));
        assert_eq!(hear_size(&shim).await, size(1));
        shim.say(&Request::Resized(answer), &[]).await;
        assert!(matches!(shim.hear().await, Answer::HungUp));
        assert!(matches!(node.report().await.what, What::HungUp));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_uid_is_refused_for_good() {
    let node = Node::new(1);
    node.allocate("0", "shop/web");
    for pod_uid in [String::new(), "x".repeat(65), "$(POD_UID)".to_owned()] {
        let shim = Shim::connect(&node, "0").await;
        let resume = Request::Resume {
            version: VERSION,
            pod_uid,
            status: status(GuestState::Running),
        };
        shim.say(&resume, &[]).await;
        let (reason, retryable) = refusal(shim.hear().await);
        assert!(reason.contains("--pod-uid") && !retryable, "{reason}");
        assert!(matches!(shim.hear().await, Answer::HungUp));
    }
}

fn lend() -> Request {
    Request::Lend {
        version: VERSION,
        pod_uid: "v1".to_owned(),
        disk: DiskOptions {
            read_only: true,
            ..DiskOptions::default()
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_taken_from_a_volume_pod_and_given_back() {
    let mut node = Node::new(0);
    node.allocate("volume-0", "shop/web.data");
    let lender = Shim::connect(&node, "volume-0").await;
    let disk = std::fs::File::open("/dev/null").unwrap();
    lender.say(&lend(), &[&disk]).await;
    assert!(matches!(lender.hear().await, Answer::Response(Response::Lent, _)));
    let Report { pod, what, .. } = node.report().await;
    let What::Lent(link) = what else { panic!("{what:?}") };
    assert_eq!(
        (pod.to_string().as_str(), link.options.read_only),
        ("shop/web.data (v1)", true)
    );
    lender.say(&Request::Withdraw, &[]).await;
    assert!(matches!(node.report().await.what, What::Withdrawn));
    link.returned.send_replace(true);
    assert!(matches!(lender.hear().await, Answer::Response(Response::Returned, _)));
    assert!(matches!(lender.hear().await, Answer::HungUp));
    assert!(matches!(node.report().await.what, What::HungUp));
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_pods_and_vms_have_sockets_of_their_own() {
    let node = Node::new(1);
    node.allocate("volume-0", "shop/web.data");
    node.allocate("0", "shop/web");
    let file = std::fs::File::open("/dev/null").unwrap();
    for (device, request, files, says) in [
        ("0", lend(), vec![&file], "tandem.dev/kvm"),
        ("volume-0", hello(Vec::new()), vec![&file], "tandem.dev/volumes"),
        ("volume-0", lend(), vec![], "exactly one descriptor"),
    ] {
        let caller = Shim::connect(&node, device).await;
        caller.say(&request, &files).await;
        let (reason, retryable) = refusal(caller.hear().await);
        assert!(reason.contains(says) && !retryable, "{reason}");
    }
}

fn attach() -> (AttachDisk, DiskQuestion) {
    let disk = AttachDisk {
        name: "data".to_owned(),
        lender: "v1".to_owned(),
        options: DiskOptions::default(),
    };
    let file = std::fs::File::open("/dev/null").unwrap();
    (
        disk.clone(),
        DiskQuestion::Attach(disk, std::sync::Arc::new(file.into())),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_passed_to_the_shim_and_its_answer_back() {
    let mut node = Node::new(1);
    let (shim, link) = linked(&mut node).await;
    let (disk, question) = attach();
    link.disks.send_replace(Some(question));
    match shim.hear().await {
        Answer::Response(Response::AttachDisk(heard), descriptors) => {
            assert_eq!((heard, descriptors.len()), (disk, 1));
        }
        other @ (Answer::Response(..) | Answer::HungUp) => panic!("{other:?}"),
    }
    let plugged = Plugged {
        name: "data".to_owned(),
        failure: None,
        status: status(GuestState::Running),
    };
    shim.say(&Request::Plugged(plugged.clone()), &[]).await;
    assert!(matches!(node.report().await.what, What::Plugged(answer) if answer == plugged));
    // Nobody has asked again.
    shim.say(&Request::Plugged(plugged), &[]).await;
    assert!(matches!(shim.hear().await, Answer::HungUp));
}

/// A shim that has not shown where it is gets no tap, and is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn an_interface_needs_the_namespace() {
    let mut node = Node::new(1);
    let (shim, link) = linked(&mut node).await;
    let wanted = super::report::WantedInterface {
        name: "more".to_owned(),
        number: 1,
        mac: "02:00:00:00:00:01".to_owned(),
    };
    link.interfaces
        .send_replace(Some(super::board::InterfaceOrder::Attach(wanted)));
    let What::Interface(answer) = node.report().await.what else {
        panic!("no answer")
    };
    assert_eq!((answer.name.as_str(), answer.status), ("more", None));
    assert!(answer.failure.unwrap().message.contains("restart the VM"));
    link.interfaces
        .send_replace(Some(super::board::InterfaceOrder::Detach("more".to_owned())));
    assert!(matches!(
        shim.hear().await,
        Answer::Response(Response::DetachInterface { name }, _) if name == "more"
    ));
    let plugged = Plugged {
        name: "more".to_owned(),
        failure: None,
        status: status(GuestState::Running),
    };
    shim.say(&Request::PluggedInterface(plugged.clone()), &[]).await;
    assert!(matches!(node.report().await.what, What::Interface(answer) if answer.status == Some(plugged.status)));
}

/// What a shim of version 3 does not know it is not sent; sizes are.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_shim_of_the_last_release_is_gone_on_with() {
    let mut node = Node::new(1);
    node.allocate("0", "shop/web");
    let shim = Shim::connect(&node, "0").await;
    let resume = r#"{"resume":{"version":3,"podUID":"p1","status":{"state":"Running","bootTimeMs":1,"vcpus":1,"memoryBytes":1,"resets":0}}}"#;
    shim.send(resume.as_bytes(), &[]).await;
    let What::Connected(link) = node.report().await.what else {
        panic!("not connected")
    };
    assert_eq!(link.version, 3);
    link.disks.send_replace(Some(attach().1));
    link.sizes.send_replace(Some(size(1)));
    assert_eq!(hear_size(&shim).await, size(1));
    // It could not begin anew.
    let other = Shim::connect(&node, "0").await;
    drop(shim);
    let hello = r#"{"hello":{"version":3,"podUID":"p1","interfaces":[]}}"#;
    other.send(hello.as_bytes(), &[]).await;
    let (reason, _) = refusal(other.hear().await);
    assert!(reason.contains("version 3"), "{reason}");
}
