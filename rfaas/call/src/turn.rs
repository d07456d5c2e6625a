//! What a function of a graph may ask for while it is called.

use std::ffi::c_void;

use crate::place::Place;

/// A run of a batch, as its function has it: `struct rfaas_run`. It only grows, at its end.
///
/// What the function sets is read when it has returned, and may be anything.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BatchRun {
    /// Size of this.
    pub bytes: u32,
    /// Slot of the run: no other run that is under way has it.
    pub slot: u32,
    /// Where its input is.
    pub input: *const c_void,
    /// How many bytes that has.
    pub input_bytes: u32,
    /// How many bytes its output holds.
    pub room: u32,
    /// Where that goes.
    pub output: *mut c_void,
    /// Set by the function: how many bytes of output it has written. More than any output holds, until it is set.
    pub output_bytes: u32,
    /// Likewise: 0 if that is so; [`FAILED`](Self::FAILED), [`NO_VALUE`](Self::NO_VALUE).
    pub ended: u32,
    /// Likewise: the code of a run that has failed.
    pub code: i32,
}

impl BatchRun {
    /// The run has failed, with a code.
    pub const FAILED: u32 = 1;
    /// It has no value.
    pub const NO_VALUE: u32 = 2;

    pub(crate) fn new(place: Place<'_>, slot: u16, room: u32) -> Self {
        BatchRun {
            bytes: size_of::<BatchRun>() as u32,
            slot: slot.into(),
            input: place.input().cast_const().cast(),
            input_bytes: place.input_bytes(),
            room,
            output: place.output().cast(),
            output_bytes: u32::MAX,
            ended: 0,
            code: 0,
        }
    }
}

/// Who is called, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Why something is not done that a function asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is no such input or edge.
    NoSuch,
    /// The input did not come, or has no value.
    Absent,
    /// The graph does not say that this function may do that.
    Rights,
    /// More bytes than fit.
    Bounds,
    /// It was sent in this run, or the answer to the call before has not come.
    Busy,
    /// The answer did not come in time.
    Time,
    /// The function that was called has failed, or its worker is gone.
    Lost,
}

/// How a function ends a call otherwise than by the number of bytes that it returns, which does not count then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is called again in the same run, with what is at the start of its output area as input 0: so many bytes. They
    /// are elsewhere then than where it writes its output.
    Again(u32),
    /// The run has failed, with a code.
    Failed(i32),
    /// It has no value.
    NoValue,
}

/// One call of a function of a graph, from inside. Its addresses are for the function, and valid until it returns.
pub trait Turn {
    /// Returns who is called.
    fn about(&self) -> About;

    /// Returns where the output of this call goes, and how many bytes that holds: the area of the call's
    /// [`Place`](crate::Place).
    fn area(&self) -> (*mut u8, u32);

    /// Returns where input `number` is, and how many bytes it has. Input 0 is the one that the function is called with,
    /// unless that is not there.
    fn input(&self, number: u32) -> Result<(*const u8, u32), Denied>;

    /// Returns where what goes over edge `edge` is to be written, and how many bytes it holds. Where the function may
    /// not send before it returns, that is the same for all edges.
    fn output(&self, edge: u32) -> Result<(*mut u8, u32), Denied>;

    /// Sends the first `bytes` bytes of [`output`](Self::output) over `edge` now; it is not sent again on return.
    fn emit(&mut self, edge: u32, bytes: u32) -> Result<(), Denied>;

    /// Calls the function behind `edge` with the first `bytes` bytes of [`output`](Self::output), and waits for at most
    /// `limit_ns` nanoseconds. Returns where the answer is, and how many bytes it has: valid until the next call over
    /// that edge.
    fn call(&mut self, edge: u32, bytes: u32, limit_ns: u64) -> Result<(*const u8, u32), Denied>;

    /// Notes a number under a name, for the trace of the run. The last one of a name counts. Without a trace, it is
    /// nothing.
    fn note(&mut self, key: &[u8], value: i64) -> Result<(), Denied>;

    /// Ends this call so.
    fn end(&mut self, verdict: Verdict) -> Result<(), Denied>;
}
