//! Interfaces that a guest is given while it runs: the tap is made here, in the pod's network namespace, and its descriptors go to the shim.

use std::os::fd::AsFd;

use node_shim_protocol::agent::{AttachInterface, FAILURE_MAX_BYTES, Plugged, Response};
use node_shim_protocol::control::{Failure, FailureKind};

use super::{Refusal, Session, SessionError};
use crate::network::{self, Attached, GuestInterface, NetworkError, PodNamespace};
use crate::serve::board::InterfaceOrder;
use crate::serve::report::{self, InterfaceAnswer, PodId, WantedInterface, What};

/// Why a shim that did not say where it is gets no interface.
const NO_NAMESPACE: &str = "the VM runs in a node-shim that has not shown its network namespace, so it cannot be given interfaces: restart the VM";

impl Session {
    /// Asks a shim about an interface; its name, where the shim is to answer.
    pub(super) async fn ask_interface(
        &self,
        pod: &PodId,
        namespace: Option<&PodNamespace>,
        order: InterfaceOrder,
    ) -> Result<Option<String>, SessionError> {
        let wanted = match order {
            InterfaceOrder::Attach(wanted) => wanted,
            InterfaceOrder::Detach(name) => {
                self.send(&Response::DetachInterface { name: name.clone() }, &[])
                    .await?;
                return Ok(Some(name));
            }
        };
        match self.make_interface(namespace, &wanted).await? {
            Ok(attached) => {
                let WantedInterface { name, number, mac } = wanted;
                tracing::info!(%pod, interface = name, number, "made one more tap for a VM");
                let descriptors: Vec<_> = attached.queues.iter().map(AsFd::as_fd).collect();
                let grant = attached.grant;
                let response = Response::AttachInterface(AttachInterface { number, mac, grant });
                self.send(&response, &descriptors).await?;
                Ok(Some(name))
            }
            Err(failure) => {
                tracing::warn!(%pod, interface = wanted.name, "failed to make one more tap for a VM: {}", failure.message);
                let answer = InterfaceAnswer {
                    name: wanted.name,
                    failure: Some(failure),
                    status: None,
                };
                self.tell(pod, What::Interface(answer)).await?;
                Ok(None)
            }
        }
    }

    async fn make_interface(
        &self,
        namespace: Option<&PodNamespace>,
        wanted: &WantedInterface,
    ) -> Result<Result<Attached, Failure>, SessionError> {
        let Some(namespace) = namespace else {
            return Ok(Err(Failure {
                kind: FailureKind::Invalid,
                message: NO_NAMESPACE.to_owned(),
            }));
        };
        let turn = self
            .services
            .namespaces
            .acquire()
            .await
            .map_err(|_| SessionError::NoReports)?;
        let made = async {
            let namespace = namespace.try_clone().map_err(NetworkError::Namespace)?;
            let interface = GuestInterface::check(&wanted.name, &wanted.mac).map_err(NetworkError::Plan)?;
            network::attach_beside(namespace, wanted.number, interface).await
        };
        let made = made.await.map_err(|error| failure(&error));
        drop(turn);
        Ok(made)
    }

    /// What the shim answered.
    pub(super) async fn plugged_interface(&self, pod: &PodId, plugged: Plugged) -> Result<(), SessionError> {
        if !report::is_plausible_plug(&plugged) {
            return Err(Refusal::Status.into());
        }
        let Plugged { name, failure, status } = plugged;
        match &failure {
            None => tracing::info!(%pod, interface = name, "the VM was asked about an interface"),
            Some(failure) => {
                tracing::warn!(%pod, interface = name, "the VM refused what it was asked about an interface: {}", failure.message);
            }
        }
        let status = Some(status);
        self.tell(pod, What::Interface(InterfaceAnswer { name, failure, status }))
            .await
    }
}

/// What the VM's owner is told; it fits into a line of the status.
fn failure(error: &NetworkError) -> Failure {
    let text = error.to_string();
    Failure {
        kind: if error.is_retryable() {
            FailureKind::Failed
        } else {
            FailureKind::Invalid
        },
        message: text[..text.floor_char_boundary(FAILURE_MAX_BYTES)].replace(char::is_control, " "),
    }
}
