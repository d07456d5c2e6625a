//! What a deployment puts together while executor and workers dial: connections, slots, functions.
//! Nothing here waits, except for the executor's next message.

use std::time::{Duration, Instant};

use rdmalib::{
    Access, CompletionQueue, ConnectRequest, Device, ReceiveQueue, Region, RemoteAddress,
};
use rfaas_call::caller::{Accepted, SlotNeeds, WorkerConnection, completion_queue};
use rfaas_config::OpenDevice;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming, refuse};
use rfaas_protocol::session::{
    CodeFrom, ExecutorHello, FromExecutor, FunctionEntry, MAX_FUNCTIONS, WorkerHello,
};
use rfaas_protocol::{Empty, Hello, Malformed, Role, Secret, parse_prefix};

use crate::deployment::DeploymentSpecification;
use crate::error::{Error, Result};

const WHAT: &str = "the executor";
/// Messages that the executor may be ahead of us: one for each function of a usual library.
const CONTROL_RECEIVES: u32 = 256;

/// What there is so far.
pub(crate) struct Assembly<'a> {
    device: &'a Device,
    session: Secret,
    specification: &'a DeploymentSpecification,
    needs: SlotNeeds,
    workers: Vec<Option<Accepted>>,
    completions: CompletionQueue,
    control: Option<DialledExecutor>,
}

/// The executor process, once it has dialled.
struct DialledExecutor {
    channel: Channel,
    /// Stays until the executor has read it. `None`: its node has the library.
    code: Option<Region>,
    functions: Vec<String>,
    count: Option<u32>,
    /// When it had what it needs to load it.
    begun: Instant,
    /// From there until the last function was named.
    loaded_in: Option<Duration>,
}

/// Everything, connected and loaded.
pub(crate) struct Ready {
    pub(crate) workers: Vec<WorkerConnection>,
    pub(crate) receives: Vec<ReceiveQueue>,
    pub(crate) completions: CompletionQueue,
    pub(crate) control: Channel,
    pub(crate) functions: Vec<String>,
}

/// A peer that showed the session's secret.
enum Dialler {
    Executor(ExecutorHello, CodeFrom),
    Worker(WorkerHello),
}

impl<'a> Assembly<'a> {
    /// Begins one for an executor with `cores` workers that shows `session`.
    pub(crate) fn new(
        device: &'a OpenDevice,
        cores: u16,
        session: Secret,
        specification: &'a DeploymentSpecification,
    ) -> Result<Self> {
        let device = &device.device;
        let deployment = &specification.deployment;
        let needs = SlotNeeds { slots: deployment.slots, input_bytes: deployment.input_bytes };
        Ok(Assembly {
            device,
            session,
            specification,
            needs,
            workers: (0..cores).map(|_| None).collect(),
            completions: completion_queue(device, cores, needs.slots)?,
            control: None,
        })
    }

    /// Accepts the peer that dialled, or refuses it. An error is one of our own device.
    pub(crate) fn admit(&mut self, request: ConnectRequest) -> Result<()> {
        match self.identify(request.private_data()) {
            Ok(Dialler::Executor(hello, from)) => self.admit_executor(request, &hello, from),
            Ok(Dialler::Worker(hello)) => self.admit_worker(request, &hello),
            Err(why) => {
                tracing::debug!(peer = request.peer(), why, "connection refused");
                refuse(request, &why);
                Ok(())
            }
        }
    }

    /// Returns which peer dialled, or why it is refused.
    fn identify(&self, private_data: &[u8]) -> Result<Dialler, String> {
        let text = |malformed: Malformed| malformed.to_string();
        let (role, body) = Hello::parse(private_data).map_err(text)?;
        let caller = match role {
            Role::Executor => {
                let hello: ExecutorHello = parse_prefix(body).map_err(text)?;
                Dialler::Executor(hello, CodeFrom::from_wire(hello.code_from).map_err(text)?)
            }
            Role::Worker => Dialler::Worker(parse_prefix(body).map_err(text)?),
            _ => return Err("this client waits for its executor".into()),
        };
        let (Dialler::Executor(ExecutorHello { session, .. }, _)
        | Dialler::Worker(WorkerHello { session, .. })) = &caller;
        if *session != self.session {
            return Err("wrong session secret".into());
        }
        match &caller {
            Dialler::Executor(..) if self.control.is_some() => {
                Err("the executor is connected already".into())
            }
            Dialler::Executor(..) => Ok(caller),
            Dialler::Worker(hello) => self.check_worker(hello).map(|()| caller),
        }
    }

    /// Checks the numbers of a worker. An error says why they cannot be.
    fn check_worker(&self, hello: &WorkerHello) -> Result<(), String> {
        let index = usize::from(hello.worker.get());
        match self.workers.get(index) {
            None => Err(format!("there is no worker {index} in this lease")),
            Some(Some(_)) => Err(format!("worker {index} is connected already")),
            Some(None) => self.needs.check(hello),
        }
    }

    fn admit_executor(
        &mut self,
        request: ConnectRequest,
        hello: &ExecutorHello,
        code_from: CodeFrom,
    ) -> Result<()> {
        let failed = |source| Error::Connection { what: WHAT, source };
        let mut channel = Channel::new(self.device, CONTROL_RECEIVES).map_err(failed)?;
        let code = match code_from {
            CodeFrom::Client => Some(self.code_to_send(&channel)?),
            CodeFrom::Node => None,
        };
        if let Err(error) = channel.accept(request, &Empty {}) {
            // It is gone again, of which the manager tells.
            tracing::debug!(%error, "executor not connected");
            return Ok(());
        }
        if let Some(code) = &code {
            let to = RemoteAddress { addr: hello.code_addr.get(), key: hello.code_key.get() };
            let bytes = u32::try_from(code.len()).expect("checked when the file was read");
            match channel.write_with_immediate(code, code.len(), to, bytes) {
                Ok(()) | Err(ChannelError::Disconnected) => {} // `read_control` tells
                Err(source) => return Err(failed(source)),
            }
        }
        self.control = Some(DialledExecutor {
            channel,
            code,
            functions: Vec::new(),
            count: None,
            begun: Instant::now(),
            loaded_in: None,
        });
        Ok(())
    }

    /// Returns the library as memory that can be sent on `channel`.
    fn code_to_send(&self, channel: &Channel) -> Result<Region> {
        let code = &self.specification.library.code;
        let region = channel.domain().allocate(code.len(), Access::empty())?;
        region.write(0, code)?;
        Ok(region)
    }

    fn admit_worker(&mut self, request: ConnectRequest, hello: &WorkerHello) -> Result<()> {
        let index = usize::from(hello.worker.get());
        let (domain, completions) = (&self.specification.domain, &self.completions);
        // If it is gone again, so is its executor, of which the manager tells.
        self.workers[index] =
            Accepted::accept(request, hello, self.needs, index, self.device, domain, completions)?;
        Ok(())
    }

    /// Takes what the executor has sent. Returns false once its connection has ended.
    pub(crate) fn read_control(&mut self) -> Result<bool> {
        let Some(control) = &mut self.control else { return Ok(true) };
        loop {
            match control.channel.try_receive() {
                Ok(None) => return Ok(true),
                Ok(Some(incoming)) => control.read(incoming)?,
                Err(ChannelError::Disconnected) => return Ok(false),
                Err(source) => return Err(Error::Connection { what: WHAT, source }),
            }
        }
    }

    /// Waits for the executor's next message, for at most `timeout`.
    pub(crate) fn wait_for_control(&mut self, timeout: Duration) -> Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        match control.channel.receive(timeout) {
            Ok(incoming) => control.read(incoming),
            // `read_control` tells.
            Err(ChannelError::TimedOut { .. } | ChannelError::Disconnected) => Ok(()),
            Err(source) => Err(Error::Connection { what: WHAT, source }),
        }
    }

    /// Returns whether executor and all workers have dialled.
    pub(crate) fn is_connected(&self) -> bool {
        self.control.is_some() && self.workers.iter().all(Option::is_some)
    }

    /// Returns whether the executor was sent the library.
    pub(crate) fn library_sent(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.code.is_some())
    }

    /// Returns how long the executor took to load the library, once it has named all functions.
    pub(crate) fn loaded_in(&self) -> Option<Duration> {
        self.control.as_ref()?.loaded_in
    }

    /// Returns what is waited for, in words.
    pub(crate) fn missing(&self) -> String {
        let connected = self.workers.iter().flatten().count();
        match &self.control {
            None => "it has not connected to this client".into(),
            Some(_) if connected < self.workers.len() => {
                format!("{connected} of {} workers have connected", self.workers.len())
            }
            Some(_) => "it has not loaded the function library".into(),
        }
    }

    /// Returns everything. To be called once it is connected and loaded.
    pub(crate) fn finish(self) -> Ready {
        let control = self.control.expect("called once the executor is connected");
        let (workers, receives) = self
            .workers
            .into_iter()
            .flatten()
            .map(|Accepted { connection, receives }| (connection, receives))
            .unzip();
        Ready {
            workers,
            receives,
            completions: self.completions,
            control: control.channel,
            functions: control.functions,
        }
    }
}

impl DialledExecutor {
    fn read(&mut self, incoming: Incoming<FromExecutor>) -> Result<()> {
        match incoming {
            Incoming::Message(FromExecutor::Function(entry)) => self.add(&entry),
            Incoming::Message(FromExecutor::LoadFailed(failed)) => {
                let reason = failed.reason.get()?.replace(char::is_control, " ");
                Err(Error::LoadFailed { reason })
            }
            Incoming::Message(FromExecutor::CodeDiffers(_)) => Err(Error::LibraryGarbled),
            Incoming::Written { .. } => Err(Malformed::Field("message kind").into()),
        }
    }

    /// Adds a function to the list. Functions come in order, all of the same count.
    fn add(&mut self, entry: &FunctionEntry) -> Result<()> {
        let count = entry.count.get();
        let in_order =
            entry.index.get() as usize == self.functions.len() && self.loaded_in.is_none();
        let counted = (1..=MAX_FUNCTIONS).contains(&(count as usize))
            && *self.count.get_or_insert(count) == count;
        if !in_order || !counted {
            return Err(Malformed::Field("function index").into());
        }
        self.functions.push(entry.name.get()?.to_owned());
        if self.functions.len() == count as usize {
            self.loaded_in = Some(self.begun.elapsed());
        }
        Ok(())
    }
}
