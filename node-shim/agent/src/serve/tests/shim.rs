//! A node with device sockets and a kubelet, and a shim that connects.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use node_shim_protocol::agent::{MAX_DESCRIPTORS, Request, Response};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::thread::UnshareFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;

use super::super::device_socket::{self, DeviceSocket};
use super::super::report::Report;
use super::super::session::Services;
use crate::device_plugin::resource::resource_of;
use crate::kubelet::pod_resources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use crate::kubelet::pod_resources::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use crate::node_paths::RunDir;
use crate::{event_loop, unix_socket};

/// Longest wait for something that must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// UID of every pod.
pub(super) const POD_UID: &str = "p1";

/// A network namespace that is not the test's, or nothing without root.
pub(super) fn network_namespace() -> Option<File> {
    let make = || {
        // SAFETY: only this thread's network namespace changes, and the thread ends right after.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    rustix::process::geteuid()
        .is_root()
        .then(|| std::thread::spawn(make).join().unwrap())
}

/// The kubelet's list: which pod (`namespace/name`) has which device.
#[derive(Clone, Default)]
struct Kubelet {
    allocated: Arc<Mutex<BTreeMap<String, String>>>,
    listed: Arc<Notify>,
}

#[tonic::async_trait]
impl PodResourcesLister for Kubelet {
    async fn list(
        &self,
        _: tonic::Request<ListPodResourcesRequest>,
    ) -> Result<tonic::Response<ListPodResourcesResponse>, tonic::Status> {
        let pod = |(device, pod): (&String, &String)| {
            let (namespace, name) = pod.split_once('/').unwrap();
            let devices = vec![ContainerDevices {
                resource_name: resource_of(device).into(),
                device_ids: vec![device.clone()],
            }];
            let containers = vec![ContainerResources {
                name: "vm".into(),
                devices,
            }];
            PodResources {
                name: name.into(),
                namespace: namespace.into(),
                containers,
            }
        };
        let pod_resources = self.allocated.lock().unwrap().iter().map(pod).collect();
        self.listed.notify_one();
        Ok(tonic::Response::new(ListPodResourcesResponse { pod_resources }))
    }
}

/// The agent's sockets, without the API server behind them.
pub(super) struct Node {
    run_dir: RunDir,
    kubelet: Kubelet,
    reports: mpsc::Receiver<Report>,
    kvm: watch::Sender<Result<(), String>>,
    _kubelet_task: JoinSet<()>,
    _sockets: JoinSet<Result<(), device_socket::DeviceSocketError>>,
    _directory: tempfile::TempDir,
}

impl Node {
    /// A node with the devices 0 to `devices` - 1 and volume-0, where KVM works.
    pub(super) fn new(devices: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(directory.path());
        let kubelet_socket = directory.path().join("kubelet.sock");
        let kubelet = Kubelet::default();
        let listener = unix_socket::bind_stream(&kubelet_socket, 0o600).unwrap();
        let server = tonic::transport::Server::builder().add_service(PodResourcesListerServer::new(kubelet.clone()));
        let mut kubelet_task = JoinSet::new();
        kubelet_task.spawn(async move {
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });

        let (kvm, kvm_works) = watch::channel(Ok(()));
        let (sender, reports) = mpsc::channel(64);
        let services = Services {
            kvm: kvm_works,
            reports: sender,
            pod_resources: kubelet_socket.into(),
            namespaces: Arc::new(Semaphore::new(1)),
        };
        let mut sockets = JoinSet::new();
        let devices = (0..devices).map(|device| device.to_string());
        for device in devices.chain(["volume-0".to_owned()]) {
            std::fs::create_dir_all(run_dir.device(&device)).unwrap();
            sockets.spawn(DeviceSocket::bind(&run_dir, &device, services.clone()).unwrap().serve());
        }
        Self {
            run_dir,
            kubelet,
            reports,
            kvm,
            _kubelet_task: kubelet_task,
            _sockets: sockets,
            _directory: directory,
        }
    }

    /// Gives the device to the pod `namespace/name`.
    pub(super) fn allocate(&self, device: &str, pod: &str) {
        self.kubelet
            .allocated
            .lock()
            .unwrap()
            .insert(device.to_owned(), pod.to_owned());
    }

    /// Waits until the kubelet was asked.
    pub(super) async fn listed_once(&self) {
        tokio::time::timeout(PATIENCE, self.kubelet.listed.notified())
            .await
            .expect("the kubelet was not asked");
    }

    /// Sets whether KVM works.
    pub(super) fn kvm(&self, works: Result<(), String>) {
        self.kvm.send(works).unwrap();
    }

    /// The next report.
    pub(super) async fn report(&mut self) -> Report {
        tokio::time::timeout(PATIENCE, self.reports.recv())
            .await
            .expect("no report")
            .unwrap()
    }
}

/// What a shim hears.
#[derive(Debug)]
pub(super) enum Answer {
    Response(Response, Vec<OwnedFd>),
    HungUp,
}

/// A shim's end of a connection.
pub(super) struct Shim(AsyncFd<OwnedFd>);

impl Shim {
    pub(super) async fn connect(node: &Node, device: &str) -> Self {
        // A packet that the agent has not yet read must not be lost to a full backlog.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let address = SocketAddrUnix::new(node.run_dir.device_socket(device)).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        tokio::task::yield_now().await;
        Self(event_loop::watch(socket).unwrap())
    }

    pub(super) async fn say(&self, request: &Request, files: &[&File]) {
        self.send(&serde_json::to_vec(request).unwrap(), files).await;
    }

    /// Sends a packet; that the agent has hung up is for [`Self::hear`] to tell.
    pub(super) async fn send(&self, packet: &[u8], files: &[&File]) {
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let _ready = self.0.writable().await.unwrap();
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        match rustix::net::sendmsg(
            self.0.get_ref(),
            &[IoSlice::new(packet)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {}
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) async fn hear(&self) -> Answer {
        let hear = async {
            loop {
                let mut guard = self.0.readable().await.unwrap();
                let mut bytes = vec![0; 65536];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC;
                match rustix::net::recvmsg(
                    guard.get_inner(),
                    &mut [IoSliceMut::new(&mut bytes)],
                    &mut ancillary,
                    flags,
                ) {
                    Err(rustix::io::Errno::WOULDBLOCK) => guard.clear_ready(),
                    Err(rustix::io::Errno::CONNRESET) => return Answer::HungUp,
                    Err(error) => panic!("{error}"),
                    Ok(message) if message.bytes == 0 => return Answer::HungUp,
                    Ok(message) => {
                        let descriptors = ancillary.drain().flat_map(|message| match message {
                            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                            RecvAncillaryMessage::ScmCredentials(_) | _ => Vec::new(),
                        });
                        let descriptors = descriptors.collect();
                        return Answer::Response(serde_json::from_slice(&bytes[..message.bytes]).unwrap(), descriptors);
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, hear)
            .await
            .expect("the agent says nothing")
    }
}
