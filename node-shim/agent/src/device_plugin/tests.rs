//! The plugin against a kubelet that the test plays: real sockets, real gRPC, with a dial back as the kubelet does it.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Options, run};
use crate::kubelet;
use crate::kubelet::device_plugin::device_plugin_client::DevicePluginClient;
use crate::kubelet::device_plugin::registration_server::{Registration, RegistrationServer};
use crate::kubelet::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse, RegisterRequest,
};
use crate::node_paths::{KubeletDir, RunDir};
use crate::unix_socket;

const PATIENCE: Duration = Duration::from_secs(30);

struct Kubelet {
    registered: mpsc::Receiver<RegisterRequest>,
    server: JoinHandle<()>,
}

struct Registrar(mpsc::Sender<RegisterRequest>);

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0
            .send(request.into_inner())
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Empty {}))
    }
}

impl Kubelet {
    /// Starts as the kubelet does: every socket in the directory is removed first.
    fn start(directory: &Path) -> Self {
        for entry in std::fs::read_dir(directory).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let listener = unix_socket::bind_stream(&directory.join("kubelet.sock"), 0o600).unwrap();
        let (sender, registered) = mpsc::channel(8);
        let service = RegistrationServer::new(Registrar(sender));
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { registered, server }
    }

    async fn registrations(&mut self) -> Vec<RegisterRequest> {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(
                tokio::time::timeout(PATIENCE, self.registered.recv())
                    .await
                    .expect("no registration")
                    .unwrap(),
            );
        }
        let order = ["tandem.dev/kvm", "tandem.dev/host-devices", "tandem.dev/volumes"];
        requests.sort_by_key(|request| order.iter().position(|name| *name == request.resource_name));
        requests
    }
}

struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new(with_kvm: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["run", "kubelet/device-plugins", "dev/net"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        std::fs::write(directory.path().join("dev/net/tun"), "").unwrap();
        if with_kvm {
            std::fs::write(directory.path().join("dev/kvm"), "").unwrap();
        }
        Self { directory }
    }

    fn options(&self) -> Options {
        Options {
            run_dir: RunDir::new(self.directory.path().join("run")),
            kubelet_dir: KubeletDir::new(self.directory.path().join("kubelet")),
            host_dev: self.directory.path().join("dev"),
            most: super::Most { vms: 3, volumes: 2 },
        }
    }

    fn plugins(&self) -> std::path::PathBuf {
        self.options().kubelet_dir.device_plugins()
    }

    async fn client(&self, endpoint: &str) -> DevicePluginClient<tonic::transport::Channel> {
        DevicePluginClient::new(kubelet::connect(&self.plugins().join(endpoint)).await.unwrap())
    }

    /// Connects to plugin.sock as `node-agent serve` does, once it is there.
    async fn report(&self, line: &str) -> UnixStream {
        let path = self.options().run_dir.plugin_socket();
        let connect = async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let mut stream = tokio::time::timeout(PATIENCE, connect).await.expect("no plugin.sock");
        stream.write_all(line.as_bytes()).await.unwrap();
        stream
    }
}

/// `id health` of each device in the next list.
async fn next_list(lists: &mut Streaming<ListAndWatchResponse>) -> Vec<String> {
    let list = tokio::time::timeout(PATIENCE, lists.message())
        .await
        .expect("no list")
        .unwrap()
        .unwrap();
    list.devices
        .into_iter()
        .map(|device| format!("{} {}", device.id, device.health))
        .collect()
}

fn one_container(id: &str) -> AllocateRequest {
    AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.into()],
        }],
    }
}

#[tokio::test]
async fn it_registers_its_resources_and_allocates() {
    let node = Node::new(true);
    let mut kubelet = Kubelet::start(&node.plugins());
    let plugin = tokio::spawn(run(node.options()));
    let _reporter = node.report("{\"kvm\":{\"ok\":true}}\n").await;

    let [kvm, host, volumes]: [RegisterRequest; 3] = kubelet.registrations().await.try_into().unwrap();
    assert_eq!(
        (kvm.resource_name.as_str(), kvm.version.as_str()),
        ("tandem.dev/kvm", "v1beta1")
    );
    assert_eq!(host.resource_name, "tandem.dev/host-devices");
    assert_eq!(volumes.resource_name, "tandem.dev/volumes");
    let mut client = node.client(&volumes.endpoint).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next_list(&mut lists).await, ["volume-0 Healthy", "volume-1 Healthy"]);
    let allocated = client.allocate(one_container("volume-1")).await.unwrap().into_inner();
    let path = &allocated.container_responses[0].mounts[0].host_path;
    assert!(path.ends_with("devices/volume-1") && Path::new(path).is_dir(), "{path}");

    let mut client = node.client(&kvm.endpoint).await;
    let options = client.get_device_plugin_options(Empty {}).await.unwrap().into_inner();
    assert!(!options.pre_start_required && !options.get_preferred_allocation_available);
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next_list(&mut lists).await, ["0 Healthy", "1 Healthy", "2 Healthy"]);

    let allocated = client.allocate(one_container("2")).await.unwrap().into_inner();
    let [container] = allocated.container_responses.as_slice() else {
        panic!("{allocated:?}")
    };
    assert!(container.devices.is_empty() && container.mounts[0].read_only);
    assert!(
        Path::new(&container.mounts[0].host_path).is_dir(),
        "the kubelet has nothing to mount"
    );
    let refused = client.allocate(one_container("3")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);

    let allocated = node
        .client(&host.endpoint)
        .await
        .allocate(one_container("agent-0"))
        .await
        .unwrap()
        .into_inner();
    let paths: Vec<_> = allocated.container_responses[0]
        .devices
        .iter()
        .map(|device| &device.host_path)
        .collect();
    assert_eq!(paths, ["/dev/kvm", "/dev/net/tun"]);
    plugin.abort();
}

#[tokio::test]
async fn devices_are_withdrawn_when_kvm_stops_working() {
    let node = Node::new(true);
    let mut kubelet = Kubelet::start(&node.plugins());
    let plugin = tokio::spawn(run(node.options()));
    let mut reporter = node.report("{\"kvm\":{\"ok\":true}}\n").await;
    let registrations = kubelet.registrations().await;
    let mut lists = node
        .client(&registrations[0].endpoint)
        .await
        .list_and_watch(Empty {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next_list(&mut lists).await, ["0 Healthy", "1 Healthy", "2 Healthy"]);

    reporter
        .write_all(b"{\"kvm\":{\"ok\":false,\"reason\":\"no vmx\"}}\n")
        .await
        .unwrap();
    assert_eq!(
        next_list(&mut lists).await,
        ["0 Unhealthy", "1 Unhealthy", "2 Unhealthy"]
    );
    reporter.write_all(b"{\"kvm\":{\"ok\":true}}\n").await.unwrap();
    assert_eq!(next_list(&mut lists).await, ["0 Healthy", "1 Healthy", "2 Healthy"]);

    std::fs::remove_file(node.options().host_dev.join("kvm")).unwrap();
    assert!(next_list(&mut lists).await.is_empty());
    plugin.abort();
}

#[tokio::test]
async fn it_registers_again_with_a_new_kubelet() {
    let node = Node::new(true);
    let mut first = Kubelet::start(&node.plugins());
    let plugin = tokio::spawn(run(node.options()));
    let _reporter = node.report("{\"kvm\":{\"ok\":true}}\n").await;
    first.registrations().await;
    first.server.abort();

    let mut second = Kubelet::start(&node.plugins());
    let registrations = second.registrations().await;
    let mut lists = node
        .client(&registrations[0].endpoint)
        .await
        .list_and_watch(Empty {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next_list(&mut lists).await, ["0 Healthy", "1 Healthy", "2 Healthy"]);
    plugin.abort();
}

#[tokio::test]
async fn a_node_without_kvm_still_lets_the_agent_run() {
    let node = Node::new(false);
    let mut kubelet = Kubelet::start(&node.plugins());
    let plugin = tokio::spawn(run(node.options()));
    let [kvm, host, _volumes]: [RegisterRequest; 3] = kubelet.registrations().await.try_into().unwrap();
    let mut lists = node
        .client(&kvm.endpoint)
        .await
        .list_and_watch(Empty {})
        .await
        .unwrap()
        .into_inner();
    assert!(next_list(&mut lists).await.is_empty());
    let mut lists = node
        .client(&host.endpoint)
        .await
        .list_and_watch(Empty {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next_list(&mut lists).await, ["agent-0 Healthy", "agent-1 Healthy"]);
    plugin.abort();
}
