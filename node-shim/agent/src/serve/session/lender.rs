//! The conversation with a volume pod, once it is known who calls.
//!
//! ```text
//! Lend ──Lent──► its disk may be plugged ──Withdraw──► it may not ──no guest has it──► Returned ─► over
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use node_shim_protocol::agent::{DiskOptions, Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Session, SessionError};
use crate::serve::pace::Pace;
use crate::serve::packet::Received;
use crate::serve::report::{LenderLink, PodId, What};

impl Session {
    /// Keeps the disk at hand until the pod hangs up, or its disk is back. The disk is only passed on: what it is, its receiver finds out.
    pub(super) async fn borrow(&self, pod: &PodId, options: DiskOptions, disk: OwnedFd) -> Result<(), SessionError> {
        let (returned, mut is_back) = watch::channel(false);
        let link = LenderLink {
            options,
            disk: Arc::new(disk),
            returned,
        };
        self.send(&Response::Lent, &[]).await?;
        tracing::info!(device = %self.device, %pod, "a volume pod lends its disk");
        self.tell(pod, What::Lent(link)).await?;
        let mut pace = Pace::new(Instant::now());
        loop {
            let turn = pace.next(Instant::now());
            let next = async {
                tokio::time::sleep_until(turn).await;
                self.connection.receive().await.map_err(SessionError::Packet)
            };
            let back = async { is_back.wait_for(|is_back| *is_back).await.is_ok() };
            tokio::select! {
                received = next => match received? {
                    None => return Ok(()),
                    Some(Received { request: Request::Withdraw, descriptors }) if descriptors.is_empty() => {
                        self.tell(pod, What::Withdrawn).await?;
                    }
                    Some(_) => return Err(SessionError::Protocol("a packet came that is none of a volume pod")),
                },
                true = back => {
                    tracing::info!(device = %self.device, %pod, "no VM has the volume pod's disk");
                    self.send(&Response::Returned, &[]).await?;
                    self.connection.linger(super::LINGER).await;
                    return Ok(());
                }
            }
        }
    }
}
