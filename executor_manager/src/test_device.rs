//! The embedded device, for unit tests.

use rdmalib::{Device, DeviceSpec, Provider};

/// Opens it in this process.
pub fn device() -> Device {
    let spec = DeviceSpec {
        name: "shm0".into(),
        provider: Provider::Shm,
        ip_address: [127, 0, 0, 1].into(),
        max_inline_data: 0,
    };
    Device::open(&spec).expect("the embedded device needs no more than memory")
}
