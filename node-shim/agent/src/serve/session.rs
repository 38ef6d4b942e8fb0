//! One conversation with a shim, from its first packet to the end of the connection.
//!
//! ```text
//! connected ──Hello──► caller known ──► network, /dev/kvm ──Granted──► live ──Status──► live ──hang-up──► over
//!     │                     └────────────Refused────────────► over      ▲ │ ▲
//!     └──Resume──► caller known ────────────────────────────────────────┘ │ └──Resized, Plugged── (shim)
//!                                                                         └──Resize, AttachDisk, DetachDisk──► (shim)
//! ```
//!
//! That with a volume pod begins with Lend: [`lender`].

mod lender;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use node_shim_protocol::agent::{
    DISKS_VERSION, DiskOptions, GuestStatus, InterfaceRequest, Plugged, RESUME_VERSION, Request, Resize, Resized,
    Response, VERSION,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::identity::{self, PodName};
use super::kvm;
use super::pace::Pace;
use super::packet::{self, Connection, Received};
use super::report::{self, ConnectionId, DiskQuestion, PodId, Report, ShimLink, What};
use crate::device_plugin::resource;
use crate::network::{self, GuestInterface, PodNamespace};

/// How long a caller may take to say something.
const FIRST_PACKET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may take to take an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller may take to hang up after it was refused.
const LINGER: Duration = Duration::from_secs(1);
/// Pod networks that are set up at the same time; a set-up takes some milliseconds.
pub(super) const CONCURRENT_NAMESPACES: usize = 8;

/// What a conversation needs.
#[derive(Clone)]
pub(super) struct Services {
    /// Whether KVM works, and why not.
    pub(super) kvm: watch::Receiver<Result<(), String>>,
    /// Where the guests' states go.
    pub(super) reports: mpsc::Sender<Report>,
    /// Socket of the kubelet's PodResources service.
    pub(super) pod_resources: Arc<Path>,
    /// Turns for [`CONCURRENT_NAMESPACES`].
    pub(super) namespaces: Arc<Semaphore>,
}

/// Why a conversation ended before the peer hung up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The connection or a packet.
    #[error(transparent)]
    Packet(packet::PacketError),
    /// Silence.
    #[error("nothing was said for {} s", FIRST_PACKET_TIMEOUT.as_secs())]
    Silent,
    /// The answer is not taken.
    #[error("the answer was not taken for {} s", SEND_TIMEOUT.as_secs())]
    Deaf,
    /// The peer does not keep to the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// Refused, and the peer was told.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The end of the agent.
    #[error("nobody takes reports any more")]
    NoReports,
}

/// A refusal: what the peer is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Another protocol.
    #[error(
        "node-shim speaks version {0} of the agent's protocol and this node-agent {VERSION}: use images of the same release"
    )]
    Version(u32),
    /// The descriptor is missing, or there are more.
    #[error("a Hello needs exactly one descriptor, the network namespace, but {0} came")]
    Descriptors(usize),
    /// As that, of a volume pod.
    #[error("a Lend needs exactly one descriptor, the disk, but {0} came")]
    LentDescriptors(usize),
    /// A VM where a volume pod should be, or the other way round.
    #[error("this is a socket of {0}: a VM's pod has one of {vms}, a volume pod one of {volumes}", vms = crate::KVM_RESOURCE, volumes = crate::VOLUME_RESOURCE)]
    Device(&'static str),
    /// Unknown caller.
    #[error("{0}")]
    Caller(identity::IdentityError),
    /// No KVM.
    #[error("KVM does not work on this node: {0}")]
    Kvm(String),
    /// An interface that cannot be.
    #[error("{0}")]
    Network(network::NetworkError),
    /// A UID that cannot be.
    #[error("the pod's UID is none: start node-shim with --pod-uid and what the downward API says of metadata.uid")]
    PodUid,
    /// A status that cannot be.
    #[error("the guest's status is out of bounds")]
    Status,
}

impl Refusal {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Version(_)
            | Self::Descriptors(_)
            | Self::LentDescriptors(_)
            | Self::Device(_)
            | Self::PodUid
            | Self::Status => false,
            Self::Caller(_) | Self::Kvm(_) => true,
            Self::Network(error) => error.is_retryable(),
        }
    }

    /// The answer.
    fn response(&self) -> Response {
        Response::Refused {
            reason: self.to_string(),
            retryable: self.is_retryable(),
        }
    }
}

/// What a conversation has begun with.
enum Begun {
    /// A VM.
    Shim {
        /// Version of the protocol that it speaks.
        version: u32,
        /// What its guest does, where there is one.
        status: Option<GuestStatus>,
    },
    /// A volume pod.
    Lender { options: DiskOptions, disk: OwnedFd },
}

/// One conversation.
pub(super) struct Session {
    connection: Connection,
    device: String,
    services: Services,
    id: ConnectionId,
    /// Told to [`super::device_socket`] as soon as it is known.
    caller: Arc<OnceLock<PodName>>,
}

impl Session {
    /// A conversation on `connection`, which was made to the socket of `device`.
    pub(super) fn new(
        connection: Connection,
        device: String,
        services: Services,
        caller: Arc<OnceLock<PodName>>,
    ) -> Self {
        Self {
            connection,
            device,
            services,
            id: ConnectionId::next(),
            caller,
        }
    }

    /// Talks until one side has enough; a peer that hangs up after it was served is the usual end.
    pub(super) async fn run(self) {
        let device = &self.device;
        let begun = OnceLock::new();
        let pod = || {
            let caller = || {
                self.caller
                    .get()
                    .map_or_else(|| "unknown pod".to_owned(), ToString::to_string)
            };
            begun.get().map_or_else(caller, ToString::to_string)
        };
        match self.talk(&begun).await {
            Ok(()) => tracing::info!(%device, pod = pod(), "the VM hung up"),
            Err(error) => tracing::warn!(%device, pod = pod(), "the conversation with a VM ended: {error}"),
        }
        if let Some(pod) = begun.get() {
            // Without a receiver the agent is ending, and with it all that it knows.
            let _ = self.tell(pod, What::HungUp).await;
        }
    }

    /// `begun` is set once anything is reported.
    async fn talk(&self, begun: &OnceLock<PodId>) -> Result<(), SessionError> {
        let first = tokio::time::timeout(FIRST_PACKET_TIMEOUT, self.connection.receive()).await;
        let Some(first) = first.map_err(|_| SessionError::Silent)?.map_err(SessionError::Packet)? else {
            return Ok(());
        };
        let (pod, begun_with) = match self.begin(first).await {
            Ok(served) => served,
            Err(SessionError::Refused(refusal)) => {
                self.send(&refusal.response(), &[]).await?;
                self.connection.linger(LINGER).await;
                return Err(refusal.into());
            }
            Err(error) => return Err(error),
        };
        let pod = begun.get_or_init(|| pod);
        let (version, status) = match begun_with {
            Begun::Lender { options, disk } => return self.borrow(pod, options, disk).await,
            Begun::Shim { version, status } => (version, status),
        };
        let (sizes_to, sizes) = watch::channel(None);
        let (disks_to, disks) = watch::channel(None);
        self.tell(
            pod,
            What::Connected(ShimLink {
                version,
                sizes: sizes_to,
                disks: disks_to,
            }),
        )
        .await?;
        if let Some(status) = status {
            self.report(pod, status).await?;
        }
        self.relay(pod, version, sizes, disks).await
    }

    /// Who calls, and what for.
    async fn begin(&self, first: Received) -> Result<(PodId, Begun), SessionError> {
        let Received { request, descriptors } = first;
        let (version, uid, oldest, resource) = match &request {
            Request::Hello { version, pod_uid, .. } => (*version, pod_uid, VERSION, crate::KVM_RESOURCE),
            Request::Resume { version, pod_uid, .. } => (*version, pod_uid, RESUME_VERSION, crate::KVM_RESOURCE),
            Request::Lend { version, pod_uid, .. } => (*version, pod_uid, VERSION, crate::VOLUME_RESOURCE),
            Request::Status(_) | Request::Resized(_) | Request::Plugged(_) | Request::Withdraw => {
                return Err(SessionError::Protocol("the first packet was none to begin with"));
            }
        };
        if !(oldest..=VERSION).contains(&version) {
            return Err(Refusal::Version(version).into());
        }
        let ours = resource::resource_of(&self.device);
        if ours != resource {
            return Err(Refusal::Device(ours).into());
        }
        if !report::is_pod_uid(uid) {
            return Err(Refusal::PodUid.into());
        }
        let name = identity::of_device(&self.services.pod_resources, &self.device)
            .await
            .map_err(Refusal::Caller)?;
        let pod = PodId {
            name: self.caller.get_or_init(|| name).clone(),
            uid: uid.clone(),
        };
        let count = descriptors.len();
        let begun = match request {
            Request::Hello { interfaces, .. } => {
                let [namespace] = <[_; 1]>::try_from(descriptors).map_err(|_| Refusal::Descriptors(count))?;
                let namespace = PodNamespace::check(namespace)
                    .map_err(|error| Refusal::Network(network::NetworkError::Namespace(error)))?;
                self.grant(&pod, namespace, &interfaces).await?;
                let status = None;
                Begun::Shim { version, status }
            }
            Request::Resume { status, .. } => {
                tracing::info!(device = %self.device, %pod, version, "a running VM is back");
                let status = Some(status);
                Begun::Shim { version, status }
            }
            Request::Lend { disk: options, .. } => {
                let [disk] = <[_; 1]>::try_from(descriptors).map_err(|_| Refusal::LentDescriptors(count))?;
                Begun::Lender { options, disk }
            }
            Request::Status(_) | Request::Resized(_) | Request::Plugged(_) | Request::Withdraw => {
                return Err(SessionError::Protocol("the first packet was none to begin with"));
            }
        };
        Ok((pod, begun))
    }

    async fn grant(
        &self,
        pod: &PodId,
        namespace: PodNamespace,
        interfaces: &[InterfaceRequest],
    ) -> Result<(), SessionError> {
        self.services.kvm.borrow().clone().map_err(Refusal::Kvm)?;
        let interfaces = GuestInterface::check_all(interfaces)
            .map_err(|error| Refusal::Network(network::NetworkError::Plan(error)))?;
        let kvm = kvm::open().map_err(|error| Refusal::Kvm(error.to_string()))?;
        let attached = {
            let turn = self
                .services
                .namespaces
                .acquire()
                .await
                .map_err(|_| SessionError::NoReports)?;
            let attached = network::attach(namespace, interfaces).await.map_err(Refusal::Network)?;
            drop(turn);
            attached
        };
        tracing::info!(device = %self.device, %pod, interfaces = attached.len(), "granted /dev/kvm and network to a VM");
        let descriptors: Vec<_> = std::iter::once(kvm.as_fd())
            .chain(attached.iter().flat_map(|attached| &attached.queues).map(AsFd::as_fd))
            .collect();
        let grants = attached.iter().map(|attached| attached.grant.clone()).collect();
        self.send(&Response::Granted { interfaces: grants }, &descriptors).await
    }

    /// Passes the guest's states on, and sizes and disks to the shim, until the peer hangs up. A peer that talks too much is read more slowly.
    async fn relay(
        &self,
        pod: &PodId,
        version: u32,
        mut sizes: watch::Receiver<Option<Resize>>,
        mut disks: watch::Receiver<Option<DiskQuestion>>,
    ) -> Result<(), SessionError> {
        let mut pace = Pace::new(Instant::now());
        let mut asked = None;
        let mut asked_disk = None;
        loop {
            let turn = pace.next(Instant::now());
            let next = async {
                tokio::time::sleep_until(turn).await;
                self.connection.receive().await.map_err(SessionError::Packet)
            };
            tokio::pin!(next);
            let received = loop {
                tokio::select! {
                    received = &mut next => break received?,
                    resize = asked_for(&mut sizes) => {
                        asked = Some(resize.sequence);
                        self.send(&Response::Resize(resize), &[]).await?;
                    }
                    question = asked_for(&mut disks), if version >= DISKS_VERSION => {
                        asked_disk = Some(question.name().to_owned());
                        self.ask_disk(question).await?;
                    }
                }
            };
            let Some(Received { request, descriptors }) = received else {
                return Ok(());
            };
            if !descriptors.is_empty() {
                return Err(SessionError::Protocol("descriptors came with a packet that has none"));
            }
            match request {
                Request::Status(status) => self.report(pod, status).await?,
                Request::Resized(resized) => self.resized(pod, resized, asked).await?,
                Request::Plugged(plugged) => {
                    if asked_disk.take().as_deref() != Some(&plugged.name) {
                        return Err(SessionError::Protocol("a disk was answered that was not asked about"));
                    }
                    self.plugged(pod, plugged).await?;
                }
                Request::Hello { .. } | Request::Resume { .. } | Request::Lend { .. } | Request::Withdraw => {
                    return Err(SessionError::Protocol("a packet came that is none of a running VM"));
                }
            }
        }
    }

    async fn report(&self, pod: &PodId, status: GuestStatus) -> Result<(), SessionError> {
        if !report::is_plausible(&status) {
            return Err(Refusal::Status.into());
        }
        self.tell(pod, What::Guest(status)).await
    }

    async fn resized(&self, pod: &PodId, resized: Resized, asked: Option<u64>) -> Result<(), SessionError> {
        if asked.is_none_or(|asked| asked < resized.sequence) {
            return Err(SessionError::Protocol("a size was answered that was not asked for"));
        }
        if !report::is_plausible_answer(&resized) {
            return Err(Refusal::Status.into());
        }
        match &resized.failure {
            None => tracing::info!(%pod, sequence = resized.sequence, "the VM took a size"),
            Some(failure) => {
                tracing::warn!(%pod, sequence = resized.sequence, "the VM did not take a size: {}", failure.message);
            }
        }
        self.tell(pod, What::Resized(resized)).await
    }

    async fn ask_disk(&self, question: DiskQuestion) -> Result<(), SessionError> {
        match question {
            DiskQuestion::Attach(disk, descriptor) => {
                self.send(&Response::AttachDisk(disk), &[descriptor.as_fd()]).await
            }
            DiskQuestion::Detach(name) => self.send(&Response::DetachDisk { name }, &[]).await,
        }
    }

    async fn plugged(&self, pod: &PodId, plugged: Plugged) -> Result<(), SessionError> {
        if !report::is_plausible_disk(&plugged) {
            return Err(Refusal::Status.into());
        }
        match &plugged.failure {
            None => tracing::info!(%pod, disk = plugged.name, "the VM was asked about a disk"),
            Some(failure) => {
                tracing::warn!(%pod, disk = plugged.name, "the VM refused what it was asked about a disk: {}", failure.message);
            }
        }
        self.tell(pod, What::Plugged(plugged)).await
    }

    async fn tell(&self, pod: &PodId, what: What) -> Result<(), SessionError> {
        let report = Report {
            pod: pod.clone(),
            connection: self.id,
            what,
        };
        self.services
            .reports
            .send(report)
            .await
            .map_err(|_| SessionError::NoReports)
    }

    async fn send(&self, response: &Response, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), SessionError> {
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.connection.send(response, descriptors)).await;
        sent.map_err(|_| SessionError::Deaf)?.map_err(SessionError::Packet)
    }
}

/// The next thing to ask for; never without anybody who could say it.
async fn asked_for<T: Clone>(asked: &mut watch::Receiver<Option<T>>) -> T {
    loop {
        if asked.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(asked) = asked.borrow_and_update().clone() {
            return asked;
        }
    }
}
