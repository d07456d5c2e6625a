//! Each target on its corpus, and on inputs that are close to that: the part of fuzzing that a gate has time for. It is
//! the same each time.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there is the test

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, Once};

use fastrand::Rng;
use fuzz::{TARGETS, Target};

/// Largest corpus of a target, in bytes.
const MOST_BYTES: usize = 64 << 10;
/// Largest input that is made.
const MOST_INPUT: usize = 16 << 10;

/// Numbers at which something changes.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 53,
    i64::MAX as u64,
    u64::MAX,
];
/// Words at which something changes in a text.
const WORDS: [&[u8]; 14] = [
    b"\"",
    b"{",
    b"[",
    b"null",
    b"-1",
    b"1e999",
    b"\\u0000",
    b"\n",
    b"\x1b[2J",
    b"\0",
    b"%00",
    b"\r\n\r\n",
    b"\xff",
    b"99999999999999999999",
];

/// Changes `input` in one place.
fn change(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Rng) {
    let at = random.usize(..input.len() + 1);
    match random.usize(..8) {
        0 => input.truncate(at),
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.usize(..8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.u8(..);
            }
        }
        3 => {
            let (number, bytes) =
                (NUMBERS[random.usize(..NUMBERS.len())].to_le_bytes(), 1 << random.usize(..4));
            let end = (at + bytes).min(input.len());
            input.splice(at..end, number[..bytes].iter().copied());
        }
        4 => drop(input.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied())),
        5 => {
            let end = (at + 1 + random.usize(..8)).min(input.len());
            input.drain(at..end);
        }
        6 => {
            let end = (at + 1 + random.usize(..64)).min(input.len());
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        _ => {
            let other = &others[random.usize(..others.len())];
            let from = random.usize(..other.len() + 1);
            input.splice(at.., other[from..].iter().copied());
        }
    }
    input.truncate(MOST_INPUT);
}

/// What each target is reading, for who looks at a failure.
static READING: Mutex<Vec<(&str, Vec<u8>)>> = Mutex::new(Vec::new());

/// Ends the process at the first panic of any thread, with what was being read: a server keeps its panics to itself.
fn abort_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            print(info);
            // Past the harness, which would keep it.
            let mut error = std::io::stderr().lock();
            let _ = writeln!(error, "{info}");
            for (target, input) in READING.lock().unwrap().iter() {
                let _ =
                    writeln!(error, "target {target} was reading b\"{}\"", input.escape_ascii());
            }
            std::process::abort();
        }));
    });
}

fn read(target: &Target, input: &[u8]) {
    {
        let mut reading = READING.lock().unwrap();
        reading.retain(|(name, _)| *name != target.name);
        reading.push((target.name, input.to_vec()));
    }
    (target.run)(input);
    READING.lock().unwrap().retain(|(name, _)| *name != target.name);
}

/// Returns the inputs of a target, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn holds_on_its_corpus(name: &str) {
    abort_on_panic();
    fuzz::limit_memory();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = corpus(name);
    assert!(inputs.iter().map(Vec::len).sum::<usize>() <= MOST_BYTES, "the corpus is too large");
    inputs.iter().for_each(|input| read(target, input));
    read(target, b"");
    let mut random = Rng::with_seed(0x5eed_5eed_5eed_5eed);
    for _ in 0..target.variants {
        let mut input = inputs[random.usize(..inputs.len())].clone();
        for _ in 0..1 + random.usize(..4) {
            change(&mut input, &inputs, &mut random);
        }
        read(target, &input);
    }
}

/// One test for each target.
macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds_on_its_corpus(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test_a_corpus_and_a_program() {
            let tested = [$(stringify!($name)),*];
            let listed: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(listed, tested);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
            for (part, ending) in [("corpus", ""), ("libfuzzer/src", ".rs")] {
                let files = fs::read_dir(folder.join(part)).unwrap();
                let mut names: Vec<_> =
                    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
                names.sort();
                assert_eq!(names, tested.map(|name| format!("{name}{ending}")), "{part}");
            }
        }
    };
}
targets! { handshake http invocations library local_channel messages replies settings tokens }
