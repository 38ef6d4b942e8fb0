//! What a host hears after its request: frames of a guest that may say anything.

use super::{Decoder, FrameError, Kind, Request, Response};

/// Something that a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Bytes of the command's stdout, at least one.
    Stdout(Vec<u8>),
    /// Bytes of the command's stderr, at least one.
    Stderr(Vec<u8>),
    /// The end. Nothing comes after it.
    Response(Response),
}

/// What an agent would not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// What is no frame.
    Frame(FrameError),
    /// A frame that does not belong here.
    Unexpected(Kind),
    /// A frame without a payload.
    Empty(Kind),
    /// More output than was asked for.
    TooMuch(Kind),
    /// What is no response.
    NotAResponse(String),
    /// A response to something else.
    Mismatch(&'static str),
    /// Something after the response.
    Trailing,
}

impl std::fmt::Display for AnswerError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(error) => write!(formatter, "the guest sent {error}"),
            Self::Unexpected(kind) => write!(formatter, "the guest sent a frame {kind:?} that was not asked for"),
            Self::Empty(kind) => write!(formatter, "the guest sent an empty frame {kind:?}"),
            Self::TooMuch(kind) => write!(formatter, "the guest sent more {kind:?} than it was asked for"),
            Self::NotAResponse(why) => write!(formatter, "the guest sent no response: {why}"),
            Self::Mismatch(request) => write!(formatter, "the guest sent a response that is none to `{request}`"),
            Self::Trailing => write!(formatter, "the guest sent something after its response"),
        }
    }
}

impl std::error::Error for AnswerError {}

/// Reads what a guest says to one request.
#[derive(Debug)]
pub struct Answers<'a> {
    request: &'a Request,
    decoder: Decoder,
    /// Bytes of output that may still come.
    stdout_left: u64,
    stderr_left: u64,
    ended: bool,
}

impl<'a> Answers<'a> {
    /// To this request.
    pub fn new(request: &'a Request) -> Self {
        let limit = if let Request::Exec(exec) = request {
            exec.output_limit_bytes
        } else {
            0
        };
        Self {
            request,
            decoder: Decoder::default(),
            stdout_left: limit,
            stderr_left: limit,
            ended: false,
        }
    }

    /// Takes bytes of the guest's, after which [`Self::next`] is to be called until there is nothing left.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next thing that the guest says.
    ///
    /// # Errors
    /// When it is nothing that an agent would say to this request. The connection is of no more use.
    #[allow(
        clippy::should_implement_trait,
        reason = "it is fallible and is not at its end with `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Answer>, AnswerError> {
        if self.ended {
            let silent = !self.decoder.is_within_frame();
            return if silent { Ok(None) } else { Err(AnswerError::Trailing) };
        }
        let Some(frame) = self.decoder.next().map_err(AnswerError::Frame)? else {
            return Ok(None);
        };
        match frame.kind {
            Kind::Stdin => Err(AnswerError::Unexpected(frame.kind)),
            Kind::Stdout => {
                take(&mut self.stdout_left, frame.kind, &frame.payload)?;
                Ok(Some(Answer::Stdout(frame.payload)))
            }
            Kind::Stderr => {
                take(&mut self.stderr_left, frame.kind, &frame.payload)?;
                Ok(Some(Answer::Stderr(frame.payload)))
            }
            Kind::Message => {
                let response = self.response(&frame.payload)?;
                self.ended = true;
                Ok(Some(Answer::Response(response)))
            }
        }
    }

    fn response(&self, payload: &[u8]) -> Result<Response, AnswerError> {
        // The error's text has pieces of what the guest sent.
        let described =
            |error: &dyn std::error::Error| AnswerError::NotAResponse(super::printable(&error.to_string(), 256));
        let response: Response = serde_json::from_slice(payload).map_err(|error| described(&error))?;
        response.check().map_err(|error| described(&error))?;
        if !self.request.is_answered_by(&response) {
            return Err(AnswerError::Mismatch(self.request.name()));
        }
        Ok(response)
    }
}

fn take(left: &mut u64, kind: Kind, payload: &[u8]) -> Result<(), AnswerError> {
    if payload.is_empty() {
        return Err(AnswerError::Empty(kind));
    }
    *left = left
        .checked_sub(payload.len() as u64)
        .ok_or(AnswerError::TooMuch(kind))?;
    Ok(())
}
