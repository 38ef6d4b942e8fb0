//! MAC addresses.

use std::fmt;
use std::str::FromStr;

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mac([u8; 6]);

/// Text that is no unicast MAC address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a unicast address of the form xx:xx:xx:xx:xx:xx")]
pub(crate) struct ParseMacError;

impl Mac {
    /// The locally administered address 02:00:54:4d:00:`index`.
    pub(crate) const fn local(index: u8) -> Self {
        Self([0x02, 0x00, 0x54, 0x4d, 0x00, index])
    }

    /// An address as the kernel has it; none where it is no unicast address of Ethernet.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes = <[u8; 6]>::try_from(bytes).ok()?;
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The bytes in transmission order.
    pub(crate) const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or(ParseMacError)?;
        }
        let end = parts.next().is_none();
        Self::of_bytes(&bytes).filter(|_| end).ok_or(ParseMacError)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0.iter();
        bytes.next().map_or(Ok(()), |first| write!(formatter, "{first:02x}"))?;
        bytes.try_for_each(|byte| write!(formatter, ":{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_unicast_addresses_in_colon_form_are_taken() {
        assert_eq!("02:00:54:4d:00:01".parse(), Ok(Mac::local(1)));
        for text in [
            "",
            "02:00:54:4d:00",
            "02:00:54:4d:00:01:",
            "2:00:54:4d:00:01",
            "+2:00:54:4d:00:01",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02-00-54-4d-00-01",
            "02:00:54:4d:00:0g",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(ParseMacError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(bytes: [u8; 6]) {
            let parsed = Mac(bytes).to_string().parse::<Mac>();
            let unicast = bytes[0] & 1 == 0 && bytes != [0; 6];
            prop_assert_eq!(parsed.ok(), unicast.then_some(Mac(bytes)));
        }
    }
}
