//! What a client on the host says first: `CONNECT <port>\n`. It is Firecracker's protocol, so that its clients work here.

/// Longest line: `CONNECT`, a space, ten digits, and a line end.
pub(super) const LINE_MAX_BYTES: usize = 32;

/// What the bytes so far mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The line is not yet complete.
    More,
    /// A connection to this port of the guest.
    Connect(u32),
    /// Nothing that can become a greeting.
    Wrong,
}

/// Looks at the bytes up to now, of which only the last can be a line end.
pub(super) fn parse(bytes: &[u8]) -> Greeting {
    let Some(line) = bytes.strip_suffix(b"\n") else {
        return if bytes.len() < LINE_MAX_BYTES {
            Greeting::More
        } else {
            Greeting::Wrong
        };
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let port = std::str::from_utf8(line).ok().and_then(|line| {
        let (word, port) = line.split_once(' ')?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        (word.eq_ignore_ascii_case("connect") && digits).then(|| port.parse().ok())?
    });
    port.map_or(Greeting::Wrong, Greeting::Connect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_line_with_a_port_connects() {
        for (text, expected) in [
            ("", Greeting::More),
            ("CONNECT 5", Greeting::More),
            ("CONNECT 52\n", Greeting::Connect(52)),
            ("connect 4294967295\r\n", Greeting::Connect(u32::MAX)),
            ("CONNECT 4294967296\n", Greeting::Wrong),
            ("CONNECT +5\n", Greeting::Wrong),
            ("CONNECT  5\n", Greeting::Wrong),
            ("CONNECT\n", Greeting::Wrong),
            ("GET / HTTP/1.1\n", Greeting::Wrong),
            ("CONNECT 00000000000000000000000000000005", Greeting::Wrong),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(parse(b"CONNECT \xff\n"), Greeting::Wrong);
    }
}
