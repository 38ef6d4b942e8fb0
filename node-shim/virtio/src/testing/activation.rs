//! A device that its driver has activated, without a transport.

use std::sync::Arc;

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{DriverQueue, InterruptLog};
use crate::device::{Activation, ActiveQueue, DeviceError, FEATURE_EVENT_IDX, Memory, VirtioDevice};

/// An activation and the other ends of what is in it.
pub struct Activated {
    /// For the device.
    pub activation: Activation,
    /// What the device raises.
    pub interrupts: Arc<InterruptLog>,
    /// What the device waits for, or gives itself.
    pub kicks: Vec<EventFd>,
}

/// An activation with these features and queues. Queue n has vector n, and the configuration the next one.
///
/// # Panics
/// When the host has no descriptors left, or a queue is not aligned.
pub fn activation(memory: &Arc<Memory>, features: u64, queues: &[DriverQueue]) -> Activated {
    let interrupts = Arc::new(InterruptLog::default());
    let kicks: Vec<EventFd> = queues
        .iter()
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("an eventfd"))
        .collect();
    let active = (0_u16..).zip(queues).zip(&kicks).map(|((vector, driver), kick)| {
        let mut queue = driver.device_queue();
        queue.set_event_idx(features & FEATURE_EVENT_IDX != 0);
        Some(ActiveQueue {
            queue,
            kick: kick.try_clone().expect("an eventfd"),
            vector: Some(vector),
        })
    });
    let activation = Activation {
        memory: memory.clone(),
        features,
        queues: active.collect(),
        interrupts: interrupts.clone(),
        config_vector: u16::try_from(queues.len()).ok(),
    };
    Activated {
        activation,
        interrupts,
        kicks,
    }
}

/// Activates a device. Returns the interrupts and the kicks that the device may give itself.
///
/// # Errors
/// When the device refuses.
///
/// # Panics
/// As [`activation`].
pub fn activate(
    device: &mut dyn VirtioDevice,
    memory: &Arc<Memory>,
    features: u64,
    queues: &[DriverQueue],
) -> Result<(Arc<InterruptLog>, Vec<EventFd>), DeviceError> {
    let Activated {
        activation,
        interrupts,
        kicks,
    } = activation(memory, features, queues);
    device.activate(activation)?;
    Ok((interrupts, kicks))
}
