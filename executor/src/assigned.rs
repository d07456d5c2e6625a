//! What an executor works for: known from the start, or sent by the manager while it stands by.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;

use rfaas_program::local_channel::{LocalChannel, from_file};
use rfaas_protocol::assignment::Assignment;

use crate::ended::Error;
use crate::library::{GivenFile, Inherited};
use crate::plan::{BadAssignment, Plan, StandbyPlan};

/// What an executor works for.
#[derive(Debug)]
pub enum Work {
    /// This is known from the start, and the library's file as far as this process was started with it.
    Assigned(Assignment, GivenFile),
    /// It comes over this. Until then, the libraries whose files these are can be loaded.
    Awaited(LocalChannel, Vec<OwnedFd>),
}

/// An assignment, checked, with what came with it.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) assignment: Assignment,
    pub(crate) plan: Plan,
    pub(crate) given: GivenFile,
    /// At its end when `/tmp` is as large as the assignment says; `None`: it is.
    pub(crate) grown: Option<PipeReader>,
}

impl Assigned {
    pub(crate) fn new(
        assignment: Assignment,
        given: GivenFile,
        grown: Option<PipeReader>,
        standby: &StandbyPlan,
    ) -> Result<Self, BadAssignment> {
        let plan = Plan::try_from(assignment.clone())?.fits(standby.most_workers)?;
        Ok(Assigned { assignment, plan, given, grown })
    }

    /// Reads what has come with the descriptors `given`.
    pub(crate) fn received(given: Vec<OwnedFd>, standby: &StandbyPlan) -> Result<Self, Error> {
        let odd = |error: io::Error| Error::failed("the assignment", &error);
        let mut given = given.into_iter();
        let mut next = || given.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
        let assignment = next().map_err(odd)?;
        let assignment: Assignment = from_file(File::from(assignment)).map_err(odd)?;
        let grown = match standby.memory == Some(assignment.memory) {
            true => None,
            false => Some(PipeReader::from(next().map_err(odd)?)),
        };
        let given = Inherited::passed(given.collect()).take(assignment.library).map_err(odd)?;
        Ok(Assigned::new(assignment, given, grown, standby)?)
    }
}
