//! A table that is made up: what functions ask for here is noted, per thread.

#![allow(dead_code)] // each test uses its part

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use rfaas_function::interface::{Api, BatchRun, This};

/// Bytes that outputs hold.
pub const ROOM: u32 = 128;

/// What functions return whose call ends otherwise.
pub const FAILED: u32 = 1001;
pub const AGAIN: u32 = 1002;
pub const NONE: u32 = 1003;

/// Inputs of each call: the second is not there, the others have an item each.
pub static INPUTS: [Option<&[u8]>; 3] =
    [Some(b"\x05\0\0\0\x04\0\0\0zero\0\0\0\0"), None, Some(b"\x07\0\0\0\x03\0\0\0two\0\0\0\0\0")];

pub static TABLE: Api = Api {
    version: 1,
    bytes: size_of::<Api>() as u32,
    this,
    room,
    input,
    output,
    emit,
    call,
    again,
    fail,
    none,
    leaving,
    note,
};

thread_local! {
    static THIS: Cell<This> = const { Cell::new(This {
        bytes: size_of::<This>() as u32, function: 1, member: 2, members: 3, slot: 4, inputs: 3, edges: 2,
    }) };
    static EDGE: Cell<[u8; 16]> = const { Cell::new([0; 16]) };
    static SENT: RefCell<Vec<(u32, Vec<u8>)>> = const { RefCell::new(vec![]) };
    static FAILURES: RefCell<Vec<i32>> = const { RefCell::new(vec![]) };
    static NOTES: RefCell<Vec<(String, i64)>> = const { RefCell::new(vec![]) };
    static STATES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(vec![]) };
}

/// What a function that takes batches is.
pub type Batch = unsafe extern "C" fn(*const *mut BatchRun, u32) -> i32;

/// How a run of a batch is ended: `output_bytes`, `ended`, `code`, and what is written in its output.
pub type Ended = (u32, u32, i32, Vec<u8>);

/// Calls a function with runs that have these inputs. Returns what it returns, and how each is ended.
pub fn batch(function: Batch, inputs: &[&[u8]]) -> (i32, Vec<Ended>) {
    let mut outputs = vec![[0xaa_u8; 16]; inputs.len()];
    let run = |(slot, (input, output)): (u32, (&&[u8], &mut [u8; 16]))| BatchRun {
        bytes: size_of::<BatchRun>() as u32,
        slot,
        input: input.as_ptr().cast(),
        input_bytes: input.len() as u32,
        room: 16,
        output: output.as_mut_ptr().cast(),
        output_bytes: u32::MAX,
        ended: 0,
        code: 0,
    };
    let mut runs: Vec<_> = (0..).zip(inputs.iter().zip(&mut outputs)).map(run).collect();
    let pointers: Vec<_> = runs.iter_mut().map(ptr::from_mut).collect();
    // SAFETY: as the function interface says.
    let returned = unsafe { function(pointers.as_ptr(), pointers.len() as u32) };
    let ended = |(run, output): (&BatchRun, [u8; 16])| {
        let bytes = if run.ended == 0 { run.output_bytes as usize } else { 0 };
        let written = output.get(..bytes).unwrap_or_default().to_vec();
        (run.output_bytes, run.ended, run.code, written)
    };
    (returned, runs.iter().zip(outputs).map(ended).collect())
}

/// What was sent and called with since the last time, with the number of the edge.
pub fn sent() -> Vec<(u32, Vec<u8>)> {
    SENT.take()
}

/// Codes of the runs that have failed.
pub fn failures() -> Vec<i32> {
    FAILURES.take()
}

/// What was noted.
pub fn notes() -> Vec<(String, i64)> {
    NOTES.take()
}

/// States that functions are to be called again with.
pub fn states() -> Vec<Vec<u8>> {
    STATES.take()
}

extern "C" fn this() -> *const This {
    THIS.with(|this| this.as_ptr().cast_const())
}

extern "C" fn room() -> u32 {
    ROOM
}

unsafe extern "C" fn input(number: u32, at: *mut *const c_void, bytes: *mut u32) -> i32 {
    let Some(input) = INPUTS.get(number as usize) else { return -1 };
    let Some(input) = input else { return -2 };
    // SAFETY: the caller says that both can be written.
    unsafe { at.write(input.as_ptr().cast()) };
    // SAFETY: likewise.
    unsafe { bytes.write(input.len() as u32) };
    0
}

unsafe extern "C" fn output(edge: u32, at: *mut *mut c_void, bytes: *mut u32) -> i32 {
    if edge > 1 {
        return -1;
    }
    // SAFETY: the caller says that both can be written.
    unsafe { at.write(EDGE.with(Cell::as_ptr).cast()) };
    // SAFETY: likewise.
    unsafe { bytes.write(16) };
    0
}

extern "C" fn emit(edge: u32, bytes: u32) -> i32 {
    let sent = EDGE.get()[..bytes as usize].to_vec();
    SENT.with_borrow_mut(|all| all.push((edge, sent)));
    0
}

unsafe extern "C" fn call(
    edge: u32,
    bytes: u32,
    answer: *mut *const c_void,
    answer_bytes: *mut u32,
    limit: u64,
) -> i32 {
    assert!(limit > 0);
    emit(edge, bytes);
    // SAFETY: the caller says that both can be written.
    unsafe { answer.write(b"answer".as_ptr().cast()) };
    // SAFETY: likewise.
    unsafe { answer_bytes.write(6) };
    0
}

unsafe extern "C" fn again(state: *const c_void, bytes: u32) -> u32 {
    let mut copy = vec![0; bytes as usize];
    // SAFETY: the caller says that so many bytes can be read.
    unsafe { ptr::copy(state.cast(), copy.as_mut_ptr(), copy.len()) };
    STATES.with_borrow_mut(|all| all.push(copy));
    AGAIN
}

extern "C" fn fail(code: i32) -> u32 {
    FAILURES.with_borrow_mut(|all| all.push(code));
    FAILED
}

extern "C" fn none() -> u32 {
    NONE
}

extern "C" fn leaving() -> u64 {
    7_000_000_000
}

unsafe extern "C" fn note(key: *const c_char, value: i64) -> i32 {
    // SAFETY: the caller says that it is a string.
    let key = unsafe { CStr::from_ptr(key) }.to_str().unwrap().to_owned();
    NOTES.with_borrow_mut(|all| all.push((key, value)));
    0
}
