//! What an agent hears: one request, and the stdin of a command.

use super::{Decoder, FrameError, Kind, Request};

/// Something that the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What it asks for: the first thing that it says.
    Request(Request),
    /// Bytes for the command's stdin, at least one.
    Stdin(Vec<u8>),
    /// The command's stdin is at its end.
    EndOfStdin,
}

/// What a host would not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuestionError {
    /// What is no frame.
    Frame(FrameError),
    /// A frame that does not belong here.
    Unexpected(Kind),
    /// What is no request.
    NotARequest(String),
}

impl std::fmt::Display for QuestionError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(error) => write!(formatter, "the host sent {error}"),
            Self::Unexpected(kind) => write!(formatter, "the host sent a frame {kind:?} where none may be"),
            Self::NotARequest(why) => write!(formatter, "that is no request that this agent knows: {why}"),
        }
    }
}

impl std::error::Error for QuestionError {}

/// How far the host has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It has yet to say what it wants.
    #[default]
    Request,
    /// Stdin may come.
    Stdin,
    /// Nothing may come.
    End,
}

/// Reads what a host says on one connection.
#[derive(Debug, Default)]
pub struct Questions {
    decoder: Decoder,
    stage: Stage,
}

impl Questions {
    /// Takes bytes of the host's, after which [`Self::next`] is to be called until there is nothing left.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next thing that the host says.
    ///
    /// # Errors
    /// When it may not say that. The connection is of no more use.
    #[allow(
        clippy::should_implement_trait,
        reason = "it is fallible and is not at its end with `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Question>, QuestionError> {
        let Some(frame) = self.decoder.next().map_err(QuestionError::Frame)? else {
            return Ok(None);
        };
        match (self.stage, frame.kind) {
            (Stage::Request, Kind::Message) => {
                let request = request(&frame.payload)?;
                let has_stdin = matches!(&request, Request::Exec(exec) if exec.stdin);
                self.stage = if has_stdin { Stage::Stdin } else { Stage::End };
                Ok(Some(Question::Request(request)))
            }
            (Stage::Stdin, Kind::Stdin) if frame.payload.is_empty() => {
                self.stage = Stage::End;
                Ok(Some(Question::EndOfStdin))
            }
            (Stage::Stdin, Kind::Stdin) => Ok(Some(Question::Stdin(frame.payload))),
            (Stage::Request, Kind::Stdin | Kind::Stdout | Kind::Stderr)
            | (Stage::Stdin, Kind::Message | Kind::Stdout | Kind::Stderr)
            | (Stage::End, Kind::Message | Kind::Stdin | Kind::Stdout | Kind::Stderr) => {
                Err(QuestionError::Unexpected(frame.kind))
            }
        }
    }
}

fn request(payload: &[u8]) -> Result<Request, QuestionError> {
    let request: Request =
        serde_json::from_slice(payload).map_err(|error| QuestionError::NotARequest(error.to_string()))?;
    request
        .check()
        .map_err(|excess| QuestionError::NotARequest(excess.to_string()))?;
    Ok(request)
}
