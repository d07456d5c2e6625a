//! Opening a device, and what all that is made from it needs of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;

use super::cm::{CmId, EventChannel};
use super::engine::EngineHandle;
use super::library::{Library, library};
use super::objects::{
    Context, ProtectionDomain, RawCompletionQueue, RawQueuePair, Sizes, load_drivers,
};
use crate::types::{DeviceSpec, Error, Limits, Provider, Result};

/// Reads and atomics that one connection may have outstanding, at most: what common cards offer.
const MAX_READS: i32 = 16;

/// An open device.
#[derive(Debug)]
pub(super) struct OpenDevice {
    name: String,
    pub(super) address: IpAddr,
    pub(super) port: u8,
    pub(super) limits: Limits,
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    pub(super) engine: Arc<EngineHandle>,
    pub(super) context: Arc<Context>,
}

/// Loads the libraries and the drivers of this machine's devices.
pub(crate) fn prepare() -> Result<(), String> {
    load_drivers(library()?).map_err(|error| format!("ibv_get_device_list failed: {error}"))
}

fn unavailable(name: &str, reason: impl Into<String>) -> Error {
    Error::DeviceUnavailable {
        device: name.into(),
        provider: Provider::Verbs,
        reason: reason.into(),
    }
}

impl OpenDevice {
    /// Opens the device that `spec` describes.
    pub(super) fn new(spec: &DeviceSpec) -> Result<Self> {
        let unavailable = |reason: String| unavailable(&spec.name, reason);
        let library = library().map_err(unavailable)?;
        let context = Arc::new(open_context(library, &spec.name).map_err(unavailable)?);
        if !context.is_infiniband() {
            return Err(unavailable("iWARP has no write with immediate data".into()));
        }
        let port = port_of(library, spec).map_err(unavailable)?;
        let attributes = context.attributes()?;
        let limit = |value: i32| u32::try_from(value).unwrap_or(0);
        let reads = |value: i32| value.clamp(0, MAX_READS) as u8;
        let max_inline_data = inline_limit(&context, spec.max_inline_data)?;
        Ok(OpenDevice {
            name: spec.name.clone(),
            address: spec.ip_address,
            port,
            limits: Limits {
                max_inline_data,
                max_queue_depth: limit(attributes.max_qp_wr),
                max_completion_entries: limit(attributes.max_cqe),
            },
            responder_resources: reads(attributes.max_qp_rd_atom),
            initiator_depth: reads(attributes.max_qp_init_rd_atom),
            engine: Arc::new(EngineHandle::start(context.clone(), &spec.name)?),
            context,
        })
    }

    pub(super) fn unavailable(&self, reason: &str) -> Error {
        unavailable(&self.name, reason)
    }

    pub(super) fn event_channel(&self) -> Result<Arc<EventChannel>> {
        let channel = EventChannel::new(self.context.library);
        channel.map(Arc::new).map_err(|e| Error::os("rdma_create_event_channel", e))
    }
}

fn open_context(library: &'static Library, name: &str) -> Result<Context, String> {
    match Context::open(library, name) {
        Ok(Ok(context)) => Ok(context),
        Ok(Err(names)) if names.is_empty() => Err(NO_DEVICES.into()),
        Ok(Err(names)) => {
            Err(format!("this machine has no device of this name, it has {}", names.join(", ")))
        }
        // No RDMA in the kernel.
        Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOSYS) => {
            Err(NO_DEVICES.into())
        }
        Err(error) => Err(format!(
            "ibv_open_device failed ({error}); check that this user may read and write \
             /dev/infiniband/uverbs*"
        )),
    }
}

const NO_DEVICES: &str = "this machine has no RDMA devices (ibv_devices lists them); load the \
                          device's kernel modules and ib_uverbs, or use a device with \
                          \"provider\": \"shm\"";

/// The device's port that has the address of `spec`.
fn port_of(library: &'static Library, spec: &DeviceSpec) -> Result<u8, String> {
    let address = spec.ip_address;
    let channel = EventChannel::new(library).map_err(|error| {
        format!(
            "the connection manager cannot be used ({error}); modprobe rdma_ucm, and check the \
                 permissions of /dev/infiniband/rdma_cm"
        )
    })?;
    let mut id = CmId::new(&Arc::new(channel)).map_err(|error| error.to_string())?;
    let fix = "set its \"ip_address\" to that of its network interface (ip addr shows it)";
    id.bind(SocketAddr::new(address, 0)).map_err(|error| {
        format!("no RDMA device of this machine has the address {address} ({error}); {fix}")
    })?;
    match id.device() {
        Some((name, port)) if name == spec.name => Ok(port),
        Some((name, _)) => Err(format!("the address {address} belongs to {name}; {fix}")),
        None => Err(format!("the address {address} belongs to no one device; {fix}")),
    }
}

/// The largest inline payload up to `wanted` that the device gives a queue pair: only making some
/// tells (ibv_create_qp(3)).
fn inline_limit(context: &Arc<Context>, wanted: u32) -> Result<u32> {
    let domain = Arc::new(ProtectionDomain::new(context)?);
    let queue = Arc::new(RawCompletionQueue::new(context, 2)?);
    let make = |max_inline_data| {
        let sizes = Sizes { send_depth: 1, receive_depth: 1, max_inline_data };
        RawQueuePair::new(&domain, &queue, &queue, sizes)
    };
    if make(wanted).is_ok() {
        return Ok(wanted);
    }
    make(0)?; // or it is not for the inline data that the device makes none
    let (mut works, mut fails) = (0, wanted);
    while fails - works > 1 {
        let middle = works.midpoint(fails);
        if make(middle).is_ok() {
            works = middle;
        } else {
            fails = middle;
        }
    }
    Ok(works)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unlike in a test of the device, these must be the very words: users search for them.
    #[test]
    fn the_documents_explain_what_opening_a_device_says() {
        let document = include_str!("../../../../docs/errors.md");
        for words in [
            "cannot be loaded",
            "this machine has no RDMA devices",
            "this machine has no device of this name, it has",
            "ibv_open_device failed",
            "the connection manager cannot be used",
            "no RDMA device of this machine has the address",
            "belongs to",
            "iWARP has no write with immediate data",
            "bytes of memory failed (locked memory: at most",
        ] {
            assert!(document.contains(words), "docs/errors.md does not explain {words:?}");
        }
        assert!(NO_DEVICES.starts_with("this machine has no RDMA devices"));
    }

    #[test]
    fn a_device_that_is_not_there_is_one_clear_line() {
        let spec = DeviceSpec {
            name: "no_such_device".into(),
            provider: Provider::Verbs,
            ip_address: "192.0.2.1".parse().unwrap(), // RFC 5737: nobody has it
            max_inline_data: 0,
        };
        let error = OpenDevice::new(&spec).unwrap_err();
        assert!(matches!(error, Error::DeviceUnavailable { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains("no_such_device") && !line.contains('\n'), "{line}");
    }
}
