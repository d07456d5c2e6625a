//! A caller as its owner has it: makes calls, one or many, blocking or not.
//!
//! A blocking call with nothing asynchronous outstanding posts one write and polls until the reply is there: no
//! allocation, lock, log line, system call or clock reading.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

use super::call::Call;
use super::calls::{Calls, Exclusive, Locked, Progress};
use super::outcome::{CallError, Failure, Outcome, Owner};
use super::tickets::Ticket;
use super::workers::Posted;
use crate::backoff::Spin;

/// Whether something was done with the connections.
#[derive(Debug)]
pub enum Called<T> {
    /// It was, and this came of it.
    Done(T),
    /// It was not: they must be replaced first.
    MustReplace,
}

impl<T> Called<T> {
    /// Returns what `then` makes of what is done.
    pub fn map<U>(self, then: impl FnOnce(T) -> U) -> Called<U> {
        match self {
            Called::Done(done) => Called::Done(then(done)),
            Called::MustReplace => Called::MustReplace,
        }
    }
}

/// What a call, or several, come to.
pub type CallResult<T, C> = Result<Called<T>, CallError<C>>;

/// The calls of one owner. They are its own until the first asynchronous call is lent them.
#[derive(Debug)]
pub struct Caller<O: Owner> {
    /// Until then. Nobody else can have them, which need not be proved at each call.
    own: Option<Box<Calls<O>>>,
    /// From then on.
    lent: Option<Arc<Calls<O>>>,
}

impl<O: Owner> Caller<O> {
    /// Takes `calls`.
    pub fn new(calls: Calls<O>) -> Self {
        Caller { own: Some(Box::new(calls)), lent: None }
    }

    /// Returns a handle of the calls for somebody else.
    pub(super) fn lend(&mut self) -> &Arc<Calls<O>> {
        let own = &mut self.own;
        self.lent.get_or_insert_with(|| Arc::from(own.take().expect("own until they are lent")))
    }

    /// Returns the calls; `None` if anybody else may use them too.
    #[inline]
    fn alone(&mut self) -> Option<&mut Calls<O>> {
        match &mut self.own {
            Some(own) => Some(own),
            None => self.lent.as_mut().and_then(Arc::get_mut),
        }
    }

    /// Posts `call` as soon as there is a slot, and waits for its outcome. After an error no worker has it.
    #[inline]
    pub fn call(&mut self, call: &Call<'_>) -> CallResult<Outcome<O::Cause>, O::Cause> {
        match self.alone() {
            Some(calls) => call_one(&mut Exclusive::new(calls), call),
            None => call_one(&mut Locked::new(self), call),
        }
    }

    /// Posts `call`, whose place was found for it, and waits for its outcome.
    #[inline]
    pub fn call_in_place(
        &mut self,
        call: &Call<'_>,
    ) -> Result<Outcome<O::Cause>, CallError<O::Cause>> {
        match self.alone() {
            Some(calls) => post_and_wait(&mut Exclusive::new(calls), call),
            None => post_and_wait(&mut Locked::new(self), call),
        }
    }

    /// Posts `calls` as slots become free and waits for all outcomes, which it appends to `outcomes` in the order of
    /// the calls. If posting fails, those posted before are waited for nevertheless.
    pub fn call_all(
        &mut self,
        calls: &[Call<'_>],
        outcomes: &mut Vec<Outcome<O::Cause>>,
    ) -> CallResult<(), O::Cause> {
        match self.alone() {
            Some(alone) => call_all(&mut Exclusive::new(alone), calls, outcomes),
            None => call_all(&mut Locked::new(self), calls, outcomes),
        }
    }

    /// Posts `call` without waiting; [`CallError::Busy`] if each slot of each worker has a call in flight.
    pub(super) fn submit(&mut self, call: &Call<'_>) -> CallResult<Ticket, O::Cause> {
        let mut locked = Locked::waiting(self, Spin::Never);
        if locked.workers().must_be_replaced() {
            return Ok(Called::MustReplace);
        }
        if let Posted::Ticket(ticket) = locked.post(call)? {
            return Ok(Called::Done(ticket));
        }
        locked.poll_once(); // replies may be there that nobody has seen
        match locked.post(call)? {
            Posted::Ticket(ticket) => Ok(Called::Done(ticket)),
            Posted::Busy => Err(CallError::Busy),
        }
    }
}

impl<O: Owner> Deref for Caller<O> {
    type Target = Calls<O>;

    #[inline]
    fn deref(&self) -> &Calls<O> {
        match &self.own {
            Some(own) => own,
            None => self.lent.as_deref().expect("lent if not own"),
        }
    }
}

impl<O: Owner> Drop for Caller<O> {
    /// Fails what is in flight: asynchronous calls may outlive their caller.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return; // what is in flight is the parent's
        }
        self.close(Failure::WorkerLost("its executor was dropped"));
    }
}

/// Posts `call` and waits for its outcome, unless the connections must be replaced first.
#[inline]
fn call_one<C: Copy + Debug + PartialEq>(
    progress: &mut impl Progress<Cause = C>,
    call: &Call<'_>,
) -> CallResult<Outcome<C>, C> {
    if progress.workers().must_be_replaced() {
        return Ok(Called::MustReplace);
    }
    post_and_wait(progress, call).map(Called::Done)
}

/// Posts `call` as soon as there is a slot and waits for its outcome.
#[inline]
fn post_and_wait<C: Copy + Debug + PartialEq>(
    progress: &mut impl Progress<Cause = C>,
    call: &Call<'_>,
) -> Result<Outcome<C>, CallError<C>> {
    let ticket = loop {
        match progress.post(call)? {
            Posted::Ticket(ticket) => break ticket,
            Posted::Busy => progress.advance(),
        }
    };
    loop {
        if let Some(outcome) = progress.workers().tickets.take(ticket) {
            return Ok(outcome);
        }
        progress.advance();
    }
}

fn call_all<C: Copy + Debug + PartialEq>(
    progress: &mut impl Progress<Cause = C>,
    calls: &[Call<'_>],
    outcomes: &mut Vec<Outcome<C>>,
) -> CallResult<(), C> {
    if progress.workers().must_be_replaced() {
        return Ok(Called::MustReplace);
    }
    let mut in_flight = VecDeque::new();
    let mut rest = calls.iter();
    let mut next = rest.next();
    let mut failed = Ok(());
    loop {
        while let Some(call) = next {
            match progress.post(call) {
                Ok(Posted::Ticket(ticket)) => {
                    in_flight.push_back(ticket);
                    next = rest.next();
                }
                Ok(Posted::Busy) => break,
                Err(error) => {
                    failed = Err(error);
                    next = None;
                }
            }
        }
        // Outcomes are taken in order; that does not keep slots from being used again.
        while let Some(outcome) =
            in_flight.front().and_then(|ticket| progress.workers().tickets.take(*ticket))
        {
            in_flight.pop_front();
            outcomes.push(outcome);
        }
        if in_flight.is_empty() && next.is_none() {
            return failed.map(Called::Done);
        }
        progress.advance();
    }
}
