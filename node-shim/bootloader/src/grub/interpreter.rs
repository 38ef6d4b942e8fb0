//! Runs scripts.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::environment::Variables;
use super::linux::Loaded;
use super::menu::MenuEntry;
use super::syntax::{self, Body, Piece, Statement, Word};
use super::{Platform, ScriptError, device};
use crate::files::{FileRef, Files, VolumeId, join, parent};
use crate::limits::Limits;
use crate::selection::Selection;

/// What runs after a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next one.
    Next,
    /// What is after so many loops.
    Break(u32),
    /// The next turn, after so many loops were left.
    Continue(u32),
    /// What is after the function or file.
    Return,
    /// Nothing: the script is done, with an entry chosen or not.
    End,
}

/// Variables that say what this GRUB can do, as GRUB 2.12 sets them.
const FEATURES: [&str; 7] = [
    "feature_200_final",
    "feature_all_video_module",
    "feature_chainloader_bpb",
    "feature_default_font_path",
    "feature_menuentry_id",
    "feature_platform_search_hint",
    "feature_timeout_style",
];

/// Bytes of words that cost as much as a statement.
const STEP_BYTES: usize = 256;

/// A script's world.
pub(super) struct Interpreter<'files> {
    pub(super) files: &'files dyn Files,
    pub(super) limits: &'files Limits,
    pub(super) variables: Variables,
    functions: BTreeMap<String, Body>,
    /// `$1` and so on.
    pub(super) arguments: Vec<String>,
    pub(super) menu: Vec<Rc<MenuEntry>>,
    menu_entries: usize,
    /// What `linux`, `initrd` and `chainloader` have loaded.
    pub(super) loaded: Loaded,
    /// What a menu within the script has come to.
    pub(super) chosen: Option<(FileRef, Selection)>,
    /// The file that is run.
    pub(super) configuration: FileRef,
    /// Whether the last command succeeded.
    pub(super) succeeded: bool,
    /// What went wrong, as GRUB would show it.
    pub(super) complaint: Option<Complaint>,
    steps: u32,
    depth: u32,
}

impl<'files> Interpreter<'files> {
    pub(super) fn new(
        files: &'files dyn Files,
        limits: &'files Limits,
        volume: VolumeId,
        prefix: &str,
        platform: Platform,
    ) -> Self {
        let mut interpreter = Self {
            files,
            limits,
            variables: Variables::default(),
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            menu: Vec::new(),
            menu_entries: 0,
            loaded: Loaded::default(),
            chosen: None,
            configuration: FileRef {
                volume,
                path: prefix.to_owned(),
            },
            succeeded: true,
            complaint: None,
            steps: 0,
            depth: 0,
        };
        let device = files.volume(volume).map(device::name).unwrap_or_default();
        let (name, cpu) = match platform {
            Platform::Efi => ("efi", "x86_64"),
            Platform::Pc => ("pc", "i386"),
        };
        let prefix = format!("({device}){prefix}");
        let fixed = [
            ("grub_platform", name),
            ("grub_cpu", cpu),
            ("prefix", &prefix),
            ("cmdpath", &prefix),
            ("root", &device),
        ];
        for (name, value) in fixed.into_iter().chain(FEATURES.map(|feature| (feature, "y"))) {
            // They are short.
            let _ = interpreter.set(name, value);
        }
        interpreter
    }

    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), ScriptError> {
        self.variables.set(name, value, self.limits.script_bytes)
    }

    /// Does something that may come back to itself, so deep at most.
    pub(super) fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        let outer = self.depth;
        self.depth += 1;
        let result = if self.depth > self.limits.script_nesting {
            Err(ScriptError::TooDeep(self.limits.script_nesting).to_string())
        } else {
            run(self)
        };
        self.depth = outer;
        result
    }

    /// Runs a configuration with a menu of its own and boots its default entry.
    pub(super) fn boot(&mut self, configuration: &FileRef) -> Result<(FileRef, Selection), String> {
        let outer = (std::mem::take(&mut self.menu), self.configuration.clone());
        let result = self.run_and_choose(configuration);
        (self.menu, self.configuration) = outer;
        result
    }

    fn run_and_choose(&mut self, configuration: &FileRef) -> Result<(FileRef, Selection), String> {
        let device = self
            .files
            .volume(configuration.volume)
            .map(device::name)
            .unwrap_or_default();
        let path = format!("({device}){}", configuration.path);
        let named = |error: ScriptError| format!("{}: {error}", configuration.path);
        self.set("config_file", &path).map_err(named)?;
        self.set("config_directory", parent(&path)).map_err(named)?;
        let found = self.run_file(configuration).map_err(named)?;
        if found.is_none() {
            return Err(format!("{} cannot be read", configuration.path));
        }
        if let Some(chosen) = self.chosen.take() {
            return Ok(chosen);
        }
        self.boot_menu()
    }

    /// Runs a file in the present world. `None` where it does not exist.
    pub(super) fn run_file(&mut self, file: &FileRef) -> Result<Option<Flow>, ScriptError> {
        let Some(text) = self.files.text(file.volume, &file.path, self.limits) else {
            return Ok(None);
        };
        let body = syntax::parse(&text, self.limits)?;
        let outer = std::mem::replace(&mut self.configuration, file.clone());
        let flow = self.run(&body);
        self.configuration = outer;
        Ok(Some(match flow? {
            Flow::End => Flow::End,
            Flow::Next | Flow::Return | Flow::Break(_) | Flow::Continue(_) => Flow::Next,
        }))
    }

    pub(super) fn run(&mut self, body: &Body) -> Result<Flow, ScriptError> {
        self.depth += 1;
        if self.depth > self.limits.script_nesting {
            return Err(ScriptError::TooDeep(self.limits.script_nesting));
        }
        let mut flow = Flow::Next;
        for statement in body.iter() {
            flow = self.statement(statement)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(flow)
    }

    fn step(&mut self) -> Result<(), ScriptError> {
        self.steps(1)
    }

    fn steps(&mut self, steps: u32) -> Result<(), ScriptError> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > self.limits.script_steps {
            return Err(ScriptError::TooLong(self.limits.script_steps));
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow, ScriptError> {
        self.step()?;
        match statement {
            Statement::Command { words, block } => {
                let words = self.expand(words)?;
                self.command(&words, block.as_ref())
            }
            Statement::Not(inner) => {
                let flow = self.statement(inner)?;
                self.succeeded = !self.succeeded;
                Ok(flow)
            }
            Statement::If { arms, otherwise } => self.conditional(arms, otherwise),
            Statement::Loop {
                wanted,
                condition,
                body,
            } => {
                loop {
                    self.step()?;
                    let flow = self.run(condition)?;
                    if flow != Flow::Next {
                        return Ok(flow);
                    }
                    if self.succeeded != *wanted {
                        break;
                    }
                    if let Some(flow) = after_turn(self.run(body)?) {
                        return Ok(flow);
                    }
                }
                self.succeeded = true;
                Ok(Flow::Next)
            }
            Statement::For { variable, words, body } => {
                for value in self.expand(words)? {
                    self.step()?;
                    self.set(variable, &value)?;
                    if let Some(flow) = after_turn(self.run(body)?) {
                        return Ok(flow);
                    }
                }
                Ok(Flow::Next)
            }
            Statement::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                self.succeeded = true;
                Ok(Flow::Next)
            }
        }
    }

    fn conditional(&mut self, arms: &[(Body, Body)], otherwise: &Body) -> Result<Flow, ScriptError> {
        for (condition, body) in arms {
            let flow = self.run(condition)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
            if self.succeeded {
                return self.run(body);
            }
        }
        self.succeeded = true;
        self.run(otherwise)
    }

    fn command(&mut self, words: &[String], block: Option<&Body>) -> Result<Flow, ScriptError> {
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Flow::Next);
        };
        if let Some(body) = self.functions.get(name).cloned() {
            let outer = std::mem::replace(&mut self.arguments, arguments.to_vec());
            let flow = self.run(&body);
            self.arguments = outer;
            let flow = flow?;
            return Ok(if flow == Flow::Return { Flow::Next } else { flow });
        }
        self.builtin(name, arguments, block)
    }

    /// Adds an entry to the menu.
    pub(super) fn add_entry(&mut self, entry: MenuEntry) -> Result<(), ScriptError> {
        self.menu_entries += 1;
        if self.menu_entries > self.limits.entries {
            return Err(ScriptError::TooLarge("menu entries"));
        }
        self.menu.push(Rc::new(entry));
        Ok(())
    }

    /// Replaces variables and splits what they stood for into words.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, ScriptError> {
        let mut expanded = Expansion {
            words: Vec::new(),
            current: None,
            bytes_left: self.limits.script_bytes,
        };
        for word in words {
            for piece in word {
                match piece {
                    Piece::Literal { text, .. } => expanded.push(text)?,
                    Piece::Variable { name, quoted } => self.expand_variable(name, *quoted, &mut expanded)?,
                }
            }
            expanded.end_word()?;
        }
        let bytes = self.limits.script_bytes - expanded.bytes_left;
        self.steps(u32::try_from(bytes / STEP_BYTES).unwrap_or(u32::MAX))?;
        Ok(expanded.words)
    }

    fn expand_variable(&self, name: &str, quoted: bool, expanded: &mut Expansion) -> Result<(), ScriptError> {
        if name == "@" || name == "*" && !quoted {
            for (index, argument) in self.arguments.iter().enumerate() {
                if index > 0 {
                    expanded.end_word()?;
                }
                expanded.push(argument)?;
            }
            return Ok(());
        }
        let value = self.value(name);
        if quoted {
            return expanded.push(&value);
        }
        if value.starts_with(char::is_whitespace) {
            expanded.end_word()?;
        }
        for (index, part) in value.split_whitespace().enumerate() {
            if index > 0 {
                expanded.end_word()?;
            }
            expanded.push(part)?;
        }
        if value.ends_with(char::is_whitespace) {
            expanded.end_word()?;
        }
        Ok(())
    }

    fn value(&self, name: &str) -> String {
        match name {
            "?" => i32::from(!self.succeeded).to_string(),
            "#" => self.arguments.len().to_string(),
            "*" => self.arguments.join(" "),
            name => match name.parse::<usize>() {
                Ok(0) => String::new(),
                Ok(number) => self.arguments.get(number - 1).cloned().unwrap_or_default(),
                Err(_) => self.variables.get(name).to_owned(),
            },
        }
    }

    /// The file that a name means: `(device)/path`, or a path on `$root`.
    pub(super) fn file(&self, name: &str) -> Option<FileRef> {
        let (device, path) = device::split(name);
        let device = device.unwrap_or_else(|| self.variables.get("root"));
        if !path.starts_with('/') {
            return None;
        }
        Some(FileRef {
            volume: device::find(self.files, device)?,
            path: join("/", path),
        })
    }

    /// A command failed: the script goes on.
    pub(super) fn fail(&mut self, why: impl Into<String>) {
        self.succeeded = false;
        if self.complaint.as_ref().is_none_or(|complaint| !complaint.decides) {
            self.complaint = Some(Complaint {
                why: why.into(),
                decides: false,
            });
        }
    }

    /// A command failed without which nothing starts: the first of these is what matters.
    pub(super) fn fail_to_load(&mut self, why: impl Into<String>) {
        self.fail(why);
        if let Some(complaint) = &mut self.complaint {
            complaint.decides = true;
        }
    }

    /// What went wrong, once.
    pub(super) fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take().map(|complaint| complaint.why)
    }
}

/// What went wrong.
#[derive(Clone, Debug)]
pub(super) struct Complaint {
    why: String,
    /// Whether it is why nothing starts.
    decides: bool,
}

/// What a loop does after a turn: `None` for another one.
fn after_turn(flow: Flow) -> Option<Flow> {
    match flow {
        Flow::Next | Flow::Continue(0 | 1) => None,
        Flow::Continue(loops) => Some(Flow::Continue(loops - 1)),
        Flow::Break(0 | 1) => Some(Flow::Next),
        Flow::Break(loops) => Some(Flow::Break(loops - 1)),
        Flow::Return => Some(Flow::Return),
        Flow::End => Some(Flow::End),
    }
}

struct Expansion {
    words: Vec<String>,
    current: Option<String>,
    bytes_left: usize,
}

impl Expansion {
    fn spend(&mut self, bytes: usize) -> Result<(), ScriptError> {
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes)
            .ok_or(ScriptError::TooLarge("words"))?;
        Ok(())
    }

    fn push(&mut self, text: &str) -> Result<(), ScriptError> {
        self.spend(text.len())?;
        self.current.get_or_insert_default().push_str(text);
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), ScriptError> {
        if let Some(word) = self.current.take() {
            self.spend(1)?;
            self.words.push(word);
        }
        Ok(())
    }
}
