//! Domain names as DNS messages have them (RFC 1035, 3.1), which is how DHCP and router advertisements carry search domains.

/// One name; `None` when it is not one.
pub(super) fn encode(domain: &str) -> Option<Vec<u8>> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let mut name = Vec::with_capacity(domain.len() + 2);
    for label in domain.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        name.push(length);
        name.extend_from_slice(label.as_bytes());
    }
    name.push(0);
    (name.len() <= 255).then_some(name)
}

/// As many names, from the first on, as fit into `limit` bytes.
pub(super) fn encode_all(domains: &[String], limit: usize) -> Vec<u8> {
    let mut names = Vec::new();
    for name in domains.iter().filter_map(|domain| encode(domain)) {
        if names.len() + name.len() > limit {
            break;
        }
        names.extend_from_slice(&name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_and_what_is_none_is_left_out() {
        assert_eq!(encode("a.bc.").unwrap(), b"\x01a\x02bc\x00");
        for wrong in ["", ".", "a..b", &"x".repeat(64), &"abc.".repeat(64)] {
            assert_eq!(encode(wrong), None, "{wrong:?}");
        }
        let domains = ["a.b".to_owned(), "..".to_owned(), "c".to_owned()];
        assert_eq!(encode_all(&domains, 100), b"\x01a\x01b\x00\x01c\x00");
        assert_eq!(encode_all(&domains, 7), b"\x01a\x01b\x00");
    }
}
