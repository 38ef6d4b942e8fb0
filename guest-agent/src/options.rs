//! The command line.

use std::ffi::OsString;

use node_shim_protocol::guest::{self, VERSION};

/// What `--help` says.
const HELP: &str = "\
Does in a Linux guest what the host asks for over vsock.

Usage: tandem-guest-agent [OPTION...]

  --disable REQUEST   refuse this request: exec, info, shutdown, freeze or online; may be given again.
                      With `online`, CPUs and memory that are plugged are left alone too
  --thaw              thaw what an agent that was killed has frozen, and end
  --version           the version of the agent and of its protocol
  --help              this text";

/// Requests that the owner of a guest may switch off. A ping always works, and whoever may freeze must be able to thaw.
pub const OPTIONAL: [&str; 5] = ["exec", "info", "shutdown", "freeze", "online"];

/// What the agent is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// Serve the host.
    Serve(Options),
    /// Thaw what was left frozen.
    Thaw,
    /// Print this.
    Say(String),
}

/// How it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Names of requests that are refused.
    pub disabled: Vec<&'static str>,
}

/// A command line that is none.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// An argument that there is none of.
    #[error("{0}")]
    Argument(#[source] lexopt::Error),
    /// A request that there is none of, or that cannot be switched off.
    #[error("`{0}` cannot be disabled; write one of exec, info, shutdown, freeze, online")]
    Request(String),
}

/// Reads arguments, without the program's name.
///
/// # Errors
/// What is wrong with them.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Mode, OptionsError> {
    use lexopt::prelude::{Long, Short, Value, ValueExt};
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = Options::default();
    while let Some(argument) = parser.next().map_err(OptionsError::Argument)? {
        match argument {
            Long("disable") => {
                let name = parser
                    .value()
                    .and_then(ValueExt::string)
                    .map_err(OptionsError::Argument)?;
                let known = OPTIONAL.into_iter().find(|known| *known == name);
                options.disabled.push(known.ok_or(OptionsError::Request(name))?);
            }
            Long("thaw") => return Ok(Mode::Thaw),
            Long("version") | Short('V') => {
                let version = env!("CARGO_PKG_VERSION");
                let text = format!(
                    "tandem-guest-agent {version}, protocol {VERSION}, vsock port {}",
                    guest::PORT
                );
                return Ok(Mode::Say(text));
            }
            Long("help") | Short('h') => return Ok(Mode::Say(HELP.into())),
            other @ (Long(_) | Short(_) | Value(_)) => return Err(OptionsError::Argument(other.unexpected())),
        }
    }
    Ok(Mode::Serve(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Mode, OptionsError> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn what_may_be_switched_off_is_and_nothing_else() {
        let serve = |disabled: &[&'static str]| {
            Mode::Serve(Options {
                disabled: disabled.to_vec(),
            })
        };
        assert_eq!(parsed(&[]).unwrap(), serve(&[]));
        assert_eq!(
            parsed(&["--disable", "exec", "--disable=freeze"]).unwrap(),
            serve(&["exec", "freeze"])
        );
        assert_eq!(parsed(&["--thaw"]).unwrap(), Mode::Thaw);
        for wrong in [
            &["--disable"][..],
            &["--disable", "ping"],
            &["--disable", "thaw"],
            &["--port"],
            &["exec"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(matches!(parsed(&["--version"]), Ok(Mode::Say(text)) if text.ends_with("protocol 1, vsock port 847")));
        for name in OPTIONAL {
            assert!(HELP.contains(name), "{name}");
        }
    }
}
