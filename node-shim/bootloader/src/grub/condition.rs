//! `test` and `[`.

use std::cmp::Ordering;

use crate::files::Found;

/// How deep parentheses and `!` may be nested.
const NESTING_MAX: u32 = 32;

/// Evaluates the words of a test; `find` looks up a file. What is no test does not hold.
pub(super) fn holds(words: &[String], find: &dyn Fn(&str) -> Option<Found>) -> bool {
    let mut test = Test { words, find };
    let value = test.any(0);
    value.unwrap_or(false) && test.words.is_empty()
}

struct Test<'words> {
    words: &'words [String],
    find: &'words dyn Fn(&str) -> Option<Found>,
}

impl Test<'_> {
    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    fn any(&mut self, depth: u32) -> Option<bool> {
        let mut value = self.all(depth)?;
        while self.take("-o") {
            value |= self.all(depth)?;
        }
        Some(value)
    }

    fn all(&mut self, depth: u32) -> Option<bool> {
        let mut value = self.one(depth)?;
        while self.take("-a") {
            value &= self.one(depth)?;
        }
        Some(value)
    }

    fn one(&mut self, depth: u32) -> Option<bool> {
        if depth > NESTING_MAX {
            return None;
        }
        // Two operands with an operator between them come first: the operands may look like operators.
        if let [left, operator, right, rest @ ..] = self.words
            && let Some(value) = compare(left, operator, right)
        {
            self.words = rest;
            return Some(value);
        }
        if self.take("!") {
            return Some(!self.one(depth + 1)?);
        }
        if self.take("(") {
            let value = self.any(depth + 1)?;
            return self.take(")").then_some(value);
        }
        if let [operator, operand, rest @ ..] = self.words
            && let Some(value) = self.unary(operator, operand)
        {
            self.words = rest;
            return Some(value);
        }
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(!word.is_empty())
    }

    fn unary(&self, operator: &str, operand: &str) -> Option<bool> {
        Some(match operator {
            "-z" => operand.is_empty(),
            "-n" => !operand.is_empty(),
            "-e" => (self.find)(operand).is_some(),
            "-d" => (self.find)(operand) == Some(Found::Directory),
            "-f" => matches!((self.find)(operand), Some(Found::File(_))),
            "-s" => matches!((self.find)(operand), Some(Found::File(bytes)) if bytes > 0),
            _ => return None,
        })
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    let numbers = |wanted: fn(Ordering) -> bool| wanted(number(left).cmp(&number(right)));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => numbers(Ordering::is_eq),
        "-ne" => numbers(Ordering::is_ne),
        "-lt" => numbers(Ordering::is_lt),
        "-le" => numbers(Ordering::is_le),
        "-gt" => numbers(Ordering::is_gt),
        "-ge" => numbers(Ordering::is_ge),
        // By the time of files, which is not looked at.
        "-nt" | "-ot" => false,
        _ => return None,
    })
}

/// The number that text begins with; 0 where it begins with none.
fn number(text: &str) -> i64 {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let end = unsigned
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(unsigned.len());
    let value: i64 = unsigned[..end].parse().unwrap_or(0);
    if unsigned.len() < text.len() { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_as_scripts_write_them() {
        let find = |path: &str| match path {
            "/file" => Some(Found::File(1)),
            "/empty" => Some(Found::File(0)),
            "/directory" => Some(Found::Directory),
            _ => None,
        };
        for (test, expected) in [
            ("x = xy", false),
            ("xy = xy", true),
            ("a == a", true),
            ("a != b", true),
            ("a", true),
            ("", false),
            ("-z ''", true),
            ("-n ''", false),
            ("-s /file", true),
            ("-s /empty", false),
            ("-f /empty", true),
            ("-f /directory", false),
            ("-d /directory", true),
            ("-e /nothing", false),
            ("! -e /nothing", true),
            ("1 -eq 01", true),
            ("10 -gt 9", true),
            ("-1 -lt 0", true),
            ("1 = 1 -o 1 = 2", true),
            ("1 = 2 -o 1 = 2", false),
            ("1 = 1 -a 1 = 2", false),
            ("1 = 2 -a 1 = 2 -o a", true),
            ("( 1 = 2 -o 1 = 1 ) -a a", true),
            ("! ( 1 = 1 )", false),
            ("! = !", true),
            ("-z = -n", false),
            ("-f", true),
            ("a b", false),
            ("( a", false),
            ("a -o", false),
        ] {
            let words: Vec<String> = test.split_whitespace().map(|word| word.replace("''", "")).collect();
            assert_eq!(holds(&words, &find), expected, "[ {test} ]");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        let deep = vec!["(".to_owned(); 100_000];
        assert!(!holds(&deep, &|_| None));
        let deep = vec!["!".to_owned(); 100_000];
        assert!(!holds(&deep, &|_| None));
    }
}
