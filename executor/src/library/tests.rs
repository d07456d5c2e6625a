//! A compiled library asks a turn that is made up: what arrives there through the table, and what comes back.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::fs;
use std::path::Path;
use std::process::Command;
use std::ptr;

use nix::time::{ClockId, clock_gettime};
use rdmalib_testing::device;
use rfaas_call::callee::Layout;
use rfaas_call::edge::{About, Denied, Turn, Verdict};
use rfaas_protocol::library::LibraryHash;

use super::*;

const ROOM: u32 = 1024;

/// Compiles tests/functions/asks.c and loads it.
fn asks() -> Library {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("asks.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    cc.arg("-I").arg(here.join("../rfaas/function/include"));
    cc.arg("-o").arg(&file).arg(here.join("tests/functions/asks.c"));
    assert!(cc.status().unwrap().success());
    let code = fs::read(file).unwrap();
    let domain = device().domain().unwrap();
    let region = domain.allocate(code.len(), rdmalib::Access::LOCAL_WRITE).unwrap();
    region.write(0, &code).unwrap();
    let from = Code::FromClient { region, into: None };
    let file = SealedFile::of(from, code.len(), &LibraryHash::of(&code)).unwrap();
    Library::load(CheckedLibrary::new(file).unwrap()).unwrap()
}

/// What is asked for here is noted, and answered as it is said in the fields.
struct Fake<'a> {
    place: Place<'a>,
    inputs: Vec<Result<Vec<u8>, Denied>>,
    edge: [u8; 16],
    noted: Vec<(&'static str, u32, Vec<u8>)>,
    verdicts: Vec<Verdict>,
    /// Instead of anything else.
    denied: Option<Denied>,
}

impl<'a> Fake<'a> {
    fn new(place: Place<'a>) -> Self {
        let (edge, noted, verdicts) = ([0; 16], vec![], vec![]);
        Fake { place, inputs: vec![], edge, noted, verdicts, denied: None }
    }

    fn note(&mut self, what: &'static str, edge: u32, bytes: u32) -> Result<(), Denied> {
        self.denied.map_or(Ok(()), Err)?;
        let sent = self.edge.get(..bytes as usize).ok_or(Denied::Bounds)?;
        self.noted.push((what, edge, sent.to_vec()));
        Ok(())
    }
}

impl Turn for Fake<'_> {
    fn about(&self) -> About {
        let inputs = self.inputs.len() as u32;
        About { function: 1, member: 2, members: 3, slot: 4, inputs, edges: 2 }
    }

    fn area(&self) -> (*mut u8, u32) {
        (self.place.output(), ROOM)
    }

    fn input(&self, number: u32) -> Result<(*const u8, u32), Denied> {
        self.denied.map_or(Ok(()), Err)?;
        let input = self.inputs.get(number as usize).ok_or(Denied::NoSuch)?.as_ref();
        input.map(|bytes| (bytes.as_ptr(), bytes.len() as u32)).map_err(|denied| *denied)
    }

    fn output(&self, edge: u32) -> Result<(*mut u8, u32), Denied> {
        self.denied.map_or(Ok(()), Err)?;
        let edges = [self.edge.as_ptr().cast_mut(); 2];
        edges.get(edge as usize).map(|at| (*at, 16)).ok_or(Denied::NoSuch)
    }

    fn emit(&mut self, edge: u32, bytes: u32) -> Result<(), Denied> {
        self.note("emit", edge, bytes)
    }

    fn call(&mut self, edge: u32, bytes: u32, limit: u64) -> Result<(*const u8, u32), Denied> {
        assert!(limit > 0);
        self.note("call", edge, bytes)?;
        Ok((b"answer".as_ptr(), 6))
    }

    fn note(&mut self, key: &[u8], value: i64) -> Result<(), Denied> {
        self.denied.map_or(Ok(()), Err)?;
        let noted = [key, &value.to_le_bytes()].concat();
        self.noted.push(("note", 0, noted));
        Ok(())
    }

    fn end(&mut self, verdict: Verdict) -> Result<(), Denied> {
        match (self.denied, verdict) {
            (Some(denied), Verdict::Again(_) | Verdict::NoValue) => return Err(denied),
            _ => self.verdicts.push(verdict),
        }
        Ok(())
    }
}

/// Memory of a worker, with an input.
fn memory(input: &[u8]) -> GuardedMemory {
    let layout = Layout::new(1, 64, ROOM, 4096).unwrap();
    let memory = GuardedMemory::new(&device().domain().unwrap(), layout, 1).unwrap();
    let slot = memory.layout().slot(0).unwrap();
    let place = memory.place(slot, input.len() as u32);
    // SAFETY: the slot has 64 bytes of input, and nobody else has the memory.
    unsafe { std::ptr::copy(input.as_ptr(), place.input(), input.len()) };
    memory
}

fn output(place: Place<'_>, bytes: u32) -> Vec<u8> {
    assert!(bytes <= ROOM, "{bytes}");
    // SAFETY: the output has so many bytes, and nobody writes them now.
    unsafe { std::slice::from_raw_parts(place.output(), bytes as usize) }.to_vec()
}

/// What a turn was asked for: by which entry, for which edge, with what.
type Noted = (&'static str, u32, Vec<u8>);

/// Calls `name` with `input` for what `with` makes of a turn. Returns what it returned, and wrote; and the turn.
fn call(
    name: &str,
    input: &[u8],
    with: impl FnOnce(&mut Fake<'_>),
) -> (u32, Vec<u8>, Vec<Verdict>, Vec<Noted>) {
    let library = asks();
    library.initialise(0, 7).unwrap();
    let function = library.function(library.number(name).unwrap()).unwrap();
    let memory = memory(input);
    let place = memory.place(memory.layout().slot(0).unwrap(), input.len() as u32);
    let mut turn = Fake::new(place);
    with(&mut turn);
    let returned = function.call_in(place, &mut turn);
    let wrote = output(place, if returned <= ROOM { returned } else { 0 });
    let Fake { verdicts, noted, .. } = turn;
    // What is over is over.
    let prepared = library.function(library.number("asks").unwrap()).unwrap();
    let after = output(place, prepared.call(place));
    assert_eq!(numbers(&after)[1..8], [-3; 7], "after the call");
    assert_eq!((numbers(&after)[0], numbers(&after)[8]), (0, 7), "after the call");
    (returned, wrote, verdicts, noted)
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|number| i32::from_ne_bytes(*number)).collect()
}

/// The items of a payload: key and bytes of each.
fn items(mut payload: &[u8]) -> Vec<(i32, Vec<u8>)> {
    let mut items = vec![];
    while let Some((header, rest)) = payload.split_at_checked(8) {
        let [key, bytes] = numbers(header)[..] else { unreachable!() };
        let bytes = bytes as usize;
        items.push((key, rest[..bytes].to_vec()));
        payload = &rest[bytes.next_multiple_of(8)..];
    }
    items
}

#[test]
fn what_a_function_asks_for_reaches_its_turn_and_the_answers_come_back() {
    let (_, wrote, verdicts, noted) = call("graph", b"in", |turn| {
        turn.inputs = vec![Ok(b"in".to_vec()), Err(Denied::Absent), Ok(b"more".to_vec())];
    });
    let of_self = [
        &24_u32.to_ne_bytes()[..],
        &[1_u16, 2, 3, 4].map(u16::to_ne_bytes).concat(),
        &[3_u32, 2].map(u32::to_ne_bytes).concat(),
    ]
    .concat();
    let size = size_of::<table::This>() as i32;
    let expected = [
        (size, [&size.to_ne_bytes()[..], &of_self[4..]].concat()),
        (0, b"in".to_vec()),
        (-2, vec![]),
        (0, b"more".to_vec()),
        (-1, vec![]),
        (0, [0_i32, -4, 0].map(i32::to_ne_bytes).concat()),
        (1, b"answer".to_vec()),
    ];
    assert_eq!(items(&wrote), expected);
    let expected = [("emit", 0, b"sent".to_vec()), ("call", 1, b"asked".to_vec())];
    assert_eq!((noted, verdicts), (expected.to_vec(), vec![]));
}

#[test]
fn a_call_ends_as_the_function_says_or_fails_with_the_reason_why_not() {
    let ends = |input: &[u8], denied| {
        let (returned, _, verdicts, _) = call("end", input, |turn| turn.denied = denied);
        assert_eq!(returned, 0);
        verdicts
    };
    assert_eq!(ends(b"astate", None), [Verdict::Again(5)]);
    assert_eq!(ends(b"f\x09", None), [Verdict::Failed(9)]);
    assert_eq!(ends(b"n", None), [Verdict::NoValue]);
    assert_eq!(ends(b"l", None), [Verdict::Failed(-4)], "more than the area holds");
    assert_eq!(ends(b"astate", Some(Denied::Rights)), [Verdict::Failed(-3)]);
    assert_eq!(ends(b"n", Some(Denied::Busy)), [Verdict::Failed(-5)]);
}

#[test]
fn a_function_that_takes_batches_has_each_run_and_ends_each() {
    let library = asks();
    library.initialise(0, 0).unwrap();
    assert!(library.number("sums").is_none() && library.number("rfaas_batch_sums").is_none());
    assert!(library.batch_number("end").is_none() && library.batch_function(1).is_none());
    let sums = library.batch_function(library.batch_number("sums").unwrap()).unwrap();
    let memory = memory(b"");
    let place = memory.place(memory.layout().slot(0).unwrap(), 0);
    let mut turn = Fake { denied: Some(Denied::Rights), ..Fake::new(place) };
    turn.inputs = vec![Ok(vec![])];
    let mut pointers = Vec::new();
    let mut batch = |inputs: &[&[u8]]| {
        let mut outputs = vec![0_u32; inputs.len()];
        let run = |(slot, (input, output)): (u32, (&&[u8], &mut u32))| BatchRun {
            bytes: size_of::<BatchRun>() as u32,
            slot,
            input: input.as_ptr().cast(),
            input_bytes: input.len() as u32,
            room: 4,
            output: ptr::from_mut(output).cast(),
            output_bytes: u32::MAX,
            ended: 0,
            code: 0,
        };
        let mut runs: Vec<_> = (0..).zip(inputs.iter().zip(&mut outputs)).map(run).collect();
        let returned = sums.call(&mut runs, &mut pointers, &mut turn);
        let ends: Vec<_> = runs.iter().map(|run| (run.output_bytes, run.ended, run.code)).collect();
        (returned, ends, outputs)
    };
    const NOT_SET: u32 = u32::MAX;
    let ends = vec![
        (4, 0, 0),
        (NOT_SET, BatchRun::NO_VALUE, 0),
        (NOT_SET, BatchRun::FAILED, 7),
        (4, 0, 0),
    ];
    let outputs = vec![1003, 0, 0, 1003];
    assert_eq!(batch(&[&[1, 2], b"", b"f\x07", b"\0"]), (0, ends, outputs));
    assert_eq!(batch(&[b"a"]), (1, vec![(NOT_SET, 0, 0)], vec![0]));
    assert_eq!(batch(&[b"", b"", b"a"]).0, 3);
}

#[test]
fn a_function_is_told_when_its_node_is_left_and_what_it_notes_is_noted() {
    let memory = memory(b"");
    let place = memory.place(memory.layout().slot(0).unwrap(), 0);
    let library = asks();
    library.initialise(0, 0).unwrap();
    let left = library.function(library.number("left").unwrap()).unwrap();
    let says = |turn: &mut Fake<'_>| {
        let bytes = left.call_in(place, turn);
        let wrote = output(place, bytes);
        let (ns, answers) = wrote.split_at(8);
        (u64::from_le_bytes(ns.try_into().unwrap()), numbers(answers))
    };
    let mut turn = Fake::new(place);
    assert_eq!(says(&mut turn), (u64::MAX, vec![0, -1]));
    assert_eq!(turn.noted, [("note", 0, [&b"left"[..], &(-5_i64).to_le_bytes()].concat())]);
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    let now = u64::try_from(Duration::from(now).as_nanos()).unwrap();
    const HOUR: u64 = 3_600_000_000_000;
    set_leaving(now + HOUR);
    let (left, answers) = says(&mut Fake { denied: Some(Denied::Rights), ..Fake::new(place) });
    assert!((HOUR / 2..=HOUR).contains(&left), "{left}");
    assert_eq!(answers, [-3, -1]);
    set_leaving(1);
    assert_eq!(says(&mut turn).0, 0, "it should be gone");
    set_leaving(0);
    assert_eq!(says(&mut turn).0, u64::MAX);
}

#[test]
fn state_is_moved_to_the_start_of_the_area_also_over_itself() {
    let memory = memory(b"astate");
    let place = memory.place(memory.layout().slot(0).unwrap(), 6);
    let library = asks();
    library.initialise(0, 0).unwrap();
    let end = library.function(library.number("end").unwrap()).unwrap();
    let mut turn = Fake::new(place);
    assert_eq!(end.call_in(place, &mut turn), 0);
    assert_eq!(turn.verdicts, [Verdict::Again(5)]);
    assert_eq!(output(place, 5), b"state"); // the function had it one byte behind
}

#[test]
fn each_reason_has_its_number() {
    use Denied::{Absent, Bounds, Busy, Lost, NoSuch, Rights, Time};
    for (number, denied) in [NoSuch, Absent, Rights, Bounds, Busy, Time, Lost].iter().enumerate() {
        let (_, wrote, ..) = call("asks", b"", |turn| turn.denied = Some(*denied));
        assert_eq!(numbers(&wrote)[1..5], [-1 - number as i32; 4]);
    }
}

#[test]
fn only_the_thread_and_the_process_of_a_call_have_its_rights() {
    for (function, room) in [("thread_asks", 0), ("child_asks", 7)] {
        let (_, wrote, verdicts, noted) = call(function, b"", |_| {});
        let mut expected = [-3; 9];
        (expected[0], expected[8]) = (0, room);
        assert_eq!(numbers(&wrote), expected, "{function}");
        assert_eq!((verdicts, noted), (vec![], vec![]));
    }
}

#[test]
fn one_call_in_another_has_its_own_turn() {
    let memory = memory(b"n");
    let place = memory.place(memory.layout().slot(0).unwrap(), 1);
    let library = asks();
    library.initialise(0, 0).unwrap();
    let end = library.function(library.number("end").unwrap()).unwrap();
    let (mut outer, mut inner) = (Fake::new(place), Fake::new(place));
    table::during(&mut outer, || {
        end.call_in(place, &mut inner);
        end.call(place)
    });
    assert_eq!((outer.verdicts.len(), inner.verdicts.len()), (1, 1));
}
