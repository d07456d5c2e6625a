//! The embedded device, of which each thread that runs targets has one.

use rdmalib::{Device, DeviceSpec, Provider};

/// So that some payloads are sent inline, and some are not.
const INLINE: u32 = 64;

/// Does `what` with the device of this thread.
pub(crate) fn with_device<T>(what: impl FnOnce(&Device) -> T) -> T {
    thread_local!(static DEVICE: Device = open(INLINE));
    DEVICE.with(what)
}

/// Opens one, of which payloads up to `max_inline_data` bytes are sent inline.
pub(crate) fn open(max_inline_data: u32) -> Device {
    let spec = DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data,
    };
    Device::open(&spec).expect("every machine has the embedded device")
}
