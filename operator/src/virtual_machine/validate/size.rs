//! CPUs and memory.

use std::ops::RangeInclusive;

use crds::{
    Quantity,
    cpu::{Cpu, MAX_CORES},
    memory::{self, HugePages, Memory},
};

use super::Invalid;

/// CPUs and memory of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValidSize {
    pub(crate) cores: u32,
    /// At least `cores`.
    pub(crate) max_cores: u32,
    /// CPU time that the pod asks for, in thousandths of a CPU, where the spec says it.
    pub(crate) cpu_request_millis: Option<u64>,
    /// The guest's CPUs are nobody else's.
    pub(crate) dedicated: bool,
    pub(crate) memory_bytes: u64,
    /// At least `memory_bytes`.
    pub(crate) max_memory_bytes: u64,
    pub(crate) huge_pages: Option<HugePages>,
}

/// Checks CPUs and memory.
pub(super) fn size(cpu: Option<&Cpu>, memory: Option<&Memory>) -> Result<ValidSize, Invalid> {
    let (Some(cpu), Some(memory)) = (cpu, memory) else {
        return Err(Invalid::NoSize);
    };
    let cores = cores("spec.cpu.cores", cpu.cores, 1)?;
    let memory_bytes = memory_size("spec.memory.size", &memory.size, memory::MIN_BYTES)?;
    let max_memory_bytes = match &memory.max_size {
        Some(max) => memory_size("spec.memory.maxSize", max, memory_bytes)?,
        None => memory_bytes,
    };
    let step = memory.huge_pages.map_or(1, HugePages::bytes);
    let plug_step = if memory.max_size.is_some() {
        memory::PLUG_STEP_BYTES
    } else {
        1
    };
    for bytes in [memory_bytes, max_memory_bytes] {
        if bytes % step.max(plug_step) != 0 {
            return Err(Invalid::MemoryStep(step.max(plug_step) >> 20));
        }
    }
    Ok(ValidSize {
        cores,
        max_cores: cpu
            .max_cores
            .map_or(Ok(cores), |max| self::cores("spec.cpu.maxCores", max, cores))?,
        cpu_request_millis: cpu.request.as_ref().map(cpu_request).transpose()?,
        dedicated: dedicated(cpu)?,
        memory_bytes,
        max_memory_bytes,
        huge_pages: memory.huge_pages,
    })
}

fn cores(field: &'static str, cores: i32, least: u32) -> Result<u32, Invalid> {
    let max = MAX_CORES.unsigned_abs();
    u32::try_from(cores)
        .ok()
        .filter(|cores| (least..=max).contains(cores))
        .ok_or(Invalid::Cores {
            field,
            cores,
            least,
            max,
        })
}

fn dedicated(cpu: &Cpu) -> Result<bool, Invalid> {
    if cpu.is_dedicated() && (cpu.request.is_some() || cpu.max_cores.is_some()) {
        return Err(Invalid::Dedicated);
    }
    Ok(cpu.is_dedicated())
}

fn cpu_request(request: &Quantity) -> Result<u64, Invalid> {
    let millis = request.millis().ok().filter(|millis| *millis > 0);
    millis.ok_or_else(|| Invalid::Size {
        field: "spec.cpu.request".to_owned(),
        value: request.0.clone(),
        expected: "CPU time in CPUs, for example 500m or 2",
    })
}

fn memory_size(field: &str, quantity: &Quantity, least: u64) -> Result<u64, Invalid> {
    bytes(
        field,
        quantity,
        least..=memory::MAX_BYTES,
        memory::STEP_BYTES,
        "a whole number of MiB from 32Mi to 512Gi, for example 512Mi; and maxSize not below size",
    )
}

/// A quantity of bytes in a range.
pub(super) fn bytes(
    field: &str,
    quantity: &Quantity,
    range: RangeInclusive<u64>,
    step: u64,
    expected: &'static str,
) -> Result<u64, Invalid> {
    let bytes = quantity
        .bytes()
        .ok()
        .filter(|bytes| range.contains(bytes) && bytes % step == 0);
    bytes.ok_or_else(|| Invalid::Size {
        field: field.to_owned(),
        value: quantity.0.clone(),
        expected,
    })
}
