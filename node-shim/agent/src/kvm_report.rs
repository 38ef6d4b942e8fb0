//! What `node-agent serve` tells `node-agent device-plugin` about KVM: one JSON value in a line, whenever it changes.

use serde::{Deserialize, Serialize};

/// Longest line in bytes, without its end.
pub(crate) const MAX_LINE_BYTES: u64 = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether VMs can run on this node.
    pub(crate) kvm: Kvm,
}

/// Whether VMs can run on this node: `{"ok":true}` or `{"ok":false,"reason":"..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kvm {
    /// Whether they can.
    pub(crate) ok: bool,
    /// Why not; empty when they can.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
}

impl Report {
    /// The report for what a probe of KVM found.
    pub(crate) fn new(probe: Result<(), String>) -> Self {
        match probe {
            Ok(()) => Self {
                kvm: Kvm {
                    ok: true,
                    reason: String::new(),
                },
            },
            Err(reason) => Self {
                kvm: Kvm { ok: false, reason },
            },
        }
    }

    /// What the probe found.
    pub(crate) fn into_probe(self) -> Result<(), String> {
        if self.kvm.ok { Ok(()) } else { Err(self.kvm.reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_documented() {
        assert_eq!(
            serde_json::to_string(&Report::new(Ok(()))).unwrap(),
            r#"{"kvm":{"ok":true}}"#
        );
        let line = r#"{"kvm":{"ok":false,"reason":"no vmx"}}"#;
        assert_eq!(serde_json::to_string(&Report::new(Err("no vmx".into()))).unwrap(), line);
        assert_eq!(
            serde_json::from_str::<Report>(line).unwrap().into_probe(),
            Err("no vmx".into())
        );
    }
}
