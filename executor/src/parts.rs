//! What the workers of a graph are for, as the client says, checked. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use rfaas_call::edge::{BatchPlan, InputFrom, JoinPlan, Stage, StageInput, StageOutput};
use rfaas_protocol::edge::{InputKind, Join, MAX_EDGES, MAX_ON_LINK, OutputKind, Takes};
use rfaas_protocol::session::{EdgeHere, EdgeOut, Part, ToExecutor};
use rfaas_protocol::{Malformed, Secret};

const BATCH: Malformed = Malformed::Field("batch of a part");
const TOO_LARGE: Malformed = Malformed::Field("bytes of an edge");
/// Most functions of a worker, most edges that come to it, and most that go from it: each costs memory for
/// each slot.
const MOST_OF_A_WORKER: usize = 1024;

/// Where what comes over an edge comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client, which writes to the slots that the worker offers when it dials.
    Client,
    /// Who dials with this.
    Dialler(Secret),
}

/// An edge that comes to a worker, or goes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge<T> {
    /// What it is with: of an input where it comes from, of an output whom to dial and what to show there.
    pub with: T,
    /// Largest payload, in bytes.
    pub bytes: u32,
    /// Which of the edges with the same it is.
    on_link: u16,
}

/// Edges that share a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan<T> {
    /// What they are with.
    pub with: T,
    /// Their numbers among those that come, or go, in the order that both ends have.
    pub edges: Vec<usize>,
}

/// A function that a worker calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedStage {
    /// Its name in the library.
    pub name: String,
    /// What is to be done. The number of the function in the library is not known yet.
    pub stage: Stage,
    /// How much it may write before it is stopped: as much as the largest of its outputs holds, or its input has. What
    /// is more than an edge holds is refused when it returns.
    pub area_bytes: u32,
}

/// What a worker is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Its functions, of which each is behind those that lead to it here.
    pub stages: Vec<NamedStage>,
    /// Edges that come, by number.
    pub inputs: Vec<Edge<Source>>,
    /// Edges that go, by number.
    pub outputs: Vec<Edge<(SocketAddr, Secret)>>,
    /// How they share connections.
    pub in_links: Vec<LinkPlan<Source>>,
    /// How those that go do.
    pub out_links: Vec<LinkPlan<(SocketAddr, Secret)>>,
}

impl Work {
    /// Returns how many links come from who dials.
    pub fn dialled_by(&self) -> usize {
        self.in_links.iter().filter(|link| link.with != Source::Client).count()
    }
}

/// What was told so far.
#[derive(Debug)]
pub struct Parts {
    workers: usize,
    /// Most bytes of an input of a worker, and of an output: what was asked for with the executor, and fits the memory
    /// of the lease.
    most: (u32, u32),
    /// Most edges of a link.
    most_on_link: usize,
    told: Vec<Work>,
}

/// What is over edges of this number, until all of them are told.
const NOTHING: StageOutput =
    StageOutput { kind: OutputKind::Whole, bytes: 0, to: Vec::new(), here: Vec::new() };

impl Parts {
    /// Waits for the parts of so many workers. An input of one, and an output, have at most these bytes; edges have
    /// `slots` slots each.
    pub fn new(workers: usize, (input_bytes, output_bytes): (u32, u32), slots: u16) -> Self {
        let most_on_link = MAX_ON_LINK as usize / usize::from(slots.max(1));
        Parts { workers, most: (input_bytes, output_bytes), most_on_link, told: Vec::new() }
    }

    /// Takes what the client says next. Returns what each worker is for when it has said that this is all.
    pub fn take(&mut self, message: &ToExecutor) -> Result<Option<Vec<Work>>, Malformed> {
        match message {
            ToExecutor::Part(part) => self.add_part(part)?,
            ToExecutor::InputOfClient(input) => {
                let bytes = self.input_bytes(input.bytes.get())?;
                let work = self.last()?;
                let known = work.inputs.iter().position(|input| input.with == Source::Client);
                let edge = match known {
                    Some(edge) => {
                        let input = &mut work.inputs[edge];
                        input.bytes = input.bytes.max(bytes);
                        edge
                    }
                    None => {
                        add(&mut work.inputs, Edge { with: Source::Client, bytes, on_link: 0 })?
                    }
                };
                self.add_input(InputFrom::Edge(edge), InputKind::Whole, bytes)?;
            }
            ToExecutor::EdgeIn(edge) => {
                let (bytes, kind) =
                    (self.input_bytes(edge.bytes.get())?, InputKind::from_wire(edge.kind)?);
                if kind == InputKind::Again {
                    return Err(Malformed::Field("kind of an input"));
                }
                let (with, on_link) = (Source::Dialler(edge.secret), edge.on_link.get());
                let input = Edge { with, bytes, on_link };
                let edge = add(&mut self.last()?.inputs, input)?;
                self.add_input(InputFrom::Edge(edge), kind, bytes)?;
            }
            ToExecutor::EdgeHere(edge) => self.add_edge_here(edge)?,
            ToExecutor::EdgeOut(edge) => self.add_output(edge)?,
            ToExecutor::Complete(_) => {
                if self.told.len() != self.workers {
                    return Err(Malformed::Field("number of workers"));
                }
                for Work { stages, .. } in &self.told {
                    stages.iter().try_for_each(|named| check(&named.stage))?;
                    if stages.len() > 1 && stages.iter().any(|named| named.stage.batch.is_some()) {
                        return Err(BATCH);
                    }
                }
                for work in &mut self.told {
                    work.in_links = links(&work.inputs, self.most_on_link)?;
                    work.out_links = links(&work.outputs, self.most_on_link)?;
                }
                return Ok(Some(std::mem::take(&mut self.told)));
            }
        }
        Ok(None)
    }

    fn add_part(&mut self, part: &Part) -> Result<(), Malformed> {
        let worker = usize::from(part.worker.get());
        if worker == self.told.len() && worker < self.workers {
            self.told.push(Work::default());
        } else if worker + 1 != self.told.len() {
            return Err(Malformed::Field("worker of a part"));
        }
        let within = part.within_ms.get();
        let batch = BatchPlan {
            most: part.batch.get(),
            wait: Duration::from_micros(part.batch_wait_us.get().into()),
        };
        let stage = Stage {
            function: (0, part.function.get()),
            member: (part.member.get(), part.members.get()),
            join: JoinPlan {
                kind: Join::from_wire(part.join)?,
                wanted: part.wanted.get().into(),
                within: (within > 0).then(|| Duration::from_millis(within.into())),
            },
            takes: Takes::from_wire(part.takes)?,
            batch: (batch.most > 0).then_some(batch),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let name = part.name.get()?.to_owned();
        add(&mut self.last()?.stages, NamedStage { name, stage, area_bytes: 0 })?;
        Ok(())
    }

    fn last(&mut self) -> Result<&mut Work, Malformed> {
        self.told.last_mut().ok_or(Malformed::Field("edge of no part"))
    }

    fn input_bytes(&self, bytes: u32) -> Result<u32, Malformed> {
        if bytes > self.most.0 { Err(TOO_LARGE) } else { Ok(bytes) }
    }

    /// Adds an input to the part that was told last. Returns which part that is, and the number of the input.
    fn add_input(
        &mut self,
        from: InputFrom,
        kind: InputKind,
        bytes: u32,
    ) -> Result<(usize, usize), Malformed> {
        let stages = &mut self.last()?.stages;
        let number = stages.len().saturating_sub(1);
        let named = stages.last_mut().ok_or(Malformed::Field("edge of no part"))?;
        let inputs = &mut named.stage.inputs;
        if inputs.len() == MAX_EDGES {
            return Err(Malformed::Field("number of inputs"));
        }
        inputs.push(StageInput { from, kind });
        named.area_bytes = named.area_bytes.max(bytes);
        Ok((number, named.stage.inputs.len() - 1))
    }

    fn add_edge_here(&mut self, edge: &EdgeHere) -> Result<(), Malformed> {
        let (from, kind) = (usize::from(edge.from.get()), InputKind::from_wire(edge.kind)?);
        let bytes = self.input_bytes(edge.bytes.get())?;
        let own = self.last()?.stages.len().checked_sub(1);
        match kind {
            InputKind::Again if own == Some(from) => {
                self.add_input(InputFrom::Here(from), kind, bytes)?;
                Ok(())
            }
            InputKind::Whole | InputKind::Items if own.is_some_and(|own| from < own) => {
                let target = self.add_input(InputFrom::Here(from), kind, bytes)?;
                let number = usize::from(edge.edge.get());
                let output = self.output(from, number, OutputKind::Whole, bytes)?;
                output.here.push(target);
                Ok(())
            }
            _ => Err(Malformed::Field("edge within a worker")),
        }
    }

    fn add_output(&mut self, edge: &EdgeOut) -> Result<(), Malformed> {
        let (bytes, kind) = (edge.bytes.get(), OutputKind::from_wire(edge.kind)?);
        if bytes > self.most.1 {
            return Err(TOO_LARGE);
        }
        let work = self.last()?;
        let from = work.stages.len().saturating_sub(1);
        let (with, on_link) = ((edge.to.into(), edge.secret), edge.on_link.get());
        let output = Edge { with, bytes, on_link };
        let connection = add(&mut work.outputs, output)?;
        let output = self.output(from, edge.edge.get().into(), kind, bytes)?;
        if output.to.len() == MAX_EDGES {
            return Err(Malformed::Field("number of workers that an edge goes to"));
        }
        output.to.push(connection);
        Ok(())
    }

    /// Returns an output of a part of the last worker, which is of this kind, or becomes one.
    fn output(
        &mut self,
        part: usize,
        number: usize,
        kind: OutputKind,
        bytes: u32,
    ) -> Result<&mut StageOutput, Malformed> {
        let named = self.last()?.stages.get_mut(part).ok_or(Malformed::Field("edge of no part"))?;
        if number >= MAX_EDGES {
            return Err(Malformed::Field("number of an edge"));
        }
        let outputs = &mut named.stage.outputs;
        if outputs.len() <= number {
            outputs.resize(number + 1, NOTHING);
        }
        let output = &mut outputs[number];
        let is_new = output.to.is_empty() && output.here.is_empty();
        if is_new {
            (output.kind, output.bytes) = (kind, bytes);
        } else if (output.kind, output.bytes) != (kind, bytes) {
            return Err(Malformed::Field("kind of an output"));
        }
        named.area_bytes = named.area_bytes.max(bytes);
        Ok(output)
    }
}

/// Checks what is known only when all is told.
fn check(stage: &Stage) -> Result<(), Malformed> {
    let count = |kind: InputKind| stage.inputs.iter().filter(|input| input.kind == kind).count();
    let items = count(InputKind::Items);
    let joined = items + count(InputKind::Whole);
    let is_waited_for =
        |input: &StageInput| matches!(input.kind, InputKind::Whole | InputKind::Items);
    if joined == 0 || !stage.inputs[..joined].iter().all(is_waited_for) {
        return Err(Malformed::Field("inputs of a part"));
    }
    let JoinPlan { kind, wanted, within } = stage.join;
    let makes_sense = match kind {
        Join::All => true,
        Join::Of => (1..=joined).contains(&(wanted as usize)),
        Join::Any => within.is_none() && stage.takes == Takes::Whole,
    };
    if !makes_sense {
        return Err(Malformed::Field("join of a part"));
    }
    if stage.takes != Takes::Whole && items == 0 || count(InputKind::Again) > 1 {
        return Err(Malformed::Field("inputs of a part"));
    }
    let alone = stage.inputs.len() == 1
        && (stage.join.kind, stage.join.within) == (Join::All, None)
        && stage.takes == Takes::Whole
        && !stage.sends();
    if stage.batch.is_some() && !alone {
        return Err(BATCH);
    }
    let calls = stage.outputs.iter().filter(|output| output.kind == OutputKind::Call);
    let goes_to_one = |output: &&StageOutput| output.to.len() == 1 && output.here.is_empty();
    if calls.clone().count() != count(InputKind::Answer)
        || !calls.clone().all(|one| goes_to_one(&one))
    {
        return Err(Malformed::Field("calls of a part"));
    }
    let is_known =
        |output: &StageOutput| !matches!(output.kind, OutputKind::Done | OutputKind::Trace);
    let goes_somewhere = |output: &StageOutput| !output.to.is_empty() || !output.here.is_empty();
    let (known, others) = stage.outputs.split_at(stage.edges());
    if !stage.outputs.iter().all(goes_somewhere) || others.iter().any(is_known) {
        return Err(Malformed::Field("outputs of a part"));
    }
    let sorts = |output: &StageOutput| matches!(output.kind, OutputKind::Each | OutputKind::Keyed);
    match known.iter().any(|output| sorts(output) && !output.here.is_empty()) {
        true => Err(Malformed::Field("outputs of a part")),
        false => Ok(()),
    }
}

/// Finds out which edges share a connection.
fn links<T: Copy + PartialEq>(
    edges: &[Edge<T>],
    most: usize,
) -> Result<Vec<LinkPlan<T>>, Malformed> {
    let mut links: Vec<LinkPlan<T>> = Vec::new();
    for (number, edge) in edges.iter().enumerate() {
        match links.iter_mut().find(|link| link.with == edge.with) {
            Some(link) => link.edges.push(number),
            None => links.push(LinkPlan { with: edge.with, edges: vec![number] }),
        }
    }
    for LinkPlan { edges: numbers, .. } in &mut links {
        numbers.sort_unstable_by_key(|number| edges[*number].on_link);
        let mut in_order = numbers.iter().enumerate();
        let each_once = in_order.all(|(at, number)| usize::from(edges[*number].on_link) == at);
        if numbers.len() > most || !each_once {
            return Err(Malformed::Field("edges of a link"));
        }
    }
    Ok(links)
}

fn add<T>(to: &mut Vec<T>, one: T) -> Result<usize, Malformed> {
    if to.len() == MOST_OF_A_WORKER {
        return Err(Malformed::Field("parts or edges of a worker"));
    }
    to.push(one);
    Ok(to.len() - 1)
}

#[cfg(test)]
mod tests {
    use rfaas_protocol::session::{EdgeIn, InputOfClient, Part as PartMessage};
    use rfaas_protocol::{Empty, Text, WireAddress};

    use super::*;

    const SECRET: Secret = Secret([7; 16]);

    fn part(worker: u16) -> ToExecutor {
        ToExecutor::Part(described(worker))
    }

    fn described(worker: u16) -> PartMessage {
        let name = Text::new("scale").unwrap();
        PartMessage {
            worker: worker.into(),
            function: 3.into(),
            member: 0.into(),
            members: 1.into(),
            join: Join::All.to_wire(),
            wanted: 0.into(),
            takes: Takes::Whole.to_wire(),
            batch: 0.into(),
            within_ms: 0.into(),
            batch_wait_us: 0.into(),
            name,
        }
    }

    fn of_client(bytes: u32) -> ToExecutor {
        ToExecutor::InputOfClient(InputOfClient { bytes: bytes.into() })
    }

    fn edge_in(bytes: u32) -> ToExecutor {
        edge_of(InputKind::Whole, bytes)
    }

    fn edge_of(kind: InputKind, bytes: u32) -> ToExecutor {
        edge_on(0, kind, bytes)
    }

    fn edge_on(on_link: u16, kind: InputKind, bytes: u32) -> ToExecutor {
        let (kind, on_link) = (kind.to_wire(), on_link.into());
        ToExecutor::EdgeIn(EdgeIn { secret: SECRET, bytes: bytes.into(), kind, on_link })
    }

    fn here(from: u16, edge: u16, kind: InputKind) -> ToExecutor {
        let kind = kind.to_wire();
        let (from, edge, bytes) = (from.into(), edge.into(), 8.into());
        ToExecutor::EdgeHere(EdgeHere { from, edge, bytes, kind })
    }

    fn edge_out(bytes: u32) -> ToExecutor {
        out(0, OutputKind::Whole, bytes)
    }

    fn out(edge: u16, kind: OutputKind, bytes: u32) -> ToExecutor {
        let to = WireAddress::from("127.0.0.1:7".parse::<SocketAddr>().unwrap());
        let (edge, kind, on_link) = (edge.into(), kind.to_wire(), 0.into());
        ToExecutor::EdgeOut(EdgeOut {
            to,
            secret: SECRET,
            bytes: bytes.into(),
            edge,
            kind,
            on_link,
        })
    }

    fn edge(with: Source, bytes: u32) -> Edge<Source> {
        Edge { with, bytes, on_link: 0 }
    }

    fn complete() -> ToExecutor {
        ToExecutor::Complete(Empty {})
    }

    fn told(workers: usize, messages: &[ToExecutor]) -> Result<Vec<Work>, String> {
        let mut parts = Parts::new(workers, (100, 50), 16);
        // All edges of a worker have the same secret, and are in order on their link.
        let (mut worker, mut ins, mut outs) = (0, 0u16, 0u16);
        for message in messages {
            let mut message = *message;
            match &mut message {
                ToExecutor::Part(part) if part.worker.get() != worker => {
                    (worker, ins, outs) = (part.worker.get(), 0, 0);
                }
                ToExecutor::EdgeIn(edge) => {
                    edge.on_link = (edge.on_link.get() + ins).into();
                    ins += 1;
                }
                ToExecutor::EdgeOut(edge) => {
                    edge.on_link = outs.into();
                    outs += 1;
                }
                _ => {}
            }
            if let Some(works) = parts.take(&message).map_err(|error| error.to_string())? {
                return Ok(works);
            }
        }
        Err("it is not complete".into())
    }

    #[test]
    fn workers_have_their_edges_in_order() {
        let works = told(
            2,
            &[
                part(0),
                of_client(64),
                edge_out(32),
                out(1, OutputKind::Whole, 16),
                part(1),
                edge_in(32),
                edge_out(32),
                edge_out(32),
                complete(),
            ],
        );
        let works = works.unwrap();
        let [first, second] = &works[..] else { panic!("two workers") };
        let named = &first.stages[0];
        assert_eq!(
            (named.name.as_str(), named.stage.function.1, named.area_bytes),
            ("scale", 3, 64)
        );
        assert_eq!(first.inputs, [edge(Source::Client, 64)]);
        let to = named.stage.outputs.iter().map(|output| output.to.as_slice());
        assert_eq!(to.collect::<Vec<_>>(), [[0], [1]]);
        assert_eq!(second.inputs, [edge(Source::Dialler(SECRET), 32)]);
        assert_eq!((first.dialled_by(), second.dialled_by()), (0, 1));
        let to = ("127.0.0.1:7".parse().unwrap(), SECRET);
        assert_eq!(second.out_links, [LinkPlan { with: to, edges: vec![0, 1] }]);
        assert_eq!(second.stages[0].stage.outputs[0].to, [0, 1], "one edge to two workers");
    }

    #[test]
    fn functions_of_a_worker_lead_to_those_behind_them() {
        let works = told(
            1,
            &[
                part(0),
                of_client(64),
                out(1, OutputKind::Whole, 32),
                part(0),
                of_client(16),
                here(0, 0, InputKind::Whole),
                here(1, 0, InputKind::Again),
                edge_out(1),
                complete(),
            ],
        );
        let works = works.unwrap();
        assert_eq!(works[0].inputs, [edge(Source::Client, 64)], "both have it");
        let [first, second] = &works[0].stages[..] else { panic!("two functions") };
        assert_eq!(first.stage.outputs[0].here, [(1, 1)]);
        assert_eq!(first.stage.outputs[1].to, [0]);
        let input = |from, kind| StageInput { from, kind };
        let inputs = [
            input(InputFrom::Edge(0), InputKind::Whole),
            input(InputFrom::Here(0), InputKind::Whole),
            input(InputFrom::Here(1), InputKind::Again),
        ];
        assert_eq!(second.stage.inputs, inputs);
        assert_eq!((second.stage.areas(), first.stage.areas()), (2, 1));
    }

    #[test]
    fn edges_with_the_same_secret_share_a_link_in_the_order_that_both_ends_have() {
        let edge = |with: u8, on_link| Edge { with, bytes: 1, on_link };
        let told = [edge(7, 1), edge(8, 0), edge(7, 2), edge(7, 0)];
        let link = |with, edges| LinkPlan { with, edges };
        assert_eq!(links(&told, 3), Ok(vec![link(7, vec![3, 0, 2]), link(8, vec![1])]));
        let wrong = Err(Malformed::Field("edges of a link"));
        assert_eq!(links(&told, 2), wrong, "too many");
        assert_eq!(links(&told[..3], 3), wrong, "the first is missing");
        assert_eq!(links(&[edge(7, 0), edge(7, 0)], 3), wrong, "one number twice");
        assert_eq!(links(&[edge(7, u16::MAX)], 3), wrong);
        assert_eq!(links::<u8>(&[], 3), Ok(vec![]));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let many = [vec![part(0)], vec![edge_in(1); MAX_EDGES + 1]].concat();
        let wide = [vec![part(0), edge_in(1)], vec![edge_out(1); MAX_EDGES + 1]].concat();
        let parts = vec![part(0); MOST_OF_A_WORKER + 1];
        let joined = |join: Join, wanted: u16, within: u32| {
            let (join, wanted, within_ms) = (join.to_wire(), wanted.into(), within.into());
            ToExecutor::Part(PartMessage { join, wanted, within_ms, ..described(0) })
        };
        let each = ToExecutor::Part(PartMessage { takes: Takes::Each.to_wire(), ..described(0) });
        let batched = |join: Join, takes: Takes, within: u32| {
            let (join, takes) = (join.to_wire(), takes.to_wire());
            let (batch, wanted, within_ms) = (4.into(), 1.into(), within.into());
            ToExecutor::Part(PartMessage { join, takes, batch, wanted, within_ms, ..described(0) })
        };
        let batch = batched(Join::All, Takes::Whole, 0);
        let call = out(0, OutputKind::Call, 1);
        let answer = edge_of(InputKind::Answer, 1);
        let of_one =
            |rest: Vec<ToExecutor>| [vec![part(0), edge_in(1)], rest, vec![complete()]].concat();
        for (messages, wrong) in [
            (vec![part(1)], "worker of a part"),
            (vec![part(0), of_client(1), part(1)], "worker of a part"),
            (vec![edge_in(1)], "edge of no part"),
            (vec![edge_out(1)], "edge of no part"),
            (vec![part(0), complete()], "inputs of a part"),
            (vec![complete()], "number of workers"),
            (vec![part(0), edge_in(101)], "bytes of an edge"),
            (vec![part(0), edge_in(1), edge_out(51)], "bytes of an edge"),
            (vec![part(0), edge_out(u32::MAX)], "bytes of an edge"),
            (many, "number of inputs"),
            (wide, "number of workers that an edge goes to"),
            (parts, "parts or edges of a worker"),
            (vec![part(0), here(0, 0, InputKind::Whole)], "edge within a worker"),
            (vec![part(0), here(1, 0, InputKind::Again)], "edge within a worker"),
            (
                vec![part(0), edge_in(1), part(0), here(7, 0, InputKind::Whole)],
                "edge within a worker",
            ),
            (vec![part(0), edge_of(InputKind::Again, 1)], "kind of an input"),
            (vec![part(0), edge_in(1), out(64, OutputKind::Whole, 1)], "number of an edge"),
            (vec![part(0), edge_in(1), edge_out(1), edge_out(2)], "kind of an output"),
            (of_one(vec![out(1, OutputKind::Whole, 1)]), "outputs of a part"),
            (
                of_one(vec![out(0, OutputKind::Done, 0), out(1, OutputKind::Whole, 1)]),
                "outputs of a part",
            ),
            (of_one(vec![edge_on(1, InputKind::Whole, 1)]), "edges of a link"),
            (of_one(vec![call]), "calls of a part"),
            (of_one(vec![call, call, answer]), "calls of a part"),
            (of_one(vec![answer]), "calls of a part"),
            (vec![part(0), answer, edge_in(1), call, complete()], "inputs of a part"),
            (vec![joined(Join::Of, 0, 0), edge_in(1), complete()], "join of a part"),
            (vec![joined(Join::Of, 2, 0), edge_in(1), complete()], "join of a part"),
            (vec![joined(Join::Any, 0, 1), edge_in(1), complete()], "join of a part"),
            (vec![each, edge_in(1), complete()], "inputs of a part"),
            (vec![batched(Join::All, Takes::Each, 0), edge_in(1), complete()], "inputs of a part"),
            (vec![batched(Join::Of, Takes::Whole, 0), edge_in(1), complete()], "batch of a part"),
            (vec![batched(Join::All, Takes::Whole, 9), edge_in(1), complete()], "batch of a part"),
            (vec![batch, edge_in(1), edge_in(1), complete()], "batch of a part"),
            (vec![batch, edge_in(1), here(0, 0, InputKind::Again), complete()], "batch of a part"),
            (vec![batch, edge_in(1), call, answer, complete()], "batch of a part"),
            (vec![batch, edge_in(1), part(0), edge_in(1), complete()], "batch of a part"),
            (vec![part(0), edge_in(1), batch, edge_in(1), complete()], "batch of a part"),
        ] {
            let error = told(1, &messages).unwrap_err();
            assert!(error.contains(wrong), "{messages:?}: {error}");
        }
    }
}
