//! How runs have ended, and what callers are told.

use std::sync::Arc;
use std::time::Duration;

use rfaas_protocol::edge::FailedBecause;

use super::lane::{Lane, Plan};
use super::slots::RunFailure;
use super::workers::Loss;
use crate::cause::Cause;
use crate::error::{Error, Result};

/// How a run has ended.
pub(super) type Ended = Result<Vec<Vec<u8>>, RunEnd>;

/// Why a run has no outputs.
#[derive(Clone, Debug)]
pub(super) enum RunEnd {
    /// A function of it has failed, at this node.
    Failed(RunFailure, String),
    /// It took longer than this.
    TimeLimit(Duration),
    /// Its lane is lost.
    Lost(Arc<Lost>),
}

/// Why a lane was lost, with the names that were right when it was.
#[derive(Debug)]
pub(super) struct Lost {
    /// Function, worker and node, unless it is not of one of them.
    at: Option<(String, usize, String)>,
    why: Why,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    Ended(Cause),
    Worker(&'static str),
}

impl Lost {
    /// Returns what is told of `lane`, which is lost by `loss`.
    pub(super) fn of(plan: &Plan, lane: &mut Lane, loss: Loss) -> Arc<Lost> {
        let (member, why) = match loss {
            Loss::Ended(member, cause) => (Some(member), Why::Ended(cause)),
            Loss::Worker(member, reason) => (Some(member), Why::Worker(reason)),
            Loss::TimeLimit(_) => {
                (None, Why::Worker("another run of its lane went past the time limit"))
            }
            Loss::Here => (None, Why::Worker("the device of this machine refused a request")),
        };
        let at = member.and_then(|member| {
            let node = lane.leases.get(member)?.node().to_owned();
            let (_, workers) = lane.ready()?;
            let member = workers.members.get(member)?;
            let function = plan.graph.functions.get(*member.functions.first()?)?;
            Some((function.name.clone(), member.worker, node))
        });
        Arc::new(Lost { at, why })
    }

    pub(super) fn to_error(&self) -> Error {
        let source = match self.why {
            Why::Ended(cause) => cause.into(),
            Why::Worker(reason) => Error::WorkerLost { reason },
        };
        match &self.at {
            None => source,
            Some((function, worker, node)) => Error::GraphFailed {
                function: function.clone(),
                worker: *worker,
                node: node.clone(),
                source: Box::new(source),
            },
        }
    }
}

impl RunEnd {
    /// Adds the node that `failure` comes from.
    pub(super) fn failed(lane: &Lane, failure: RunFailure) -> Self {
        let node = lane.leases.get(failure.member).map(|lease| lease.node().to_owned());
        RunEnd::Failed(failure, node.unwrap_or_default())
    }

    /// Makes what a caller is told of it.
    pub(super) fn into_error(self, plan: &Plan) -> Error {
        match self {
            RunEnd::TimeLimit(after) => Error::TimeLimit { after },
            RunEnd::Lost(lost) => lost.to_error(),
            RunEnd::Failed(
                RunFailure { function, worker, because, detail: (returned, most), .. },
                node,
            ) => {
                let name = plan.graph.functions.get(function).map(|function| &function.name);
                let source = match because {
                    FailedBecause::OutputTooLarge => {
                        let capacity = usize::try_from(most).unwrap_or(usize::MAX);
                        Error::OutputTooLarge { needed: returned.into(), capacity }
                    }
                    FailedBecause::Function => {
                        Error::FunctionFailed { code: i32::from_le_bytes(returned.to_le_bytes()) }
                    }
                    FailedBecause::NoValue => Error::NoValue,
                    FailedBecause::NotItems => Error::NotItems,
                    FailedBecause::TooFew => Error::TooFewInputs { there: returned, wanted: most },
                };
                Error::GraphFailed {
                    function: name.cloned().unwrap_or_default(),
                    worker,
                    node,
                    source: Box::new(source),
                }
            }
        }
    }
}
