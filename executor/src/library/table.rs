//! What a function may ask for while it is called: the table of C functions that its library gets.
//!
//! ```text
//!   Function::call_in ──sets the turn of this thread──▶ function ──entry of the table──▶ Turn
//!          └───────────clears it when the function has returned
//! ```
//! The entries find the turn in a variable of their thread. So one table is for all, and the worst that a function can
//! do with it is to ask in the wrong moment: from a thread of its own, in a call that belongs to no graph, when its
//! call is over, in a process that it has forked. Then it has no rights. (In a signal handler, no entry may be used.)
//!
//! The pointers that functions pass are theirs, like all that they do in this process: an entry writes an answer where
//! it is told to.
//!
//! Elsewhere: the same table for who writes functions (`rfaas_function`), who answers (`rfaas_call::edge::Turn`).

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::ptr::{self, NonNull};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rdmalib::ForkMark;
use rfaas_call::edge::{About, Denied, Turn, Verdict};

use crate::sync::{AtomicU64, Ordering};

/// What an entry returns that did what it was asked for.
const OK: i32 = 0;

/// The table, `struct rfaas_api`. It only grows, at its end.
#[derive(Debug)]
#[repr(C)]
pub struct Api {
    version: u32,
    /// Size of the table.
    bytes: u32,
    this: extern "C" fn() -> *const This,
    room: extern "C" fn() -> u32,
    input: unsafe extern "C" fn(u32, *mut *const c_void, *mut u32) -> i32,
    output: unsafe extern "C" fn(u32, *mut *mut c_void, *mut u32) -> i32,
    emit: extern "C" fn(u32, u32) -> i32,
    call: unsafe extern "C" fn(u32, u32, *mut *const c_void, *mut u32, u64) -> i32,
    again: unsafe extern "C" fn(*const c_void, u32) -> u32,
    fail: extern "C" fn(i32) -> u32,
    none: extern "C" fn() -> u32,
    leaving: extern "C" fn() -> u64,
    note: unsafe extern "C" fn(*const c_char, i64) -> i32,
}

/// Who is called, `struct rfaas_self`. It only grows, at its end.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct This {
    /// Size of this.
    bytes: u32,
    function: u16,
    member: u16,
    members: u16,
    slot: u16,
    inputs: u32,
    edges: u32,
}

/// The table of all libraries.
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

/// When the node leaves, in ns of `CLOCK_MONOTONIC`. 0: it stays. It is for all threads, and says no more than itself.
static LEAVES_AT_NS: AtomicU64 = AtomicU64::new(0);

/// Notes when the node leaves.
pub fn set_leaving(at_ns: u64) {
    LEAVES_AT_NS.store(at_ns, Ordering::Relaxed);
}

/// A call that is under way, and the process that makes it.
#[derive(Clone, Copy)]
struct Current {
    turn: NonNull<dyn Turn>,
    process: ForkMark,
}

// None has a destructor: they cost no registration, and are there until the thread is no more.
thread_local! {
    /// The call of this thread; `None` also while an entry uses it.
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
    /// What `this` returns the address of.
    static THIS: Cell<This> = const { Cell::new(This::NOBODY) };
    /// Bytes that the output of a call holds that belongs to no graph.
    static ROOM: Cell<u32> = const { Cell::new(0) };
}

/// Lets what is called by `call`, on this thread, ask `turn`.
#[inline]
pub fn during(turn: &mut dyn Turn, call: impl FnOnce() -> u32) -> u32 {
    // SAFETY: both are one pointer to the same turn, which lives until this function returns; it is out of `CURRENT`
    // before. Only its lifetime is forgotten, which a variable of a thread cannot have.
    let turn = unsafe { transmute::<NonNull<dyn Turn + '_>, NonNull<dyn Turn>>(turn.into()) };
    let current = Current { turn, process: ForkMark::new() };
    let before = CURRENT.replace(Some(current));
    let bytes = call(); // nothing unwinds from there: `enter`
    CURRENT.set(before);
    bytes
}

/// Notes how many bytes the output of a call on this thread holds that belongs to no graph.
pub fn set_room(bytes: u32) {
    ROOM.set(bytes);
}

/// Asks the turn of this thread, if it has one.
#[inline]
fn ask<T>(what: impl FnOnce(&mut dyn Turn) -> Result<T, Denied>) -> Result<T, Denied> {
    let current = CURRENT.take().ok_or(Denied::Rights)?;
    let mut turn = current.turn;
    let answer = match current.process.is_here() {
        // SAFETY: it is in `CURRENT` only while `during`, which has borrowed it, waits for the call to return, on this
        // thread. Nobody else has a reference: `during` does not use its own meanwhile, and whoever comes here while
        // this one lives finds `CURRENT` empty.
        true => what(unsafe { turn.as_mut() }),
        false => Err(Denied::Rights), // connections are its parent's
    };
    CURRENT.set(Some(current));
    answer
}

impl This {
    const NOBODY: This = This {
        bytes: size_of::<This>() as u32,
        function: 0,
        member: 0,
        members: 0,
        slot: 0,
        inputs: 0,
        edges: 0,
    };

    fn of(about: About) -> Self {
        let About { function, member, members, slot, inputs, edges } = about;
        This { function, member, members, slot, inputs, edges, ..This::NOBODY }
    }
}

/// Returns the number that stands for it in the table: `RFAAS_NO_SUCH` and so on.
fn code(denied: Denied) -> i32 {
    match denied {
        Denied::NoSuch => -1,
        Denied::Absent => -2,
        Denied::Rights => -3,
        Denied::Bounds => -4,
        Denied::Busy => -5,
        Denied::Time => -6,
        Denied::Lost => -7,
    }
}

fn told(answer: Result<(), Denied>) -> i32 {
    answer.map_or_else(code, |()| OK)
}

/// Writes where something is and how many bytes it has, and returns that it is so; or why not.
///
/// # Safety
/// Each pointer is null, or what it points to can be written.
unsafe fn placed<P: Copy>(answer: Result<(P, u32), Denied>, at: *mut P, bytes: *mut u32) -> i32 {
    let (place, size) = match answer {
        Ok(answer) => answer,
        Err(denied) => return code(denied),
    };
    if !at.is_null() {
        // SAFETY: the caller says that it can be written.
        unsafe { at.write_unaligned(place) };
    }
    if !bytes.is_null() {
        // SAFETY: likewise.
        unsafe { bytes.write_unaligned(size) };
    }
    OK
}

/// Returns what a function returns that has ended its call so. If that cannot be, the run fails for that reason; and
/// where it cannot fail either, the number is larger than any output, which the client is told.
fn ended(answer: Result<(), Denied>) -> u32 {
    let Err(denied) = answer else { return 0 };
    let code = code(denied);
    match ask(|turn| turn.end(Verdict::Failed(code))) {
        Ok(()) => 0,
        Err(_) => code as u32,
    }
}

extern "C" fn this() -> *const This {
    match ask(|turn| Ok(turn.about())) {
        Ok(about) => {
            THIS.set(This::of(about));
            THIS.with(|this| this.as_ptr().cast_const())
        }
        Err(_) => ptr::null(),
    }
}

extern "C" fn room() -> u32 {
    ask(|turn| Ok(turn.area().1)).unwrap_or_else(|_| ROOM.get())
}

/// # Safety
/// Each pointer is null, or what it points to can be written.
unsafe extern "C" fn input(number: u32, at: *mut *const c_void, bytes: *mut u32) -> i32 {
    let answer = ask(|turn| turn.input(number)).map(|(place, size)| (place.cast(), size));
    // SAFETY: as the caller says.
    unsafe { placed(answer, at, bytes) }
}

/// # Safety
/// As of [`input`].
unsafe extern "C" fn output(edge: u32, at: *mut *mut c_void, bytes: *mut u32) -> i32 {
    let answer = ask(|turn| turn.output(edge)).map(|(place, size)| (place.cast(), size));
    // SAFETY: as the caller says.
    unsafe { placed(answer, at, bytes) }
}

extern "C" fn emit(edge: u32, bytes: u32) -> i32 {
    told(ask(|turn| turn.emit(edge, bytes)))
}

/// # Safety
/// As of [`input`].
unsafe extern "C" fn call(
    edge: u32,
    bytes: u32,
    answer: *mut *const c_void,
    answer_bytes: *mut u32,
    limit_ns: u64,
) -> i32 {
    let came = ask(|turn| turn.call(edge, bytes, limit_ns));
    let came = came.map(|(place, size)| (place.cast(), size));
    // SAFETY: as the caller says.
    unsafe { placed(came, answer, answer_bytes) }
}

/// # Safety
/// At `state`, so many bytes can be read.
unsafe extern "C" fn again(state: *const c_void, bytes: u32) -> u32 {
    ended(ask(|turn| {
        let (area, room) = turn.area();
        if bytes > room {
            return Err(Denied::Bounds);
        }
        turn.end(Verdict::Again(bytes))?;
        if bytes > 0 {
            // SAFETY: the caller can read so many bytes, and the area holds them. It may be part of it.
            unsafe { ptr::copy(state.cast(), area, bytes as usize) };
        }
        Ok(())
    }))
}

extern "C" fn fail(code: i32) -> u32 {
    ended(ask(|turn| turn.end(Verdict::Failed(code))))
}

extern "C" fn none() -> u32 {
    ended(ask(|turn| turn.end(Verdict::NoValue)))
}

extern "C" fn leaving() -> u64 {
    match LEAVES_AT_NS.load(Ordering::Relaxed) {
        0 => u64::MAX,
        at => {
            let now =
                clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
            at.saturating_sub(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
        }
    }
}

/// # Safety
/// `key` is null, or a string of C.
unsafe extern "C" fn note(key: *const c_char, value: i64) -> i32 {
    if key.is_null() {
        return code(Denied::NoSuch);
    }
    // SAFETY: the caller says that it is one.
    let key = unsafe { CStr::from_ptr(key) };
    told(ask(|turn| turn.note(key.to_bytes(), value)))
}
