//! What may be in requests and responses: their formats alone do not say.

use super::{
    ARGUMENTS_MAX, EXEC_MAX_MS, EXPLANATION_MAX_BYTES, Exec, FREEZE_MAX_MS, Freeze, Info, Interface, LIST_MAX,
    OUTPUT_MAX_BYTES, Os, Pong, Request, Response, TEXT_MAX_BYTES, VARIABLES_MAX,
};

/// Something in a message that may not be there: one sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess(pub String);

impl std::fmt::Display for Excess {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Excess {}

/// As much of a text as `max_bytes` hold, with `?` for every control character: it can be printed as one line on any terminal.
pub fn printable(text: &str, max_bytes: usize) -> String {
    let mut line = String::new();
    for character in text.trim().chars() {
        let character = if is_hostile(character) { '?' } else { character };
        if line.len() + character.len_utf8() > max_bytes {
            break;
        }
        line.push(character);
    }
    line
}

/// Control characters, and those that change the direction in which others are shown (Unicode's `Bidi_Control`).
fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), Excess> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Excess(format!("{name} is {value}; write {least} to {most}")))
}

fn count(name: &str, count: usize, most: usize) -> Result<(), Excess> {
    within(name, count as u64, 0, most as u64)
}

fn no_nul(name: &str, text: &str) -> Result<(), Excess> {
    if text.contains('\0') {
        return Err(Excess(format!(
            "{name} has a byte 0, which no program can be given; leave it out"
        )));
    }
    Ok(())
}

/// A text of the guest's, of one line.
fn text(name: &str, text: &str, max_bytes: usize) -> Result<(), Excess> {
    count(&format!("the length of {name}"), text.len(), max_bytes)?;
    if text.chars().any(is_hostile) {
        return Err(Excess(format!("{name} has control characters: {text:?}")));
    }
    Ok(())
}

impl Request {
    /// Whether everything is within its bounds.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), Excess> {
        match self {
            Self::Ping | Self::Info | Self::Shutdown(_) | Self::Thaw | Self::Online => Ok(()),
            Self::Exec(exec) => check_exec(exec),
            Self::Freeze(Freeze { timeout_ms }) => within("timeoutMs", *timeout_ms, 1, FREEZE_MAX_MS),
        }
    }
}

fn check_exec(exec: &Exec) -> Result<(), Excess> {
    let Exec {
        command,
        environment,
        directory,
        stdin: _,
        timeout_ms,
        output_limit_bytes,
    } = exec;
    within(
        "the number of words of the command",
        command.len() as u64,
        1,
        ARGUMENTS_MAX as u64,
    )?;
    if command.first().is_some_and(String::is_empty) {
        return Err(Excess(
            "the command's name is empty; write a program's name or path".into(),
        ));
    }
    for word in command {
        no_nul("a word of the command", word)?;
    }
    count("the number of variables", environment.len(), VARIABLES_MAX)?;
    for (name, value) in environment {
        if name.is_empty() || name.contains('=') {
            return Err(Excess(format!(
                "a variable cannot have the name {name:?}; write NAME=VALUE"
            )));
        }
        no_nul("a variable's name", name)?;
        no_nul("a variable's value", value)?;
    }
    if let Some(directory) = directory {
        no_nul("the directory", directory)?;
    }
    within("timeoutMs", *timeout_ms, 1, EXEC_MAX_MS)?;
    within("outputLimitBytes", *output_limit_bytes, 0, OUTPUT_MAX_BYTES)
}

impl Response {
    /// Whether everything is within its bounds.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), Excess> {
        match self {
            Self::Done | Self::Exited(_) | Self::Thawed(_) | Self::Online(_) => Ok(()),
            Self::Pong(pong) => check_pong(pong),
            Self::Info(info) => check_info(info),
            Self::Frozen(frozen) => {
                count(
                    "the number of file systems that were skipped",
                    frozen.skipped.len(),
                    LIST_MAX,
                )?;
                let mut skipped = frozen.skipped.iter();
                skipped.try_for_each(|mount| text("a mount point", mount, TEXT_MAX_BYTES))
            }
            Self::Error(failure) => text("the explanation", &failure.message, EXPLANATION_MAX_BYTES),
        }
    }
}

fn check_pong(pong: &Pong) -> Result<(), Excess> {
    let Pong {
        protocol: _,
        agent,
        capabilities,
        frozen: _,
    } = pong;
    text("the agent's version", agent, TEXT_MAX_BYTES)?;
    count("the number of capabilities", capabilities.len(), LIST_MAX)?;
    let mut capabilities = capabilities.iter();
    capabilities.try_for_each(|capability| text("a capability", capability, TEXT_MAX_BYTES))
}

fn check_info(info: &Info) -> Result<(), Excess> {
    let Info {
        hostname,
        kernel,
        os: Os { id, version, name },
        boot_id,
        interfaces,
        interfaces_omitted: _,
        cpus: _,
        memory_bytes: _,
        memory_available_bytes: _,
    } = info;
    let texts = [
        ("the host name", hostname),
        ("the kernel's release", kernel),
        ("the distribution", id),
        ("the distribution's version", version),
        ("the distribution's name", name),
        ("the boot id", boot_id),
    ];
    for (name, value) in texts {
        text(name, value, TEXT_MAX_BYTES)?;
    }
    count("the number of interfaces", interfaces.len(), LIST_MAX)?;
    for Interface { name, mac, addresses } in interfaces {
        text("an interface's name", name, TEXT_MAX_BYTES)?;
        text("an interface's hardware address", mac, TEXT_MAX_BYTES)?;
        count("the number of an interface's addresses", addresses.len(), LIST_MAX)?;
        for address in addresses {
            let most = if address.address.is_ipv4() { 32 } else { 128 };
            within(
                "the length of a network's prefix",
                address.prefix_length.into(),
                0,
                most,
            )?;
        }
    }
    Ok(())
}
