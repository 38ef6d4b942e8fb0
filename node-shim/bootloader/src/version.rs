//! Which of two versions is newer: two rules are in use.

use std::cmp::Ordering;

/// As RPM compares versions, and GRUB with it the entries of the Boot Loader Specification.
pub(crate) fn compare_rpm(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        one = skip(one, |byte| !byte.is_ascii_alphanumeric() && byte != b'~');
        other = skip(other, |byte| !byte.is_ascii_alphanumeric() && byte != b'~');
        match (one.first(), other.first()) {
            (Some(b'~'), Some(b'~')) => {
                (one, other) = (&one[1..], &other[1..]);
                continue;
            }
            // What is before a release is older than the release.
            (Some(b'~'), _) => return Ordering::Less,
            (None, None) => return Ordering::Equal,
            (_, Some(b'~')) | (Some(_), None) => return Ordering::Greater,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), Some(_)) => {}
        }
        let numeric = one.first().is_some_and(u8::is_ascii_digit);
        let kind = |byte: u8| {
            if numeric {
                byte.is_ascii_digit()
            } else {
                byte.is_ascii_alphabetic()
            }
        };
        let (left, rest) = split(one, kind);
        one = rest;
        let (right, rest) = split(other, kind);
        other = rest;
        if right.is_empty() {
            // A number is newer than letters.
            return if numeric { Ordering::Greater } else { Ordering::Less };
        }
        let order = if numeric {
            compare_digits(left, right)
        } else {
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// As the UAPI Group's "Version Format Specification" says, and systemd-boot does.
pub(crate) fn compare_uapi(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(&byte);
    loop {
        one = skip(one, |byte| !known(byte));
        other = skip(other, |byte| !known(byte));
        match marked(b'~', &mut one, &mut other) {
            Some(Ordering::Equal) => continue,
            Some(order) => return order,
            None => {}
        }
        match (one.is_empty(), other.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let separator = b"-^."
            .iter()
            .find_map(|separator| marked(*separator, &mut one, &mut other));
        match separator {
            Some(Ordering::Equal) => continue,
            Some(order) => return order,
            None => {}
        }
        let digits = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(one) || digits(other) {
            let (left, left_rest) = split(one, |byte| byte.is_ascii_digit());
            let (right, right_rest) = split(other, |byte| byte.is_ascii_digit());
            (one, other) = (left_rest, right_rest);
            (!left.is_empty())
                .cmp(&!right.is_empty())
                .then_with(|| compare_digits(left, right))
        } else {
            let (left, left_rest) = split(one, |byte| byte.is_ascii_alphabetic());
            let (right, right_rest) = split(other, |byte| byte.is_ascii_alphabetic());
            (one, other) = (left_rest, right_rest);
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Where one or both begin with `mark`: the one that does is older; both, and it is skipped.
fn marked(mark: u8, one: &mut &[u8], other: &mut &[u8]) -> Option<Ordering> {
    match (one.first() == Some(&mark), other.first() == Some(&mark)) {
        (false, false) => None,
        (true, false) => Some(Ordering::Less),
        (false, true) => Some(Ordering::Greater),
        (true, true) => {
            *one = &one[1..];
            *other = &other[1..];
            Some(Ordering::Equal)
        }
    }
}

fn compare_digits(one: &[u8], other: &[u8]) -> Ordering {
    let one = skip(one, |byte| byte == b'0');
    let other = skip(other, |byte| byte == b'0');
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

fn skip(bytes: &[u8], while_: impl Fn(u8) -> bool) -> &[u8] {
    split(bytes, while_).1
}

fn split(bytes: &[u8], while_: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| !while_(*byte)).unwrap_or(bytes.len());
    bytes.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oldest first; each is older than all after it.
    fn check(compare: fn(&str, &str) -> Ordering, ascending: &[&str]) {
        for (index, one) in ascending.iter().enumerate() {
            assert_eq!(compare(one, one), Ordering::Equal, "{one}");
            for other in &ascending[index + 1..] {
                assert_eq!(compare(one, other), Ordering::Less, "{one} {other}");
                assert_eq!(compare(other, one), Ordering::Greater, "{other} {one}");
            }
        }
    }

    #[test]
    fn rpm_compares_numbers_as_numbers() {
        check(
            compare_rpm,
            &["1.0~rc1", "1.0", "1.0a", "1.0.1", "1.2", "1.10", "1.010.1", "2"],
        );
        check(
            compare_rpm,
            &["rescue", "300.fc39.x86_64", "301.fc39.x86_64", "1000.fc39"],
        );
        assert_eq!(compare_rpm("1.0", "1_0"), Ordering::Equal);
        assert_eq!(compare_rpm("007", "7"), Ordering::Equal);
    }

    #[test]
    fn systemd_boot_compares_as_its_specification_says() {
        check(
            compare_uapi,
            &["~1", "", "ab", "abb", "abc", "0001", "002", "12", "122", "122.9"],
        );
        check(
            compare_uapi,
            &[
                "123~rc1",
                "123",
                "123-a",
                "123-a.1",
                "123-a1",
                "123^post1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124-1",
            ],
        );
        check(compare_uapi, &["6.11.0-63.fc42", "6.14.9-300.fc42", "6.14.11-300.fc42"]);
        assert_eq!(compare_uapi("1_2", "12"), Ordering::Less);
    }
}
