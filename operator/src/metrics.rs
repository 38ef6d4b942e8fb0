//! Prometheus metrics.

use std::{collections::BTreeMap, fmt::Error, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Upper bounds of the duration histogram in seconds.
const DURATION_BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Every metric of the operator.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    reconciliations: Family<ResultLabel, Counter>,
    duration_seconds: Histogram,
    virtual_machines: Family<StatusLabel, Gauge>,
    leader: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: ReconcileResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ReconcileResult {
    Success,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: String,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tandem_operator");
        let metrics = Self {
            registry: Arc::default(),
            reconciliations: Family::default(),
            duration_seconds: Histogram::new(DURATION_BUCKETS),
            virtual_machines: Family::default(),
            leader: Gauge::default(),
        };
        registry.register(
            "reconciliations",
            "Reconciliations of VirtualMachines",
            metrics.reconciliations.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "Time that one reconciliation takes",
            metrics.duration_seconds.clone(),
        );
        registry.register(
            "virtual_machines",
            "VirtualMachines by the word in their status",
            metrics.virtual_machines.clone(),
        );
        registry.register("leader", "1 while this replica holds the lease", metrics.leader.clone());
        Self {
            registry: Arc::new(registry),
            ..metrics
        }
    }

    /// Counts one reconciliation.
    pub(crate) fn reconciled(&self, succeeded: bool, duration: Duration) {
        let result = if succeeded {
            ReconcileResult::Success
        } else {
            ReconcileResult::Error
        };
        self.reconciliations.get_or_create(&ResultLabel { result }).inc();
        self.duration_seconds.observe(duration.as_secs_f64());
    }

    /// Whether this replica leads.
    pub(crate) fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Sets the number of VMs of each status.
    pub(crate) fn set_virtual_machines(&self, counts: &BTreeMap<String, i64>) {
        self.virtual_machines.clear();
        for (status, count) in counts {
            self.virtual_machines
                .get_or_create(&StatusLabel { status: status.clone() })
                .set(*count);
        }
    }

    /// All metrics in the `OpenMetrics` text format.
    pub(crate) fn text(&self) -> Result<String, Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
