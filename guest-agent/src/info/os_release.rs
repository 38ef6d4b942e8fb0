//! os-release(5): `NAME=value` lines, whose values a shell could read.

use node_shim_protocol::guest::{Os, TEXT_MAX_BYTES, printable};

/// Most lines that are looked at.
const LINES_MAX: usize = 256;

pub(super) fn parse(text: &str) -> Os {
    let value = |wanted: &str| {
        let lines = text.lines().take(LINES_MAX);
        let found = lines
            .filter_map(|line| line.trim().split_once('='))
            .filter(|(name, _)| *name == wanted)
            .last();
        found
            .map(|(_, value)| printable(&unquote(value), TEXT_MAX_BYTES))
            .unwrap_or_default()
    };
    Os {
        id: value("ID"),
        version: value("VERSION_ID"),
        name: value("PRETTY_NAME"),
    }
}

/// Quotes of either kind, and in double quotes a backslash before what it makes plain.
fn unquote(value: &str) -> String {
    if let Some(plain) = value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return plain.to_owned();
    }
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut plain = String::new();
    let mut characters = inner.unwrap_or(value).chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' {
            characters.next()
        } else {
            Some(character)
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_a_shell_would() {
        let text = "# comment\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID='12'\nID=debian\nID_LIKE=x\nHOME_URL=\"a=b\"\n";
        let os = parse(text);
        assert_eq!(
            (os.id.as_str(), os.version.as_str(), os.name.as_str()),
            ("debian", "12", "Debian GNU/Linux 12 (bookworm)")
        );
        assert_eq!(parse("PRETTY_NAME=\"a \\\"b\\\" \\$c\"").name, "a \"b\" $c");
        assert_eq!(parse("ID=a\nID=b").id, "b", "the last counts");
        assert_eq!(parse("ID=\"\nID\n=x").id, "\"");
        assert_eq!(parse("PRETTY_NAME=\"\x1b[2J\"").name, "?[2J");
        assert_eq!(parse(""), Os::default());
    }
}
