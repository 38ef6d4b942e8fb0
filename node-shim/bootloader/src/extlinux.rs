//! What EXTLINUX or SYSLINUX would start: the Syslinux Project's "SYSLINUX" documentation, configuration file.

use crate::files::{FileRef, Files, VolumeId, join, parent};
use crate::limits::Limits;
use crate::selection::Selection;

/// How deep files include others.
const INCLUDES_MAX: u32 = 8;

#[derive(Clone, Debug, Default)]
struct Label {
    name: String,
    title: Option<String>,
    kernel: Option<String>,
    initrds: Vec<String>,
    append: Option<String>,
    default: bool,
}

#[derive(Clone, Debug, Default)]
struct Configuration {
    default: Option<String>,
    on_timeout: Option<String>,
    append: Option<String>,
    labels: Vec<Label>,
}

/// Reads `path` and says what its default label starts.
///
/// # Errors
/// Says what is missing in the configuration.
pub fn select(files: &dyn Files, volume: VolumeId, path: &str, limits: &Limits) -> Result<Selection, String> {
    let text = files
        .text(volume, path, limits)
        .ok_or_else(|| format!("{path} cannot be read"))?;
    let mut configuration = Configuration::default();
    let mut lines_left = limits.script_steps;
    let place = Place {
        files,
        volume,
        directory: parent(path),
        limits,
    };
    read(&place, &text, 0, &mut lines_left, &mut configuration)?;
    choose(&configuration, volume, parent(path), limits)
}

struct Place<'files> {
    files: &'files dyn Files,
    volume: VolumeId,
    directory: &'files str,
    limits: &'files Limits,
}

fn read(
    place: &Place<'_>,
    text: &str,
    depth: u32,
    lines_left: &mut u32,
    configuration: &mut Configuration,
) -> Result<(), String> {
    for line in text.lines().map(str::trim) {
        *lines_left = lines_left.checked_sub(1).ok_or("the configuration is too long")?;
        let (keyword, value) = split(line);
        match keyword.to_ascii_lowercase().as_str() {
            "include" => include(place, value, depth, lines_left, configuration)?,
            "menu" => {
                let (menu_keyword, value) = split(value);
                match (
                    menu_keyword.to_ascii_lowercase().as_str(),
                    configuration.labels.last_mut(),
                ) {
                    ("include", _) => include(place, split(value).0, depth, lines_left, configuration)?,
                    ("default", Some(label)) => label.default = true,
                    ("label", Some(label)) => label.title = Some(value.replace('^', "")),
                    _ => {}
                }
            }
            "default" => configuration.default = Some(value.to_owned()),
            "ontimeout" => configuration.on_timeout = Some(value.to_owned()),
            "label" => {
                if configuration.labels.len() == place.limits.entries {
                    return Err("the configuration has too many labels".to_owned());
                }
                configuration.labels.push(Label {
                    name: value.to_owned(),
                    ..Label::default()
                });
            }
            other => set(configuration, other, value, place.limits)?,
        }
    }
    Ok(())
}

fn include(
    place: &Place<'_>,
    name: &str,
    depth: u32,
    lines_left: &mut u32,
    configuration: &mut Configuration,
) -> Result<(), String> {
    if depth == INCLUDES_MAX {
        return Err("files include each other too deeply".to_owned());
    }
    // A file that is missing is passed over, as SYSLINUX does.
    match place
        .files
        .text(place.volume, &join(place.directory, name), place.limits)
    {
        Some(text) => read(place, &text, depth + 1, lines_left, configuration),
        None => Ok(()),
    }
}

fn set(configuration: &mut Configuration, keyword: &str, value: &str, limits: &Limits) -> Result<(), String> {
    match (keyword, configuration.labels.last_mut()) {
        ("append", Some(label)) => label.append = Some(value.to_owned()),
        ("append", None) => configuration.append = Some(value.to_owned()),
        ("kernel" | "linux", Some(label)) => label.kernel = Some(value.to_owned()),
        ("initrd", Some(label)) => {
            label.initrds = value.split(',').map(|path| path.trim().to_owned()).collect();
            if label.initrds.len() > limits.initrds {
                return Err(format!("label {} has too many initrds", label.name));
            }
        }
        _ => {}
    }
    Ok(())
}

fn split(line: &str) -> (&str, &str) {
    let (keyword, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    (keyword, value.trim())
}

fn choose(
    configuration: &Configuration,
    volume: VolumeId,
    directory: &str,
    limits: &Limits,
) -> Result<Selection, String> {
    let named = |name: &str| {
        let name = split(name).0;
        configuration
            .labels
            .iter()
            .find(|label| label.name.eq_ignore_ascii_case(name))
    };
    let label = configuration
        .labels
        .iter()
        .find(|label| label.default)
        .or_else(|| configuration.on_timeout.as_deref().and_then(named))
        .or_else(|| configuration.default.as_deref().and_then(named))
        .or_else(|| configuration.labels.iter().find(|label| label.kernel.is_some()))
        .ok_or("the configuration has no label with a kernel")?;
    let kernel = label
        .kernel
        .as_deref()
        .ok_or_else(|| format!("label {} has no kernel", label.name))?;
    let on_volume = |path: &str| FileRef {
        volume,
        path: join(directory, path),
    };
    // `APPEND -` in a label means nothing, not even what all labels have.
    let append = label
        .append
        .as_deref()
        .or(configuration.append.as_deref())
        .unwrap_or("");
    let append = if append == "-" { "" } else { append };
    let mut initrds = label.initrds.clone();
    let mut words = vec![format!("BOOT_IMAGE={kernel}")];
    for word in append.split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(paths) if initrds.is_empty() => initrds.extend(paths.split(',').map(str::to_owned)),
            Some(_) => {}
            None => words.push(word.to_owned()),
        }
    }
    if initrds.len() > limits.initrds {
        return Err(format!("label {} has too many initrds", label.name));
    }
    Ok(Selection {
        title: label.title.clone().or_else(|| Some(label.name.clone())),
        kernel: on_volume(kernel),
        initrds: initrds.iter().map(|path| on_volume(path)).collect(),
        command_line: Some(words.join(" ")),
    })
}

#[cfg(test)]
mod tests;
