//! The call of a function, from inside.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::end::Denied;
use crate::interface::{self, Area};
use crate::output::Output;

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct About {
    /// Number of the function in its graph.
    pub function: u16,
    /// Which of the workers of that function this is, from 0.
    pub member: u16,
    /// How many it has.
    pub members: u16,
    /// Slot of the run: no other run that is under way has it.
    pub slot: u16,
    /// How many inputs there are, those that are not there in this run included.
    pub inputs: u32,
    /// How many edges lead from it.
    pub edges: u32,
}

/// A call that is under way: what a function of a graph may ask for more. It stays on the thread of the call, and ends
/// with it. In a call that belongs to no graph, all is refused with [`Denied::Rights`].
#[derive(Debug)]
pub struct Call<'a> {
    /// Where its output goes. `None`: nothing calls.
    area: Option<Area>,
    of: PhantomData<(&'a [u8], *const ())>,
}

impl<'a> Call<'a> {
    /// Makes one that belongs to no graph: for tests.
    pub fn outside() -> Self {
        Call { area: None, of: PhantomData }
    }

    /// Makes that of a function whose output goes to `area`.
    pub(crate) fn inside(area: Area) -> Self {
        Call { area: Some(area), of: PhantomData }
    }

    fn area(&self) -> Result<Area, Denied> {
        self.area.ok_or(Denied::Rights)
    }

    /// Returns who is called. `None`: the call belongs to no graph.
    pub fn about(&self) -> Option<About> {
        self.area.and_then(|_| interface::about())
    }

    /// Returns input `number`. Input 0 is the one that the function is called with, if that is there.
    pub fn input(&self, number: u32) -> Result<&'a [u8], Denied> {
        let area = self.area()?;
        interface::input(number, area)
    }

    /// Returns where to write what goes over edge `edge` while the function runs: to send it before the function
    /// returns, or to call the function behind that edge. [`Denied::Rights`] where an edge takes what the function
    /// returns.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rfaas_function::{Call, Failure, Output};
    /// fn ask(input: &[u8], output: &mut Output<'_>, call: &mut Call<'_>) -> Result<(), Failure> {
    ///     let mut soon = call.output(0)?;
    ///     soon.extend(b"it takes a while")?;
    ///     soon.emit()?;
    ///
    ///     let mut question = call.output(1)?;
    ///     question.extend(input)?;
    ///     let answer = question.call(Duration::from_millis(1))?;
    ///     output.extend(answer)?;
    ///     Ok(())
    /// }
    /// ```
    pub fn output(&mut self, edge: u32) -> Result<Sending<'_>, Denied> {
        let area = self.area()?;
        let output = interface::output(edge, area)?;
        Ok(Sending { edge, output })
    }
}

/// What goes over an edge while the function runs. To be written like any [`Output`], and then to be
/// [sent](Self::emit), or [called with](Self::call).
#[derive(Debug)]
pub struct Sending<'c> {
    edge: u32,
    output: Output<'c>,
}

impl<'c> Sending<'c> {
    fn bytes(&self) -> u32 {
        u32::try_from(self.output.written().len()).expect("its room has 32 bits")
    }

    /// Sends it now. What the function returns does not go over that edge any more.
    pub fn emit(self) -> Result<(), Denied> {
        interface::emit(self.edge, self.bytes())
    }

    /// Calls the function behind the edge with it, and returns the answer, which has to come within `limit`.
    pub fn call(self, limit: Duration) -> Result<&'c [u8], Denied> {
        interface::call(self.edge, self.bytes(), limit)
    }
}

impl<'c> Deref for Sending<'c> {
    type Target = Output<'c>;

    fn deref(&self) -> &Output<'c> {
        &self.output
    }
}

impl<'c> DerefMut for Sending<'c> {
    fn deref_mut(&mut self) -> &mut Output<'c> {
        &mut self.output
    }
}
