//! What the API server wrote into its audit log: the writes that one VM cost.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

/// One write.
#[derive(Debug)]
pub struct Write {
    /// Who: a user name.
    pub user: String,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// `pods`, `virtualmachines/status` and so on.
    pub resource: String,
}

impl Write {
    /// Whether a part of Tandem did it. The nodes of a cluster that is called `tandem` are users with that in their names, too.
    pub fn is_tandems(&self) -> bool {
        self.user.starts_with("system:serviceaccount:tandem-system:tandem-")
    }
}

/// Path of the audit log of a cluster made by `hack/up`.
///
/// # Errors
/// When there is no home directory.
pub fn log_of(cluster: &str) -> Result<PathBuf> {
    let cache = match std::env::var_os("TANDEM_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/tandem"),
    };
    Ok(cache.join("clusters").join(cluster).join("audit.log"))
}

/// The successful writes of objects called `name` in `namespace`, events apart, in order.
///
/// # Errors
/// When the log cannot be read.
pub async fn writes_of(cluster: &str, namespace: &str, name: &str) -> Result<Vec<Write>> {
    let path = log_of(cluster)?;
    let log = tokio::fs::read_to_string(&path)
        .await
        .with_context(|| format!("cannot read {}", path.display()))?;
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(entries.filter_map(|entry| write(&entry, namespace, name)).collect())
}

fn write(entry: &Value, namespace: &str, name: &str) -> Option<Write> {
    let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str);
    let verb = text("/verb")?;
    let object = &entry["objectRef"];
    let done =
        entry["stage"] == "ResponseComplete" && entry["responseStatus"]["code"].as_u64().is_some_and(|code| code < 400);
    let ours = object["namespace"] == namespace && (object["name"] == name || object["name"].is_null());
    let counted = ["create", "update", "patch", "delete"].contains(&verb) && object["resource"] != "events";
    if !(done && ours && counted) {
        return None;
    }
    let resource = object["resource"].as_str()?;
    let resource = object["subresource"]
        .as_str()
        .map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}"));
    Some(Write {
        user: text("/user/username")?.to_owned(),
        verb: verb.to_owned(),
        resource,
    })
}
