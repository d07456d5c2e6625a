//! What a worker has to do for one function of a graph. Pure.

use std::time::Duration;

use rfaas_protocol::edge::{InputKind, Join, OutputKind, Takes};

/// One function, as a worker has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its number in the library, and in the graph.
    pub function: (u32, u16),
    /// Which of the workers of that function this is, from 0, and how many it has.
    pub member: (u16, u16),
    /// When it is called.
    pub join: JoinPlan,
    /// How it takes its inputs.
    pub takes: Takes,
    /// It takes runs in batches. Then it is the only stage of its worker, and has one input.
    pub batch: Option<BatchPlan>,
    /// What comes, by number.
    pub inputs: Vec<StageInput>,
    /// What goes, by number: first those that the function knows.
    pub outputs: Vec<StageOutput>,
}

/// When a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinPlan {
    /// With which inputs.
    pub kind: Join,
    /// How many, for [`Join::Of`].
    pub wanted: u32,
    /// With those that are there so long after the first one, at the latest.
    pub within: Option<Duration>,
}

impl JoinPlan {
    /// With all of them.
    pub const ALL: JoinPlan = JoinPlan { kind: Join::All, wanted: 0, within: None };
}

/// How runs are put together for a function that takes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// The most of them.
    pub most: u16,
    /// How long the first one waits for others.
    pub wait: Duration,
}

/// Something that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInput {
    /// Where from.
    pub from: InputFrom,
    /// What it is.
    pub kind: InputKind,
}

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFrom {
    /// The edge of this number that comes to the worker.
    Edge(usize),
    /// The stage of this number of the same worker.
    Here(usize),
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOutput {
    /// What it is.
    pub kind: OutputKind,
    /// The most of it, in bytes.
    pub bytes: u32,
    /// Numbers of the edges that go from the worker: one for each worker that it goes to.
    pub to: Vec<usize>,
    /// Stages of the same worker that it goes to, and which input of theirs it is.
    pub here: Vec<(usize, usize)>,
}

impl Stage {
    /// Returns how many edges the function knows: it may send over these.
    pub fn edges(&self) -> usize {
        let known =
            |output: &&StageOutput| !matches!(output.kind, OutputKind::Done | OutputKind::Trace);
        self.outputs.iter().take_while(known).count()
    }

    /// Returns whether the function may send before it returns: then each edge has an area of its own, behind that of
    /// what it returns.
    pub fn sends(&self) -> bool {
        let sends =
            |output: &StageOutput| matches!(output.kind, OutputKind::Done | OutputKind::Call);
        self.outputs.iter().any(sends)
    }

    /// Returns whether the function may say that it is called again.
    pub fn loops(&self) -> bool {
        self.inputs.iter().any(|input| input.kind == InputKind::Again)
    }

    /// Returns how many areas for outputs it has, and one more if it loops.
    pub fn areas(&self) -> usize {
        let own = if self.sends() { self.edges() } else { 0 };
        1 + own + usize::from(self.loops())
    }

    /// Returns the inputs that a call waits for, a bit each.
    pub(super) fn joined(&self) -> u64 {
        let waited = |input: &StageInput| matches!(input.kind, InputKind::Whole | InputKind::Items);
        let bits = self.inputs.iter().enumerate().filter(|(_, input)| waited(input));
        bits.fold(0, |bits, (number, _)| bits | 1 << number)
    }

    /// Returns the only edge of the worker that all that the function returns goes over, if that may be in place.
    pub(super) fn only_edge(&self) -> Option<usize> {
        let [output] = &self.outputs[..self.edges()] else { return None };
        match (output.kind, &output.to[..], &output.here[..]) {
            (OutputKind::Whole, [edge], []) if self.areas() == 1 && self.takes == Takes::Whole => {
                Some(*edge)
            }
            _ => None,
        }
    }
}
