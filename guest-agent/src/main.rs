//! `tandem-guest-agent`: see docs/guest-agent.md.

use std::process::ExitCode;
use std::sync::Arc;

use guest_agent::agent::Agent;
use guest_agent::freeze::{self, Freezer};
use guest_agent::options::{self, Mode};
use guest_agent::{listener, log, online};

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Mode::Serve(options)) => options,
        Ok(Mode::Thaw) => return thaw(),
        Ok(Mode::Say(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            log::line(format_args!("{error}; --help says what there is"));
            return ExitCode::from(2);
        }
    };
    let socket = match listener::listen() {
        Ok(socket) => socket,
        Err(error) => {
            log::line(format_args!("{error}"));
            return ExitCode::FAILURE;
        }
    };
    // No other agent runs, so what one has frozen nobody else thaws. It has said if it could not.
    let _ = thaw();
    let agent = Arc::new(Agent::new(options, Freezer::new(freeze::MARKER.into())));
    if agent.does("online") {
        online::keep(online::System::default());
    }
    listener::serve(&socket, &agent)
}

/// Thaws what was frozen by a process of the agent that is no more.
fn thaw() -> ExitCode {
    match freeze::recover(freeze::MARKER.as_ref()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(count)) => {
            log::line(format_args!(
                "thawed {count} file systems that an earlier process had frozen"
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::line(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}
