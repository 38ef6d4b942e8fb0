//! Which request is done by whom.

use std::sync::Arc;
use std::time::Duration;

use node_shim_protocol::guest::{FailureKind, Pong, Request, Response, VERSION};

use crate::connection::{Connection, ConnectionError};
use crate::freeze::Freezer;
use crate::online::System;
use crate::options::{OPTIONAL, Options};
use crate::{exec, freeze, info, shutdown};

/// What all sessions share.
pub struct Agent {
    options: Options,
    freezer: Arc<Freezer>,
    system: System,
}

impl Agent {
    /// An agent that refuses what its owner has switched off.
    pub fn new(options: Options, freezer: Arc<Freezer>) -> Self {
        Self {
            options,
            freezer,
            system: System::default(),
        }
    }

    /// Whether the owner lets it do a request.
    pub fn does(&self, request: &str) -> bool {
        !self.options.disabled.contains(&request)
    }

    /// Does a request. The response is the caller's to send.
    ///
    /// # Errors
    /// When the connection breaks meanwhile, or the host says what it may not: there is nobody left to answer.
    pub(crate) fn answer(&self, request: &Request, connection: &mut Connection) -> Result<Response, ConnectionError> {
        // What freezes thaws.
        let owner = if *request == Request::Thaw {
            "freeze"
        } else {
            request.name()
        };
        if !self.does(owner) {
            let why =
                format!("this guest's owner has switched `{owner}` off; start its agent without --disable {owner}");
            return Ok(Response::error(FailureKind::Disabled, &why));
        }
        if self.freezer.is_frozen() && !works_frozen(request) {
            let why = format!(
                "`{}` may have to write, and the guest's file systems are frozen; thaw them first",
                request.name()
            );
            return Ok(Response::error(FailureKind::Refused, &why));
        }
        Ok(match request {
            Request::Ping => Response::Pong(self.pong()),
            Request::Info => info::collect(&self.system),
            Request::Exec(exec) => return exec::run(exec, connection),
            Request::Shutdown(how) => shutdown::tell_init(*how),
            Request::Freeze(how) => freeze::respond(&self.freezer, Duration::from_millis(how.timeout_ms)),
            Request::Thaw => freeze::respond_to_thaw(&self.freezer),
            Request::Online => Response::Online(self.system.online_all()),
        })
    }

    /// The host will not hear of this: a host that does not know that file systems are frozen does not thaw them.
    pub(crate) fn take_back(&self, response: &Response) {
        if matches!(response, Response::Frozen(_)) {
            // The deadline may have been first.
            let _ = self.freezer.thaw();
        }
    }

    fn pong(&self) -> Pong {
        let optional = OPTIONAL.into_iter().filter(|request| self.does(request));
        let thaw = self.does("freeze").then_some("thaw");
        Pong {
            protocol: VERSION,
            agent: env!("CARGO_PKG_VERSION").into(),
            capabilities: ["ping"]
                .into_iter()
                .chain(optional)
                .chain(thaw)
                .map(String::from)
                .collect(),
            frozen: self.freezer.is_frozen(),
        }
    }
}

/// Whether a request can be done without writing to a disk.
const fn works_frozen(request: &Request) -> bool {
    match request {
        Request::Ping | Request::Info | Request::Freeze(_) | Request::Thaw | Request::Online => true,
        Request::Exec(_) | Request::Shutdown(_) => false,
    }
}
