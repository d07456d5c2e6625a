//! What the workers of a graph are for, as the client says, checked. Pure.

use std::net::SocketAddr;

use rfaas_protocol::edge::MAX_EDGES;
use rfaas_protocol::session::ToExecutor;
use rfaas_protocol::{Malformed, Secret};

const TOO_LARGE: Malformed = Malformed::Field("bytes of an edge");

/// Where an input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client, which writes to the slots that the worker offers when it dials.
    Client,
    /// Who dials with this.
    Dialler(Secret),
}

/// An input of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it comes from.
    pub from: Source,
    /// Largest payload, in bytes.
    pub bytes: u32,
}

/// An output of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whom to dial.
    pub to: SocketAddr,
    /// What to show there.
    pub secret: Secret,
    /// Largest payload, in bytes.
    pub bytes: u32,
}

/// What a worker is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its function in the library.
    pub name: String,
    /// Number of that in the graph.
    pub function: u16,
    /// One, so far.
    pub inputs: Vec<Input>,
    /// None: it tells nobody.
    pub outputs: Vec<Output>,
}

impl Part {
    /// Returns how much a function may write before it is stopped: as much as the largest of its outputs holds, or its
    /// input has. What is more than the smallest holds is refused when it returns.
    pub fn output_bytes(&self) -> u32 {
        let outputs = self.outputs.iter().map(|output| output.bytes);
        outputs.chain(self.inputs.iter().map(|input| input.bytes)).max().unwrap_or(0)
    }

    /// Returns how many inputs come from who dials.
    pub fn dialled_by(&self) -> usize {
        self.inputs.iter().filter(|input| input.from != Source::Client).count()
    }
}

/// The parts that were told so far.
#[derive(Debug)]
pub struct Parts {
    workers: usize,
    /// Most bytes of the input of a worker, and of each of its outputs: what was asked for with the executor, and fits
    /// the memory of the lease.
    most: (u32, u32),
    parts: Vec<Part>,
}

impl Parts {
    /// Waits for the parts of so many workers. The input of one, and each of its outputs, have at most these bytes.
    pub fn new(workers: usize, input_bytes: u32, output_bytes: u32) -> Self {
        Parts { workers, most: (input_bytes, output_bytes), parts: Vec::new() }
    }

    /// Takes what the client says next. Returns all parts when it has said that these are all.
    pub fn take(&mut self, message: &ToExecutor) -> Result<Option<Vec<Part>>, Malformed> {
        match message {
            ToExecutor::Part(part) => {
                let next = self.parts.len();
                if usize::from(part.worker.get()) != next || next == self.workers {
                    return Err(Malformed::Field("worker of a part"));
                }
                self.check_last()?;
                let name = part.name.get()?.to_owned();
                let (inputs, outputs) = (Vec::new(), Vec::new());
                self.parts.push(Part { name, function: part.function.get(), inputs, outputs });
            }
            ToExecutor::InputOfClient(input) => {
                let bytes = input.bytes.get();
                self.add_input(Input { from: Source::Client, bytes })?;
            }
            ToExecutor::EdgeIn(edge) => {
                let (from, bytes) = (Source::Dialler(edge.secret), edge.bytes.get());
                self.add_input(Input { from, bytes })?;
            }
            ToExecutor::EdgeHere(_) => return Err(Malformed::Field("edge within a worker")),
            ToExecutor::EdgeOut(edge) => {
                let bytes = edge.bytes.get();
                if bytes > self.most.1 {
                    return Err(TOO_LARGE);
                }
                let output = Output { to: edge.to.into(), secret: edge.secret, bytes };
                add(&mut self.last()?.outputs, output)?;
            }
            ToExecutor::Complete(_) => {
                self.check_last()?;
                if self.parts.len() != self.workers {
                    return Err(Malformed::Field("number of parts"));
                }
                return Ok(Some(std::mem::take(&mut self.parts)));
            }
        }
        Ok(None)
    }

    fn last(&mut self) -> Result<&mut Part, Malformed> {
        self.parts.last_mut().ok_or(Malformed::Field("edge of no part"))
    }

    fn check_last(&self) -> Result<(), Malformed> {
        match self.parts.last() {
            Some(part) if part.inputs.is_empty() => Err(Malformed::Field("part without input")),
            _ => Ok(()),
        }
    }

    fn add_input(&mut self, input: Input) -> Result<(), Malformed> {
        if input.bytes > self.most.0 {
            return Err(TOO_LARGE);
        }
        let inputs = &mut self.last()?.inputs;
        if !inputs.is_empty() {
            return Err(Malformed::Field("second input")); // a function would not get it
        }
        inputs.push(input);
        Ok(())
    }
}

fn add<T>(edges: &mut Vec<T>, edge: T) -> Result<(), Malformed> {
    if edges.len() == MAX_EDGES {
        return Err(Malformed::Field("number of edges"));
    }
    edges.push(edge);
    Ok(())
}

#[cfg(test)]
mod tests {
    use rfaas_protocol::edge::{InputKind, Join, OutputKind, Takes};
    use rfaas_protocol::session::{EdgeIn, EdgeOut, InputOfClient, Part as PartMessage};
    use rfaas_protocol::{Empty, Text, WireAddress};

    use super::*;

    const SECRET: Secret = Secret([7; 16]);

    fn part(worker: u16) -> ToExecutor {
        let name = Text::new("scale").unwrap();
        ToExecutor::Part(PartMessage {
            worker: worker.into(),
            function: 3.into(),
            member: 0.into(),
            members: 1.into(),
            join: Join::All.to_wire(),
            wanted: 0.into(),
            takes: Takes::Whole.to_wire(),
            within_ms: 0.into(),
            name,
        })
    }

    fn of_client(bytes: u32) -> ToExecutor {
        ToExecutor::InputOfClient(InputOfClient { bytes: bytes.into() })
    }

    fn edge_in(bytes: u32) -> ToExecutor {
        let kind = InputKind::Whole.to_wire();
        ToExecutor::EdgeIn(EdgeIn { secret: SECRET, bytes: bytes.into(), kind })
    }

    fn edge_out(bytes: u32) -> ToExecutor {
        let to = WireAddress::from("127.0.0.1:7".parse::<SocketAddr>().unwrap());
        let (edge, kind) = (0.into(), OutputKind::Whole.to_wire());
        ToExecutor::EdgeOut(EdgeOut { to, secret: SECRET, bytes: bytes.into(), edge, kind })
    }

    fn complete() -> ToExecutor {
        ToExecutor::Complete(Empty {})
    }

    fn told(workers: usize, messages: &[ToExecutor]) -> Result<Vec<Part>, String> {
        let mut parts = Parts::new(workers, 100, 50);
        for message in messages {
            if let Some(parts) = parts.take(message).map_err(|error| error.to_string())? {
                return Ok(parts);
            }
        }
        Err("it is not complete".into())
    }

    #[test]
    fn parts_have_their_edges_in_order() {
        let parts = told(
            2,
            &[part(0), of_client(64), edge_out(32), edge_out(16), part(1), edge_in(32), complete()],
        );
        let parts = parts.unwrap();
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].name.as_str(), parts[0].function), ("scale", 3));
        assert_eq!(parts[0].inputs, [Input { from: Source::Client, bytes: 64 }]);
        assert_eq!((parts[0].outputs.len(), parts[0].output_bytes()), (2, 64));
        assert_eq!(parts[1].inputs, [Input { from: Source::Dialler(SECRET), bytes: 32 }]);
        assert_eq!((parts[0].dialled_by(), parts[1].dialled_by()), (0, 1));
        assert_eq!(parts[1].output_bytes(), 32);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let many = [vec![part(0), edge_in(1)], vec![edge_out(1); MAX_EDGES + 1]].concat();
        for (messages, wrong) in [
            (vec![part(1)], "worker of a part"),
            (vec![part(0), of_client(1), part(1)], "worker of a part"),
            (vec![edge_in(1)], "edge of no part"),
            (vec![part(0), complete()], "part without input"),
            (vec![complete()], "number of parts"),
            (vec![part(0), of_client(1), of_client(1)], "second input"),
            (vec![part(0), of_client(1), edge_in(1)], "second input"),
            (vec![part(0), edge_in(101)], "bytes of an edge"),
            (vec![part(0), edge_in(1), edge_out(51)], "bytes of an edge"),
            (vec![part(0), edge_out(u32::MAX)], "bytes of an edge"),
            (many, "number of edges"),
        ] {
            let error = told(1, &messages).unwrap_err();
            assert!(error.contains(wrong), "{messages:?}: {error}");
        }
    }
}
