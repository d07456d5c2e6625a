//! What an application may choose about a deployment, what stays of it when one executor process is
//! replaced by another, and how long its parts took.

use std::sync::Arc;
use std::time::Duration;

use rdmalib::Domain;
use rfaas_call::Spin;
use rfaas_protocol::invocation::MAX_SLOTS;

use crate::buffer::Origin;
use crate::error::{Error, Result};
use crate::library::Library;

/// What a deployment is made with. The default suits small payloads and lowest latency.
///
/// ```
/// use rfaas::{Deployment, Spin};
///
/// // Few large calls, on cores that are not to spin in between.
/// let deployment = Deployment::new().input_bytes(64 << 20).slots(1).spin(Spin::Never);
/// assert_eq!(deployment.output_bytes, 1 << 20); // as by default
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deployment {
    /// Largest input, in bytes.
    pub input_bytes: usize,
    /// Largest output, in bytes.
    pub output_bytes: usize,
    /// Input slots of each worker: invocations that may be in flight there, the first of them
    /// running.
    pub slots: u16,
    /// How workers and blocked callers wait. A task that awaits a result always sleeps.
    pub spin: Spin,
    /// Longest time from the call of a function to its result; then the worker is given up, and
    /// replaced by the next call.
    pub invocation_timeout: Duration,
    /// Longest time from asking for executors to their being ready.
    pub start_timeout: Duration,
    /// How long an idempotent call tries to find an executor after its own was lost.
    pub failover_timeout: Duration,
    /// When a function has crashed or ended the process, the next call starts a new one first. The calls that were in
    /// flight fail as without it.
    pub restart: bool,
}

impl Default for Deployment {
    /// Returns 1 MiB of input and output, four slots, always hot, a minute an invocation, half a minute to
    /// start, as long to start elsewhere, and no restart unasked.
    fn default() -> Self {
        Deployment {
            input_bytes: 1 << 20,
            output_bytes: 1 << 20,
            slots: 4,
            spin: Spin::Always,
            invocation_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(30),
            failover_timeout: Duration::from_secs(30),
            restart: false,
        }
    }
}

impl Deployment {
    /// Returns [`Deployment::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`input_bytes`](Self::input_bytes).
    #[must_use]
    pub fn input_bytes(self, input_bytes: usize) -> Self {
        Deployment { input_bytes, ..self }
    }

    /// Sets [`output_bytes`](Self::output_bytes).
    #[must_use]
    pub fn output_bytes(self, output_bytes: usize) -> Self {
        Deployment { output_bytes, ..self }
    }

    /// Sets [`slots`](Self::slots): 1 to 1024.
    #[must_use]
    pub fn slots(self, slots: u16) -> Self {
        Deployment { slots, ..self }
    }

    /// Sets [`spin`](Self::spin).
    #[must_use]
    pub fn spin(self, spin: Spin) -> Self {
        Deployment { spin, ..self }
    }

    /// Sets [`invocation_timeout`](Self::invocation_timeout).
    #[must_use]
    pub fn invocation_timeout(self, invocation_timeout: Duration) -> Self {
        Deployment { invocation_timeout, ..self }
    }

    /// Sets [`start_timeout`](Self::start_timeout).
    #[must_use]
    pub fn start_timeout(self, start_timeout: Duration) -> Self {
        Deployment { start_timeout, ..self }
    }

    /// Sets [`failover_timeout`](Self::failover_timeout).
    #[must_use]
    pub fn failover_timeout(self, failover_timeout: Duration) -> Self {
        Deployment { failover_timeout, ..self }
    }

    /// Sets [`restart`](Self::restart): whether the next call replaces a process that a function has ended. A
    /// function that always fails costs a process each time, so after five of them there is one a second,
    /// for which a call waits.
    ///
    /// ```no_run
    /// # fn example(lease: &rfaas::Lease, parts: &[Vec<u8>]) -> rfaas::Result<()> {
    /// let deployment = rfaas::Deployment::new().restart(true);
    /// let mut executor = lease.deploy_with("libfunctions.so", &deployment)?;
    /// let parse = executor.function("parse")?;
    /// let (mut input, mut output) = (executor.input(4096)?, executor.output(4096)?);
    /// for part in parts {
    ///     input.write(0, part)?;
    ///     // One that crashes the parser costs this result and no other.
    ///     match executor.invoke(&parse, &input, &mut output) {
    ///         Ok(bytes) => println!("{bytes} bytes"),
    ///         Err(error) => eprintln!("{error}: {}", executor.printed()?),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn restart(self, restart: bool) -> Self {
        Deployment { restart, ..self }
    }

    /// Checks what the types cannot say.
    pub(crate) fn validate(&self) -> Result<()> {
        let fits = |bytes: usize| u32::try_from(bytes).is_ok();
        if !fits(self.input_bytes) || !fits(self.output_bytes) {
            return Err(Error::Invalid("input_bytes and output_bytes are less than 4 GiB"));
        }
        if self.slots == 0 || usize::from(self.slots) > MAX_SLOTS {
            return Err(Error::Invalid("a worker has from 1 to 1024 slots"));
        }
        Ok(())
    }
}

/// What an executor is deployed from, on its lease or elsewhere. What an application has made for an executor belongs
/// to this and not to the process, so buffers and functions outlive the process, and any number of processes can be
/// started one after the other.
#[derive(Debug)]
pub(crate) struct DeploymentSpecification {
    /// The library.
    pub(crate) library: Arc<Library>,
    pub(crate) deployment: Deployment,
    /// The domain of all buffers, and of the connections to whichever workers there are.
    pub(crate) domain: Domain,
    pub(crate) origin: Origin,
}

/// How long the parts of the last start took; their sum is the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Phases {
    /// Connecting to the executor manager; nothing if the lease was deployed before.
    pub connect: Duration,
    /// From showing the token to the manager's word that the executor process was started.
    pub submit: Duration,
    /// From there until the executor and all its workers have connected, without the next part,
    /// which lies within.
    pub spawn_connect: Duration,
    /// From sending the library, or from learning that the node has it, until the executor has loaded it
    /// and named its functions.
    pub initialize: Duration,
    /// Whether the library was sent; not if the node had it.
    pub library_sent: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_without_slots_or_beyond_the_wire_format_is_refused() {
        assert!(Deployment::new().validate().is_ok());
        assert!(Deployment::new().slots(0).validate().is_err());
        assert!(Deployment::new().slots(1025).validate().is_err());
        assert!(Deployment::new().input_bytes(1 << 32).validate().is_err());
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let Deployment {
            input_bytes,
            output_bytes,
            slots,
            spin,
            invocation_timeout,
            start_timeout,
            failover_timeout,
            restart,
        } = Deployment::default();
        let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
        let seconds = |time: Duration| format!("{} s", time.as_secs());
        for (option, default) in [
            ("input_bytes", mib(input_bytes)),
            ("output_bytes", mib(output_bytes)),
            ("slots", slots.to_string()),
            ("spin", format!("`Spin::{spin:?}`")),
            ("invocation_timeout", seconds(invocation_timeout)),
            ("start_timeout", seconds(start_timeout)),
            ("failover_timeout", seconds(failover_timeout)),
            ("restart", format!("`{restart}`")),
        ] {
            let row = format!("| `{option}` | {default} |");
            assert!(include_str!("../../docs/programming.md").contains(&row), "{row}");
        }
    }
}
