//! The client's connection to the executor manager that holds its lease: claims, gives back, and
//! notes what the manager tells in between.
//!
//! ```text
//!   connect ──allocate──▶ running ──ExecutorExited──▶ not running ──allocate──▶ …
//!                └──LeaseEnding with grace 0, or the connection's end──▶ over
//! ```

use std::time::{Duration, Instant};

use super::failure::Failure;
use super::lease::Candidate;
use crate::channel::{Channel, ChannelError, Incoming};
use crate::config::OpenDevice;
use crate::error::{Error, Exit, Result};
use crate::protocol::allocation::{
    Allocate, ExecutorExited, FromClient, LeaseEnding, RefusedBecause, ToClient,
};
use crate::protocol::lease::{EndReason, LeaseId, Token};
use crate::protocol::node::Bill;
use crate::protocol::{Empty, Malformed, Role};

const WHAT: &str = "the executor manager";

/// Announced by the executor manager: a lease ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: EndReason,
    /// Then it is over.
    pub at: Instant,
}

/// The connection, and what is known from it.
#[derive(Debug)]
pub(super) struct Manager {
    channel: Channel,
    node: String,
    /// What the lease is claimed with, each time.
    token: Token,
    running: bool,
    /// Of the executor that ran last.
    exit: Option<Exit>,
    ending: Option<Ending>,
    /// No executor will run any more.
    over: Option<Failure>,
}

/// A message that somebody waits for.
enum Answer {
    Allocated(LeaseId),
    Refused { because: RefusedBecause, reason: String },
    Released(Bill),
}

impl Manager {
    /// Connects to the executor manager of `candidate`, within `timeout`.
    pub(super) fn connect(
        device: &OpenDevice,
        candidate: &Candidate,
        timeout: Duration,
    ) -> Result<Self> {
        let address = candidate.address;
        let unreachable =
            |source| Error::Unreachable { what: WHAT, address, source: Box::new(source) };
        let mut channel = Channel::new(&device.device, device.entry.default_receive_buffer_size)
            .map_err(|source| Error::Connection { what: WHAT, source })?;
        channel.connect(address, Role::Allocation, &Empty {}, timeout).map_err(unreachable)?;
        Ok(Manager {
            channel,
            node: candidate.node.clone(),
            token: candidate.token,
            running: false,
            exit: None,
            ending: None,
            over: None,
        })
    }

    /// Asks for an executor as `request` says, except for the token, which is this lease's; returns
    /// the number of the lease.
    pub(super) fn allocate(&mut self, request: &Allocate, deadline: Instant) -> Result<LeaseId> {
        self.send(&FromClient::Allocate(Allocate { token: self.token, ..*request }))?;
        loop {
            match self.answer(deadline)? {
                Answer::Allocated(lease) => {
                    self.running = true;
                    self.exit = None;
                    return Ok(lease);
                }
                Answer::Refused { because, reason } => {
                    let node = self.node.clone();
                    return Err(Error::AllocationRefused { node, because, reason });
                }
                Answer::Released(_) => {}
            }
        }
    }

    /// Name of its node.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Gives the lease back; returns its bill.
    pub(super) fn release(&mut self, timeout: Duration) -> Result<Bill> {
        let deadline = Instant::now() + timeout;
        self.send(&FromClient::Release(Empty {}))?;
        loop {
            if let Answer::Released(bill) = self.answer(deadline)? {
                return Ok(bill);
            }
        }
    }

    /// Gives the lease back as far as that is possible without waiting.
    pub(super) fn release_unheard(&mut self) {
        if let Err(error) = self.channel.send(&FromClient::Release(Empty {})) {
            // The end of the connection, which follows, says the same.
            tracing::debug!(%error, node = self.node, "lease not given back in words");
        }
    }

    /// Waits until no executor runs, by `deadline`; false if one still does.
    pub(super) fn wait_for_exit(&mut self, deadline: Instant) -> Result<bool> {
        while self.running {
            if let Some(failure) = self.over {
                return Err(failure.into_error(Duration::ZERO));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.next(left);
        }
        Ok(true)
    }

    /// Notes what arrived. Never waits.
    pub(super) fn look(&mut self) {
        while self.over.is_none() {
            match self.channel.try_receive() {
                Ok(None) => return,
                Ok(Some(incoming)) => drop(self.note(Ok(incoming))), // nobody waits for an answer
                Err(error) => drop(self.note(Err(error))),
            }
        }
    }

    /// How the executor ended, if it did.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Why there is no executor any more, if that is known.
    pub(super) fn news(&mut self) -> Option<Failure> {
        self.look();
        match (self.over, self.exit) {
            // A lease that ends takes its executor along: that is the reason, not the exit.
            (Some(Failure::LeaseEnded(reason)), _) => Some(Failure::LeaseEnded(reason)),
            (_, Some(exit)) => Some(Failure::Exited(exit)),
            (over, None) => over,
        }
    }

    /// Why the lease is over, if it is.
    pub(super) fn over(&self) -> Option<Failure> {
        self.over
    }

    /// The announced end of the lease.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    fn send(&mut self, message: &FromClient) -> Result<()> {
        self.look();
        if let Some(failure) = self.over {
            return Err(failure.into_error(Duration::ZERO));
        }
        self.channel.send(message).map_err(|source| Error::Connection { what: WHAT, source })
    }

    /// The next answer, by `deadline`.
    fn answer(&mut self, deadline: Instant) -> Result<Answer> {
        let start = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(answer) = self.next(left) {
                return Ok(answer);
            }
            if let Some(failure) = self.over {
                return Err(failure.into_error(Duration::ZERO));
            }
            if left.is_zero() {
                return Err(Error::NoAnswer { what: WHAT, after: start.elapsed() });
            }
        }
    }

    /// Notes what arrives next within `timeout`; an answer is returned.
    fn next(&mut self, timeout: Duration) -> Option<Answer> {
        match self.channel.receive(timeout) {
            Err(ChannelError::TimedOut { .. }) => None,
            received => self.note(received),
        }
    }

    fn note(&mut self, received: Result<Incoming<ToClient>, ChannelError>) -> Option<Answer> {
        let noted = match received {
            Ok(Incoming::Message(message)) => self.read(message),
            Ok(Incoming::Written { .. }) => Err(Malformed::Field("message kind")),
            Err(ChannelError::Malformed(malformed)) => Err(malformed),
            Err(error) => {
                tracing::debug!(%error, node = self.node, "executor manager's connection ended");
                let announced = self.ending.map(|ending| Failure::LeaseEnded(ending.reason));
                self.over.get_or_insert(announced.unwrap_or(Failure::Gone));
                return None;
            }
        };
        noted.unwrap_or_else(|malformed| {
            tracing::warn!(%malformed, node = self.node, "executor manager broke the protocol");
            self.channel.disconnect();
            self.over.get_or_insert(Failure::Gone);
            None
        })
    }

    fn read(&mut self, message: ToClient) -> Result<Option<Answer>, Malformed> {
        Ok(Some(match message {
            ToClient::Allocated(allocated) => Answer::Allocated(
                LeaseId::new(allocated.lease.get()).ok_or(Malformed::Field("lease"))?,
            ),
            ToClient::Refused(refused) => Answer::Refused {
                because: RefusedBecause::from_wire(refused.because)?,
                reason: refused.reason.get()?.to_owned(),
            },
            ToClient::Released(released) => Answer::Released(released.bill),
            ToClient::Heartbeat(_) | ToClient::Renewed(_) => return Ok(None),
            ToClient::ExecutorExited(ExecutorExited { signal, status, silent: _ }) => {
                self.running = false;
                self.exit = Some(match signal.get() {
                    0 => Exit::Status(status.get()),
                    signal => Exit::Signal(signal),
                });
                return Ok(None);
            }
            ToClient::LeaseEnding(LeaseEnding { reason, grace_ms }) => {
                let reason = EndReason::from_wire(reason)?;
                let grace = Duration::from_millis(grace_ms.get().into());
                self.ending = Some(Ending { reason, at: Instant::now() + grace });
                if grace.is_zero() {
                    self.over = Some(Failure::LeaseEnded(reason));
                }
                return Ok(None);
            }
        }))
    }
}
