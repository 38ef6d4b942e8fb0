//! Frames: one byte of kind, four bytes of length (little endian), and as many bytes of payload.

/// Bytes before a payload.
pub const HEADER_BYTES: usize = 5;
/// Longest payload of a [`Kind::Message`].
pub const MESSAGE_MAX_BYTES: usize = 64 * 1024;
/// Longest payload of the other kinds.
pub const DATA_MAX_BYTES: usize = 16 * 1024;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request or a response in JSON.
    Message,
    /// Bytes for the command's stdin; none: it is at its end.
    Stdin,
    /// Bytes of the command's stdout.
    Stdout,
    /// Bytes of the command's stderr.
    Stderr,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// At most as many bytes as its kind may have.
    pub payload: Vec<u8>,
}

/// What is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A kind that there is none of.
    Kind(u8),
    /// A payload that is too long.
    Length {
        /// What it is.
        kind: Kind,
        /// Its length in bytes.
        length: usize,
    },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind(kind) => write!(formatter, "a frame of the unknown kind {kind}"),
            Self::Length { kind, length } => write!(
                formatter,
                "a frame {kind:?} of {length} bytes, of which at most {} may be",
                kind.max_bytes()
            ),
        }
    }
}

impl std::error::Error for FrameError {}

impl Kind {
    /// Longest payload, in bytes.
    pub const fn max_bytes(self) -> usize {
        match self {
            Self::Message => MESSAGE_MAX_BYTES,
            Self::Stdin | Self::Stdout | Self::Stderr => DATA_MAX_BYTES,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Message => 0,
            Self::Stdin => 1,
            Self::Stdout => 2,
            Self::Stderr => 3,
        }
    }

    fn parse(byte: u8) -> Result<Self, FrameError> {
        [Self::Message, Self::Stdin, Self::Stdout, Self::Stderr]
            .into_iter()
            .find(|kind| kind.byte() == byte)
            .ok_or(FrameError::Kind(byte))
    }
}

/// A frame's bytes.
///
/// # Errors
/// When the payload is too long for its kind.
pub fn encode(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_long = FrameError::Length {
        kind,
        length: payload.len(),
    };
    let length = u32::try_from(payload.len()).map_err(|_| too_long)?;
    if payload.len() > kind.max_bytes() {
        return Err(too_long);
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind.byte());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Finds the frames in a stream of bytes. It holds no more than one frame that is not yet whole and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the frames begin that were not yet returned.
    start: usize,
}

impl Decoder {
    /// Takes bytes, after which [`Self::next`] is to be called until there is no frame left.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether there are bytes of a frame that is not whole.
    pub fn is_within_frame(&self) -> bool {
        self.bytes.len() > self.start
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    /// When a header is none: nothing that follows can be understood either.
    #[allow(
        clippy::should_implement_trait,
        reason = "it is fallible and is not at its end with `None`"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let bytes = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            // A kind that is none need not be waited with.
            return match bytes.first() {
                Some(byte) => Kind::parse(*byte).map(|_| None),
                None => Ok(None),
            };
        };
        let [kind, length @ ..] = *header;
        let kind = Kind::parse(kind)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > kind.max_bytes() {
            return Err(FrameError::Length { kind, length });
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += HEADER_BYTES + length;
        Ok(Some(Frame { kind, payload }))
    }
}
