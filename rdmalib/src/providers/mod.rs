//! The providers, and the one enum over them: what a facade object holds is [`Any`] of the
//! providers' objects, matched once a call. This is the only place where a provider is chosen.
//!
//! A provider is added here with a module, a variant of `Any`, a type in each alias, and an arm in
//! each macro; the compiler names the places.
//!
//! Elsewhere: what a provider's objects guarantee (`crate::contract`).

pub(crate) mod shm;
pub(crate) mod tcp;
pub(crate) mod verbs;

use crate::contract::{Device as _, Domain as _, Memory, SendQueue as _};
use crate::types::{DeviceSpec, Error, PrivateData, Provider, QueuePairConfig, Result};

/// An object of one of the providers.
#[derive(Clone, Debug)]
pub(crate) enum Any<S, V, T> {
    Shm(S),
    Verbs(V),
    Tcp(T),
}

pub(crate) type AnyDevice = Any<shm::Device, verbs::Device, tcp::Device>;
pub(crate) type AnyDomain = Any<shm::Domain, verbs::Domain, tcp::Domain>;
pub(crate) type AnyRegion = Any<shm::Region, verbs::Region, tcp::Region>;
pub(crate) type AnyRemoteMemory = Any<shm::Part, verbs::NeverMapped, tcp::NeverMapped>;
pub(crate) type AnyCompletionQueue =
    Any<shm::CompletionQueue, verbs::CompletionQueue, tcp::CompletionQueue>;
pub(crate) type AnyWaker = Any<shm::Waker, verbs::Waker, tcp::Waker>;
pub(crate) type AnySendQueue = Any<shm::SendQueue, verbs::SendQueue, tcp::SendQueue>;
pub(crate) type AnyReceiveQueue = Any<shm::ReceiveQueue, verbs::ReceiveQueue, tcp::ReceiveQueue>;
pub(crate) type AnyListener = Any<shm::Listener, verbs::Listener, tcp::Listener>;
pub(crate) type AnyConnectRequest =
    Any<shm::ConnectRequest, verbs::ConnectRequest, tcp::ConnectRequest>;

/// Evaluates the expression for the object in an `Any`, whichever provider it is of.
macro_rules! each {
    ($any:expr, $object:ident => $result:expr) => {
        match $any {
            $crate::providers::Any::Shm($object) => $result,
            $crate::providers::Any::Verbs($object) => $result,
            $crate::providers::Any::Tcp($object) => $result,
        }
    };
}

/// As `each!`, and makes an `Any` of the same provider out of the result.
macro_rules! each_into {
    ($any:expr, $object:ident => $result:expr) => {
        match $any {
            $crate::providers::Any::Shm($object) => $crate::providers::Any::Shm($result),
            $crate::providers::Any::Verbs($object) => $crate::providers::Any::Verbs($result),
            $crate::providers::Any::Tcp($object) => $crate::providers::Any::Tcp($result),
        }
    };
}

/// As `each_into!`, for an expression that returns an `Option`.
macro_rules! each_optional {
    ($any:expr, $object:ident => $result:expr) => {
        match $any {
            $crate::providers::Any::Shm($object) => $result.map($crate::providers::Any::Shm),
            $crate::providers::Any::Verbs($object) => $result.map($crate::providers::Any::Verbs),
            $crate::providers::Any::Tcp($object) => $result.map($crate::providers::Any::Tcp),
        }
    };
}

pub(crate) use {each, each_into, each_optional};

/// Opens the device that `spec` describes: here a provider is chosen.
pub(crate) fn open(spec: &DeviceSpec) -> Result<AnyDevice> {
    Ok(match spec.provider {
        Provider::Shm => Any::Shm(shm::Device::open(spec)?),
        Provider::Verbs => Any::Verbs(verbs::Device::open(spec)?),
        Provider::Tcp => Any::Tcp(tcp::Device::open(spec)?),
    })
}

/// Loads what devices of `provider` need in a process.
pub(crate) fn prepare(provider: Provider) -> std::result::Result<(), String> {
    match provider {
        Provider::Shm | Provider::Tcp => Ok(()), // all of it is in the program
        Provider::Verbs => verbs::prepare(),
    }
}

/// Makes a queue pair out of objects that have to be of one provider.
pub(crate) fn queue_pair(
    domain: &AnyDomain,
    send: &AnyCompletionQueue,
    receive: &AnyCompletionQueue,
    config: &QueuePairConfig,
) -> Result<(AnySendQueue, AnyReceiveQueue)> {
    Ok(match (domain, send, receive) {
        (Any::Shm(domain), Any::Shm(send), Any::Shm(receive)) => {
            let (send, receive) = domain.queue_pair(send, receive, config)?;
            (Any::Shm(send), Any::Shm(receive))
        }
        (Any::Verbs(domain), Any::Verbs(send), Any::Verbs(receive)) => {
            let (send, receive) = domain.queue_pair(send, receive, config)?;
            (Any::Verbs(send), Any::Verbs(receive))
        }
        (Any::Tcp(domain), Any::Tcp(send), Any::Tcp(receive)) => {
            let (send, receive) = domain.queue_pair(send, receive, config)?;
            (Any::Tcp(send), Any::Tcp(receive))
        }
        _ => return Err(Error::InvalidArgument("completion queue is of another device")),
    })
}

/// Accepts `request` with a queue pair that has to be of the same provider.
pub(crate) fn accept(
    request: AnyConnectRequest,
    queue: &mut AnySendQueue,
    private_data: &PrivateData,
) -> Result<()> {
    match (request, queue) {
        (Any::Shm(request), Any::Shm(queue)) => queue.accept(request, private_data),
        (Any::Verbs(request), Any::Verbs(queue)) => queue.accept(request, private_data),
        (Any::Tcp(request), Any::Tcp(queue)) => queue.accept(request, private_data),
        _ => Err(Error::InvalidArgument("queue pair is of another device than the listener")),
    }
}

impl<'a> Memory<'a, shm::Region> for &'a AnyRegion {
    #[inline]
    fn of_provider(self) -> Option<&'a shm::Region> {
        match self {
            Any::Shm(region) => Some(region),
            Any::Verbs(_) | Any::Tcp(_) => None,
        }
    }
}

impl<'a> Memory<'a, verbs::Region> for &'a AnyRegion {
    #[inline]
    fn of_provider(self) -> Option<&'a verbs::Region> {
        match self {
            Any::Verbs(region) => Some(region),
            Any::Shm(_) | Any::Tcp(_) => None,
        }
    }
}

impl<'a> Memory<'a, tcp::Region> for &'a AnyRegion {
    #[inline]
    fn of_provider(self) -> Option<&'a tcp::Region> {
        match self {
            Any::Tcp(region) => Some(region),
            Any::Shm(_) | Any::Verbs(_) => None,
        }
    }
}
