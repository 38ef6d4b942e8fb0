//! Runs named cases in order and sums them up.

use std::future::Future;
use std::time::Instant;

use anyhow::{Result, anyhow};

/// Counts of a run.
#[derive(Debug, Default)]
pub struct Runner {
    filter: Option<String>,
    passed: usize,
    failed: Vec<&'static str>,
    skipped: usize,
}

impl Runner {
    /// A runner of the cases whose names contain `filter`.
    pub fn new(filter: Option<String>) -> Self {
        Self {
            filter,
            ..Self::default()
        }
    }

    /// Whether a case of this name is wanted, for set-up that only it needs.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_deref().is_none_or(|filter| name.contains(filter))
    }

    /// Runs one case. A panic in it counts as a failure of that case alone.
    pub async fn case<F>(&mut self, name: &'static str, case: F)
    where
        F: Future<Output = Result<()>> + Send,
    {
        if !self.wants(name) {
            self.skipped += 1;
            return;
        }
        println!("  {name} ...");
        let started = Instant::now();
        let outcome = match futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(case)).await {
            Ok(outcome) => outcome,
            Err(panic) => Err(anyhow!("panicked: {}", panic_message(panic.as_ref()))),
        };
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("  {name}: ok ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed.push(name);
                println!("  {name}: FAILED ({seconds:.1} s)\n{}", indent(&format!("{error:#}")));
            }
        }
    }

    /// Prints the summary; whether every case passed.
    pub fn finish(self) -> bool {
        for name in &self.failed {
            println!("  failed: {name}");
        }
        println!(
            "\n{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped
        );
        self.failed.is_empty()
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is not a string")
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("      {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
