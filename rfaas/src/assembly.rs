//! What a deployment puts together: connections, slots, functions. What depends on nobody is made before executor and
//! workers dial, so that they do not wait for it. Nothing here waits.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rdmalib::{CompletionQueue, ConnectRequest, ReceiveQueue};
use rfaas_call::caller::{Accepted, SlotNeeds, Unconnected, WorkerConnection, completion_queue};
use rfaas_config::OpenDevice;
use rfaas_protocol::channel::{Channel, refuse};
use rfaas_protocol::session::{CodeFrom, ExecutorHello, WorkerHello};
use rfaas_protocol::{Hello, Malformed, Role, Secret, parse_prefix};

use crate::deployment::DeploymentSpecification;
use crate::dialled::{DialledExecutor, failed};
use crate::error::Result;
use crate::spares::Spares;

/// What there is so far.
pub(crate) struct Assembly<'a> {
    device: &'a OpenDevice,
    spares: &'a Spares,
    session: Secret,
    specification: &'a DeploymentSpecification,
    needs: SlotNeeds,
    workers: Vec<Seat>,
    completions: CompletionQueue,
    /// The connection to the executor, until it has dialled.
    unconnected: Option<Channel>,
    control: Option<DialledExecutor>,
}

/// What there is of a worker.
enum Seat {
    /// It has not dialled.
    Vacant(Unconnected),
    /// It was gone again when it was accepted.
    Lost,
    Taken(Accepted),
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
        spares: &'a Spares,
        (cores, session): (u16, Secret),
        specification: &'a DeploymentSpecification,
    ) -> Result<Self> {
        let deployment = &specification.deployment;
        let needs = SlotNeeds { slots: deployment.slots, input_bytes: deployment.input_bytes };
        let completions = completion_queue(&device.device, cores, needs.slots)?;
        let domain = &specification.domain;
        let vacant = |worker: u16| {
            let index = usize::from(worker);
            Unconnected::new(index, needs, &device.device, domain, &completions).map(Seat::Vacant)
        };
        let workers = (0..cores).map(vacant).collect::<rdmalib::Result<_>>()?;
        let unconnected = Some(spares.control(device).map_err(failed)?);
        Ok(Assembly {
            device,
            spares,
            session,
            specification,
            needs,
            workers,
            completions,
            unconnected,
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
            Some(Seat::Taken(_)) => Err(format!("worker {index} is connected already")),
            Some(Seat::Vacant(_) | Seat::Lost) => self.needs.check(hello),
        }
    }

    fn admit_executor(
        &mut self,
        request: ConnectRequest,
        hello: &ExecutorHello,
        code_from: CodeFrom,
    ) -> Result<()> {
        let another = || self.spares.control(self.device).map_err(failed);
        let channel = self.unconnected.take().map_or_else(another, Ok)?;
        let library = &self.specification.library;
        if let Some(dialled) =
            DialledExecutor::accept(channel, request, (hello, code_from), library)?
        {
            self.control = Some(dialled);
        }
        Ok(())
    }

    fn admit_worker(&mut self, request: ConnectRequest, hello: &WorkerHello) -> Result<()> {
        let (index, needs) = (usize::from(hello.worker.get()), self.needs);
        let unconnected = match std::mem::replace(&mut self.workers[index], Seat::Lost) {
            Seat::Vacant(unconnected) => unconnected,
            Seat::Lost | Seat::Taken(_) => {
                let domain = &self.specification.domain;
                Unconnected::new(index, needs, &self.device.device, domain, &self.completions)?
            }
        };
        // If it is gone again, so is its executor, of which the manager tells.
        self.workers[index] =
            unconnected.accept(request, hello, needs).map_or(Seat::Lost, Seat::Taken);
        Ok(())
    }

    /// Takes what the executor has sent. Returns false once its connection has ended.
    pub(crate) fn read_control(&mut self) -> Result<bool> {
        self.control.as_mut().map_or(Ok(true), DialledExecutor::read)
    }

    /// Has the [descriptor](Self::descriptor) tell of what the executor sends from now on.
    pub(crate) fn arm(&mut self) -> Result<()> {
        match &mut self.control {
            Some(control) => control.arm(),
            None => Ok(()),
        }
    }

    /// Returns what is readable when the executor has sent something, once it has dialled.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// Silences the descriptor.
    pub(crate) fn acknowledge(&mut self) -> Result<()> {
        match &mut self.control {
            Some(control) => control.acknowledge(),
            None => Ok(()),
        }
    }

    /// Returns whether executor and all workers have dialled.
    pub(crate) fn is_connected(&self) -> bool {
        self.control.is_some() && self.taken() == self.workers.len()
    }

    /// Returns the number of workers that have dialled.
    fn taken(&self) -> usize {
        self.workers.iter().filter(|seat| matches!(seat, Seat::Taken(_))).count()
    }

    /// Returns whether the executor was sent the library.
    pub(crate) fn library_sent(&self) -> bool {
        self.control.as_ref().is_some_and(DialledExecutor::library_sent)
    }

    /// Returns how long the executor took to load the library, once it has named all functions.
    pub(crate) fn loaded_in(&self) -> Option<Duration> {
        self.control.as_ref()?.loaded_in()
    }

    /// Returns what is waited for, in words.
    pub(crate) fn missing(&self) -> String {
        let connected = self.taken();
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
        let (control, functions) = control.finish();
        let (workers, receives) = self
            .workers
            .into_iter()
            .filter_map(|seat| match seat {
                Seat::Taken(Accepted { connection, receives }) => Some((connection, receives)),
                Seat::Vacant(_) | Seat::Lost => None,
            })
            .unzip();
        Ready { workers, receives, completions: self.completions, control, functions }
    }
}
