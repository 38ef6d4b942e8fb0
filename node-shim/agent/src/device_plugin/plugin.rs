//! One resource towards the kubelet: its gRPC server and its registration.
//!
//! ```text
//!            ┌────────── kubelet.sock is new: the kubelet restarted and removed our socket ─────────┐
//!            v                                                                                      │
//! bind the endpoint ─► serve ─► Register ─(refused or nobody there: wait for a new socket, or again)─► registered
//! ```

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

use super::Options;
use super::health::Verdict;
use super::resource::{self, Resource};
use crate::kubelet;
use crate::kubelet::device_plugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::kubelet::device_plugin::registration_client::RegistrationClient;
use crate::kubelet::device_plugin::{
    AllocateRequest, AllocateResponse, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest, VERSION,
};
use crate::unix_socket;

/// Between two attempts to register; a new kubelet.sock ends the wait early.
const REGISTER_RETRY: Duration = Duration::from_secs(2);

/// Why a resource cannot be offered any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// The endpoint cannot be made.
    #[error("failed to listen on the plugin's endpoint {}: is the kubelet's device-plugins directory mounted writable?", path.display())]
    Bind {
        /// The endpoint.
        path: PathBuf,
        /// What went wrong.
        source: unix_socket::UnixSocketError,
    },
    /// The server ended.
    #[error("the gRPC server of the plugin ended")]
    Serve(#[source] tonic::transport::Error),
    /// The other half of the process is gone.
    #[error("nobody watches for the kubelet any more")]
    WatchEnded,
}

/// Failure to register, which is tried again.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error(transparent)]
    Connect(kubelet::KubeletError),
    #[error("the kubelet refused the registration")]
    Refused(#[source] Box<Status>),
}

/// One resource.
#[derive(Clone)]
pub(super) struct Plugin {
    resource: Resource,
    options: Options,
    verdict: watch::Receiver<Verdict>,
}

impl Plugin {
    /// Offers `resource`, whose devices follow `verdict`.
    pub(super) fn new(resource: Resource, options: Options, verdict: watch::Receiver<Verdict>) -> Self {
        Self {
            resource,
            options,
            verdict,
        }
    }

    /// Serves and registers, again after each kubelet restart.
    pub(super) async fn run(self, mut kubelet_restarts: watch::Receiver<u64>) -> Result<(), PluginError> {
        loop {
            kubelet_restarts.mark_unchanged();
            let path = self.options.kubelet_dir.device_plugins().join(self.resource.endpoint());
            let listener =
                unix_socket::bind_stream(&path, 0o600).map_err(|source| PluginError::Bind { path, source })?;
            let mut server = JoinSet::new();
            server.spawn(serve(self.clone(), listener));
            tokio::select! {
                ended = server.join_next() => match ended {
                    Some(Ok(Err(source))) => return Err(PluginError::Serve(source)),
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                    Some(Ok(Ok(()))) | None => return Err(PluginError::WatchEnded),
                },
                restarted = self.register_until_restart(&mut kubelet_restarts) => restarted?,
            }
        }
    }

    /// Registers, then waits until the kubelet has been restarted.
    async fn register_until_restart(&self, kubelet_restarts: &mut watch::Receiver<u64>) -> Result<(), PluginError> {
        loop {
            let retry = match self.register().await {
                Ok(()) => {
                    tracing::info!(resource = self.resource.name(), "registered with the kubelet");
                    None
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(
                        resource = self.resource.name(),
                        "failed to register with the kubelet: {error}: {}",
                        error.root_cause()
                    );
                    Some(REGISTER_RETRY)
                }
            };
            tokio::select! {
                changed = kubelet_restarts.changed() => return changed.map_err(|_| PluginError::WatchEnded),
                () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
            }
        }
    }

    async fn register(&self) -> Result<(), RegisterError> {
        let kubelet_socket = self.options.kubelet_dir.device_plugins().join("kubelet.sock");
        let channel = kubelet::connect(&kubelet_socket)
            .await
            .map_err(RegisterError::Connect)?;
        let request = RegisterRequest {
            version: VERSION.into(),
            endpoint: self.resource.endpoint().into(),
            resource_name: self.resource.name().into(),
            options: Some(DevicePluginOptions::default()),
        };
        let registered = RegistrationClient::new(channel).register(request).await;
        registered
            .map(drop)
            .map_err(|status| RegisterError::Refused(Box::new(status)))
    }

    fn allocate_container(&self, ids: &[String]) -> Result<kubelet::device_plugin::ContainerAllocateResponse, Status> {
        let allocated = match self.resource {
            Resource::Kvm | Resource::Volumes => {
                resource::allocate_socket(self.resource, &self.options.run_dir, self.options.most, ids)
            }
            Resource::HostDevices => {
                resource::allocate_host_devices(ids, |name| self.options.host_dev.join(name).exists())
            }
        };
        allocated.map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

async fn serve(plugin: Plugin, listener: UnixListener) -> Result<(), tonic::transport::Error> {
    let incoming = UnixListenerStream::new(listener);
    tonic::transport::Server::builder()
        .add_service(DevicePluginServer::new(plugin))
        .serve_with_incoming(incoming)
        .await
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (resource, most) = (self.resource, self.options.most);
        let lists = WatchStream::new(self.verdict.clone()).map(move |verdict| {
            Ok(ListAndWatchResponse {
                devices: resource.devices(most, &verdict),
            })
        });
        Ok(Response::new(lists.boxed()))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let responses = requests
            .iter()
            .map(|container| self.allocate_container(&container.devices_ids))
            .collect::<Result<_, _>>()?;
        Ok(Response::new(AllocateResponse {
            container_responses: responses,
        }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("the options say that no allocation is preferred"))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::unimplemented(
            "the options say that no call before a start is needed",
        ))
    }
}
