//! One run after another of a graph, as many at a time as it has room for.

use std::collections::VecDeque;

use super::compiled::{CompiledGraph, Run};
use crate::error::{Error, Result};

/// The outputs of the runs of [`CompiledGraph::map`], in the order of their inputs.
///
/// It takes inputs as there is room for runs. Dropping it gives up the runs that are under way: their slots are free
/// when they are over.
#[derive(Debug)]
pub struct Map<'g, I: Iterator> {
    graph: &'g mut CompiledGraph,
    inputs: I,
    /// An input for which there was no room.
    held: Option<I::Item>,
    /// Runs, in order; or why one could not begin.
    begun: VecDeque<Result<Run>>,
}

impl<'g, I: Iterator> Map<'g, I> {
    pub(super) fn new(graph: &'g mut CompiledGraph, inputs: I) -> Self {
        Map { graph, inputs, held: None, begun: VecDeque::new() }
    }
}

impl<I> Map<'_, I>
where
    I: Iterator,
    I::Item: AsRef<[u8]>,
{
    /// Begins as many runs as there is room for.
    fn fill(&mut self) {
        while self.begun.len() < self.graph.width() {
            let Some(input) = self.held.take().or_else(|| self.inputs.next()) else { return };
            match self.graph.submit(input.as_ref()) {
                // Room comes when the first of them is fetched. If there is none, others have all of it.
                Err(Error::AllSlotsBusy) if !self.begun.is_empty() => {
                    self.held = Some(input);
                    return;
                }
                begun => self.begun.push_back(begun),
            }
        }
    }
}

impl<I> Iterator for Map<'_, I>
where
    I: Iterator,
    I::Item: AsRef<[u8]>,
{
    type Item = Result<Vec<Vec<u8>>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fill();
        let run = self.begun.pop_front()?;
        let outputs = run.and_then(|run| self.graph.wait(run));
        self.fill(); // the next one is under way while the caller uses this one
        Some(outputs)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let here = self.begun.len() + usize::from(self.held.is_some());
        let (least, most) = self.inputs.size_hint();
        (least.saturating_add(here), most.and_then(|most| most.checked_add(here)))
    }
}

impl<I: Iterator> Drop for Map<'_, I> {
    fn drop(&mut self) {
        for run in self.begun.drain(..).flatten() {
            self.graph.abandon(run);
        }
    }
}
