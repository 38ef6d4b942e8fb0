//! The script language: GNU GRUB manual, "Writing full configuration files directly".

use std::rc::Rc;

use super::ScriptError;
use crate::limits::Limits;

/// Words of one configuration. The longest that `grub-mkconfig` makes has some thousand.
const WORDS_MAX: usize = 1 << 16;

/// Part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is.
    Literal {
        /// The text.
        text: String,
        /// Whether it was in quotes: then even nothing is a word.
        quoted: bool,
    },
    /// A variable's value.
    Variable {
        /// Its name, or `?`, `#`, `*`, `@` or a number.
        name: String,
        /// Whether it was in quotes: then its value is not split into words.
        quoted: bool,
    },
}

/// One word, whose pieces are joined.
pub(super) type Word = Vec<Piece>;

/// Statements that run in order.
pub(super) type Body = Rc<[Statement]>;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// A command with words, and a block for `menuentry` and `submenu`.
    Command {
        /// Its name and arguments.
        words: Vec<Word>,
        /// What is in braces after them.
        block: Option<Body>,
    },
    /// `!` before a statement.
    Not(Box<Statement>),
    /// `if` and `elif` with their conditions, and `else`.
    If {
        /// Conditions and what they guard.
        arms: Vec<(Body, Body)>,
        /// What runs if none holds.
        otherwise: Body,
    },
    /// `while` and `until`.
    Loop {
        /// What the condition must be for another turn.
        wanted: bool,
        /// The condition.
        condition: Body,
        /// What is repeated.
        body: Body,
    },
    /// `for`.
    For {
        /// The variable.
        variable: String,
        /// Its values.
        words: Vec<Word>,
        /// What is repeated.
        body: Body,
    },
    /// `function`.
    Function {
        /// Its name.
        name: String,
        /// What it does.
        body: Body,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    Separator,
    Open,
    Close,
    End,
}

/// Parses a configuration.
///
/// # Errors
/// For what is not in the language, or is longer or nested deeper than allowed.
pub fn parse(text: &str, limits: &Limits) -> Result<Body, ScriptError> {
    let mut parser = Parser {
        lexer: Lexer::new(text),
        token: Token::Separator,
        words: 0,
        depth: 0,
        depth_max: limits.script_nesting,
    };
    parser.advance()?;
    let body = parser.list(&[])?;
    if parser.token != Token::End {
        return Err(parser.wrong("a closing brace without an opening one"));
    }
    Ok(body)
}

struct Parser<'text> {
    lexer: Lexer<'text>,
    token: Token,
    words: usize,
    depth: u32,
    depth_max: u32,
}

impl Parser<'_> {
    fn wrong(&self, why: &'static str) -> ScriptError {
        ScriptError::Syntax {
            line: self.lexer.line,
            why,
        }
    }

    fn advance(&mut self) -> Result<Token, ScriptError> {
        let next = self.lexer.token()?;
        self.words += 1;
        if self.words > WORDS_MAX {
            return Err(ScriptError::TooLarge("words"));
        }
        Ok(std::mem::replace(&mut self.token, next))
    }

    /// The word that is next, if nothing in it is quoted or replaced.
    fn keyword(&self) -> Option<&str> {
        let Token::Word(word) = &self.token else {
            return None;
        };
        match word.as_slice() {
            [Piece::Literal { text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    fn at(&self, keyword: &str) -> bool {
        self.keyword() == Some(keyword)
    }

    fn expect(&mut self, keyword: &str, why: &'static str) -> Result<(), ScriptError> {
        if !self.at(keyword) {
            return Err(self.wrong(why));
        }
        self.advance().map(drop)
    }

    /// Statements up to one of these keywords, a closing brace or the end; none of them is consumed.
    fn list(&mut self, until: &[&str]) -> Result<Body, ScriptError> {
        self.depth += 1;
        if self.depth > self.depth_max {
            return Err(ScriptError::TooDeep(self.depth_max));
        }
        let mut statements = Vec::new();
        loop {
            match &self.token {
                Token::Separator => {
                    self.advance()?;
                }
                Token::End | Token::Close => break,
                Token::Open => return Err(self.wrong("a block without a command")),
                Token::Word(_) if self.keyword().is_some_and(|word| until.contains(&word)) => break,
                Token::Word(_) => statements.push(self.statement()?),
            }
        }
        self.depth -= 1;
        Ok(statements.into())
    }

    fn statement(&mut self) -> Result<Statement, ScriptError> {
        match self.keyword() {
            Some("if") => self.conditional(),
            Some("while") => self.repeated(true),
            Some("until") => self.repeated(false),
            Some("for") => self.for_each(),
            Some("function") => self.function(),
            Some("!") => {
                self.advance()?;
                self.depth += 1;
                if self.depth > self.depth_max {
                    return Err(ScriptError::TooDeep(self.depth_max));
                }
                let Token::Word(_) = self.token else {
                    return Err(self.wrong("`!` without a command"));
                };
                let statement = self.statement()?;
                self.depth -= 1;
                Ok(Statement::Not(Box::new(statement)))
            }
            Some("then" | "elif" | "else" | "fi" | "do" | "done") => Err(self.wrong("a keyword out of place")),
            _ => self.command(),
        }
    }

    fn words(&mut self) -> Result<Vec<Word>, ScriptError> {
        let mut words = Vec::new();
        while let Token::Word(_) = self.token {
            if let Token::Word(word) = self.advance()? {
                words.push(word);
            }
        }
        Ok(words)
    }

    fn command(&mut self) -> Result<Statement, ScriptError> {
        let words = self.words()?;
        let block = if self.token == Token::Open {
            Some(self.block()?)
        } else {
            None
        };
        Ok(Statement::Command { words, block })
    }

    fn block(&mut self) -> Result<Body, ScriptError> {
        self.advance()?;
        let body = self.list(&[])?;
        if self.token != Token::Close {
            return Err(self.wrong("a block without its closing brace"));
        }
        self.advance()?;
        Ok(body)
    }

    fn conditional(&mut self) -> Result<Statement, ScriptError> {
        let mut arms = Vec::new();
        loop {
            self.advance()?;
            let condition = self.list(&["then"])?;
            self.expect("then", "`if` without `then`")?;
            let body = self.list(&["elif", "else", "fi"])?;
            arms.push((condition, body));
            if !self.at("elif") {
                break;
            }
        }
        let otherwise = if self.at("else") {
            self.advance()?;
            self.list(&["fi"])?
        } else {
            Rc::from([])
        };
        self.expect("fi", "`if` without `fi`")?;
        Ok(Statement::If { arms, otherwise })
    }

    fn repeated(&mut self, wanted: bool) -> Result<Statement, ScriptError> {
        self.advance()?;
        let condition = self.list(&["do"])?;
        self.expect("do", "a loop without `do`")?;
        let body = self.list(&["done"])?;
        self.expect("done", "a loop without `done`")?;
        Ok(Statement::Loop {
            wanted,
            condition,
            body,
        })
    }

    fn for_each(&mut self) -> Result<Statement, ScriptError> {
        self.advance()?;
        let variable = self
            .keyword()
            .ok_or_else(|| self.wrong("`for` without a variable"))?
            .to_owned();
        self.advance()?;
        self.expect("in", "`for` without `in`")?;
        let words = self.words()?;
        while self.token == Token::Separator {
            self.advance()?;
        }
        self.expect("do", "a loop without `do`")?;
        let body = self.list(&["done"])?;
        self.expect("done", "a loop without `done`")?;
        Ok(Statement::For { variable, words, body })
    }

    fn function(&mut self) -> Result<Statement, ScriptError> {
        self.advance()?;
        let name = self
            .keyword()
            .ok_or_else(|| self.wrong("`function` without a name"))?
            .to_owned();
        self.advance()?;
        while self.token == Token::Separator {
            self.advance()?;
        }
        if self.token != Token::Open {
            return Err(self.wrong("`function` without a block"));
        }
        let body = self.block()?;
        Ok(Statement::Function { name, body })
    }
}

struct Lexer<'text> {
    rest: std::iter::Peekable<std::str::Chars<'text>>,
    line: usize,
}

impl<'text> Lexer<'text> {
    fn new(text: &'text str) -> Self {
        Self {
            rest: text.chars().peekable(),
            line: 1,
        }
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn token(&mut self) -> Result<Token, ScriptError> {
        loop {
            match self.rest.peek() {
                None => return Ok(Token::End),
                Some(' ' | '\t' | '\r') => {
                    self.next();
                }
                Some('#') => {
                    while self.rest.peek().is_some_and(|character| *character != '\n') {
                        self.next();
                    }
                }
                Some('\n' | ';') => {
                    self.next();
                    return Ok(Token::Separator);
                }
                Some('{') => {
                    self.next();
                    return Ok(Token::Open);
                }
                Some('}') => {
                    self.next();
                    return Ok(Token::Close);
                }
                Some(_) => {
                    let word = self.word()?;
                    // A line that is continued, with nothing before it.
                    if !word.is_empty() {
                        return Ok(Token::Word(word));
                    }
                }
            }
        }
    }

    fn word(&mut self) -> Result<Word, ScriptError> {
        let mut word = Word::new();
        while let Some(character) = self.rest.peek().copied() {
            match character {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '\'' => {
                    self.next();
                    self.single_quoted(&mut word)?;
                }
                '"' => {
                    self.next();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') => {}
                        Some(escaped) => literal(&mut word, escaped, false),
                        None => return Err(self.wrong("a backslash at the end")),
                    }
                }
                '$' => {
                    self.next();
                    self.variable(&mut word, false)?;
                }
                other => {
                    self.next();
                    literal(&mut word, other, false);
                }
            }
        }
        Ok(word)
    }

    fn wrong(&self, why: &'static str) -> ScriptError {
        ScriptError::Syntax { line: self.line, why }
    }

    fn single_quoted(&mut self, word: &mut Word) -> Result<(), ScriptError> {
        quoted(word);
        loop {
            match self.next() {
                None => return Err(self.wrong("a quote that is not closed")),
                Some('\'') => return Ok(()),
                Some(character) => literal(word, character, true),
            }
        }
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), ScriptError> {
        quoted(word);
        loop {
            match self.next() {
                None => return Err(self.wrong("a quote that is not closed")),
                Some('"') => return Ok(()),
                Some('$') => self.variable(word, true)?,
                Some('\\') => match self.next() {
                    None => return Err(self.wrong("a quote that is not closed")),
                    Some('\n') => {}
                    Some(escaped @ ('"' | '$' | '\\')) => literal(word, escaped, true),
                    Some(other) => {
                        literal(word, '\\', true);
                        literal(word, other, true);
                    }
                },
                Some(character) => literal(word, character, true),
            }
        }
    }

    /// After a `$`.
    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), ScriptError> {
        let mut name = String::new();
        match self.rest.peek().copied() {
            Some('{') => {
                self.next();
                loop {
                    match self.next() {
                        None | Some('\n') => return Err(self.wrong("a variable without its closing brace")),
                        Some('}') => break,
                        Some(character) => name.push(character),
                    }
                }
            }
            Some(special @ ('?' | '#' | '*' | '@')) => {
                self.next();
                name.push(special);
            }
            Some(first) if first.is_ascii_digit() => {
                while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
                    name.push(digit);
                }
            }
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                while let Some(letter) = self
                    .rest
                    .next_if(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                {
                    name.push(letter);
                }
            }
            // `$"..."` marks text for translation.
            Some('"' | '\'') => return Ok(()),
            _ => {
                literal(word, '$', quoted);
                return Ok(());
            }
        }
        word.push(Piece::Variable { name, quoted });
        Ok(())
    }
}

/// There is a word here, even if nothing is in it.
fn quoted(word: &mut Word) {
    if !matches!(word.last(), Some(Piece::Literal { quoted: true, .. })) {
        word.push(Piece::Literal {
            text: String::new(),
            quoted: true,
        });
    }
}

fn literal(word: &mut Word, character: char, quoted: bool) {
    match word.last_mut() {
        Some(Piece::Literal { text, quoted: same }) if *same == quoted => text.push(character),
        _ => word.push(Piece::Literal {
            text: character.to_string(),
            quoted,
        }),
    }
}
