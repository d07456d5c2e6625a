//! The function interface: pointers from the executor, and the table of what functions may ask for, as
//! `include/rfaas_function.h` has them. All unsafe code of this crate is here.
//!
//! Not to be used but through [`function!`](crate::function).

use std::ffi::{c_char, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use crate::batch::Run;
use crate::call::{About, Call};
use crate::end::{Denied, End};
use crate::output::Output;

/// `struct rfaas_api`, as far as this crate knows it.
#[derive(Debug)]
#[repr(C)]
pub struct Api {
    /// 1.
    pub version: u32,
    /// Size of the whole table.
    pub bytes: u32,
    /// Who is called.
    pub this: extern "C" fn() -> *const This,
    /// How many bytes the output holds.
    pub room: extern "C" fn() -> u32,
    /// Where an input is.
    pub input: unsafe extern "C" fn(u32, *mut *const c_void, *mut u32) -> i32,
    /// Where to write what goes over an edge.
    pub output: unsafe extern "C" fn(u32, *mut *mut c_void, *mut u32) -> i32,
    /// Sends that.
    pub emit: extern "C" fn(u32, u32) -> i32,
    /// Calls with that.
    pub call: unsafe extern "C" fn(u32, u32, *mut *const c_void, *mut u32, u64) -> i32,
    /// Ends a call: the function is called again.
    pub again: unsafe extern "C" fn(*const c_void, u32) -> u32,
    /// Ends a call: the run fails.
    pub fail: extern "C" fn(i32) -> u32,
    /// Ends a call: there is no value.
    pub none: extern "C" fn() -> u32,
    /// Time until the node is left.
    pub leaving: extern "C" fn() -> u64,
    /// Notes a number.
    pub note: unsafe extern "C" fn(*const c_char, i64) -> i32,
}

/// `struct rfaas_self`, as far as this crate knows it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct This {
    /// Size of the whole.
    pub bytes: u32,
    /// Fields of [`About`].
    pub function: u16,
    /// Likewise.
    pub member: u16,
    /// Likewise.
    pub members: u16,
    /// Likewise.
    pub slot: u16,
    /// Likewise.
    pub inputs: u32,
    /// Likewise.
    pub edges: u32,
}

/// `struct rfaas_run`, as far as this crate knows it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BatchRun {
    /// Size of the whole.
    pub bytes: u32,
    /// Slot of the run.
    pub slot: u32,
    /// Where its input is.
    pub input: *const c_void,
    /// How many bytes that has.
    pub input_bytes: u32,
    /// How many bytes its output holds.
    pub room: u32,
    /// Where that goes.
    pub output: *mut c_void,
    /// How many bytes are written.
    pub output_bytes: u32,
    /// How the run is ended: 0 with these, 1 it has failed, 2 there is no value.
    pub ended: u32,
    /// Code of one that has failed.
    pub code: i32,
}

/// What is returned where there is no table.
const NO_RIGHTS: u32 = -3_i32 as u32;

/// The table; null before the executor has given it. It is one for all workers.
static TABLE: AtomicPtr<Api> = AtomicPtr::new(ptr::null_mut());

/// Takes the table. An executor calls it in each worker, before the first call.
#[unsafe(no_mangle)]
extern "C" fn rfaas_init(api: *const Api) -> i32 {
    // SAFETY: the executor passes a table, which begins with two numbers in all versions.
    let version = unsafe { (*api).version };
    // SAFETY: likewise.
    let bytes = unsafe { (*api).bytes };
    if version != 1 || (bytes as usize) < size_of::<Api>() {
        return Denied::NoSuch.code();
    }
    TABLE.store(api.cast_mut(), Ordering::Release);
    0
}

fn table() -> Option<&'static Api> {
    let table = TABLE.load(Ordering::Acquire);
    // SAFETY: null, or a table of the executor, which stays as it is, where it is; it goes as far as the type
    // (`rfaas_init`).
    unsafe { table.as_ref() }
}

/// Bytes that belong to the output of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    at: *const u8,
    bytes: u32,
}

impl Area {
    /// Whether `bytes` bytes at `at` have one in common with it.
    fn overlaps(self, at: *const u8, bytes: u32) -> bool {
        let end = |at: *const u8, bytes: u32| at.addr().saturating_add(bytes as usize);
        at.addr() < end(self.at, self.bytes) && self.at.addr() < end(at, bytes)
    }
}

/// Calls `what` with the input and the place of the output of a function, and returns what the function returns.
///
/// # Safety
/// An executor calls the function, with these: at `input`, so many bytes can be read, and at `output`, those that its
/// table says can be written, as long as the function runs. (For those that nobody else writes them meanwhile, the
/// crate's page has the argument.)
pub unsafe fn enter<E: Into<End>>(
    input: *const u8,
    bytes: u32,
    output: *mut u8,
    what: impl FnOnce(&[u8], &mut Output<'_>, &mut Call<'_>) -> E,
) -> u32 {
    let api = table();
    let area = Area { at: output, bytes: api.map_or(0, |api| (api.room)()) };
    // SAFETY: as the caller says; the room is the table's word for it.
    let place = unsafe { writable(output, area.bytes) };
    let copied: Vec<u8>;
    // SAFETY: as the caller says.
    let mut input = unsafe { readable(input, bytes) };
    if area.overlaps(input.as_ptr(), bytes) {
        copied = input.to_vec(); // no executor does that; but then a slice of it could not stay
        input = &copied;
    }
    let mut output = Output::new(place);
    let end = what(input, &mut output, &mut Call::inside(area)).into();
    let written = output.written();
    match (end, api) {
        (End::Value, _) => written.len() as u32, // at most its room
        (_, None) => NO_RIGHTS,
        // SAFETY: it is a slice of so many bytes.
        (End::Again, Some(api)) => unsafe {
            (api.again)(written.as_ptr().cast(), written.len() as u32)
        },
        (End::NoValue, Some(api)) => (api.none)(),
        (End::Failed(code), Some(api)) => (api.fail)(code),
    }
}

/// Calls `what` with the runs of a batch, and returns what the function returns.
///
/// # Safety
/// An executor calls the function: `runs` are so many pointers to runs, whose inputs can be read and whose outputs can be
/// written as long as the function runs, and are apart from each other.
pub unsafe fn enter_batch<E: Into<End>>(
    runs: *const *mut BatchRun,
    count: u32,
    what: impl FnOnce(&mut [Run<'_>]) -> E,
) -> i32 {
    let at = |number: usize| {
        // SAFETY: as the caller says, there are more than `number`.
        unsafe { *runs.wrapping_add(number) }
    };
    let mut taken = Vec::with_capacity(count as usize);
    for number in 0..count as usize {
        // SAFETY: as the caller says; nobody changes it while it is copied.
        let BatchRun { slot, input, input_bytes, room, output, .. } = unsafe { *at(number) };
        // SAFETY: as the caller says.
        let input = unsafe { readable(input.cast(), input_bytes) };
        // SAFETY: likewise, and no other run has the same output.
        let place = unsafe { writable(output.cast(), room) };
        taken.push(Run::new(input, place).in_batch(number, slot));
    }
    let all = match what(&mut taken).into() {
        End::Value => 0,
        End::Failed(0) => Denied::NoSuch.code(), // 0 would be taken for none
        End::Failed(code) => code,
        End::Again | End::NoValue => Denied::Rights.code(),
    };
    for run in &taken {
        // One that the function has put in the place of another is not ours: that other stays without an end, and fails.
        let Some(number) = run.number() else { continue };
        let (output_bytes, ended, code) = match run.written() {
            Ok(written) => (written.len() as u32, 0, 0), // at most its room
            Err(End::NoValue) => (0, 2, 0),
            Err(End::Failed(code)) => (0, 1, code),
            Err(End::Value | End::Again) => (0, 1, Denied::Rights.code()),
        };
        // SAFETY: as the caller says, and the references that were made of it are to other memory.
        let told = unsafe { &mut *at(number) };
        (told.output_bytes, told.ended, told.code) = (output_bytes, ended, code);
    }
    all
}

/// # Safety
/// So many bytes can be read there for `'a`, and do not change.
unsafe fn readable<'a>(at: *const u8, bytes: u32) -> &'a [u8] {
    match bytes {
        0 => &[],
        // SAFETY: as the caller says.
        _ => unsafe { slice::from_raw_parts(at, bytes as usize) },
    }
}

/// # Safety
/// So many bytes can be written there for `'a`, and nobody else looks at them.
unsafe fn writable<'a>(at: *mut u8, bytes: u32) -> &'a mut [u8] {
    match bytes {
        0 => &mut [],
        // SAFETY: as the caller says. They have been written before, by the system at least.
        _ => unsafe { slice::from_raw_parts_mut(at, bytes as usize) },
    }
}

pub(crate) fn about() -> Option<About> {
    let this = (table()?.this)();
    // SAFETY: null, or so many fields at least, until the function returns: nobody changes them meanwhile.
    let this = unsafe { this.as_ref() }?;
    let This { bytes: _, function, member, members, slot, inputs, edges } = *this;
    Some(About { function, member, members, slot, inputs, edges })
}

pub(crate) fn input<'a>(number: u32, area: Area) -> Result<&'a [u8], Denied> {
    let (mut at, mut bytes) = (ptr::null(), 0);
    let api = table().ok_or(Denied::Rights)?;
    // SAFETY: both can be written.
    Denied::check(unsafe { (api.input)(number, &mut at, &mut bytes) })?;
    let at = at.cast();
    if area.overlaps(at, bytes) {
        return Err(Denied::Busy); // no executor does that
    }
    // SAFETY: what the executor says of an input that it has, until the function returns, for which `'a` stands in
    // `Call`. It is apart from the output, just checked, and edges' outputs are apart from inputs.
    Ok(unsafe { readable(at, bytes) })
}

pub(crate) fn output<'c>(edge: u32, area: Area) -> Result<Output<'c>, Denied> {
    let (mut at, mut bytes) = (ptr::null_mut(), 0);
    let api = table().ok_or(Denied::Rights)?;
    // SAFETY: both can be written.
    Denied::check(unsafe { (api.output)(edge, &mut at, &mut bytes) })?;
    let at = at.cast::<u8>();
    if area.overlaps(at, bytes) {
        return Err(Denied::Rights); // that of the function itself, which an `Output` has already
    }
    // SAFETY: what the executor says of an edge that may be sent over. It is apart from the function's output, just
    // checked; and `'c` is that of the one reference to `Call`, so nobody has one for any edge.
    Ok(Output::new(unsafe { writable(at, bytes) }))
}

/// In how long the node is left on which this runs, as far as its executor has heard, which takes seconds. `None`: it
/// stays. Also in a call that belongs to no graph.
///
/// What takes long can stop before: for example, a function that says [`Again`](End::Again) with what it has so far.
pub fn leaving() -> Option<Duration> {
    match (table()?.leaving)() {
        u64::MAX => None,
        ns => Some(Duration::from_nanos(ns)),
    }
}

/// Notes a number in the trace of the run (of a batch: of all its runs), under a name of 1 to 16 bytes. At most four
/// names; of each, the last number counts. In a graph that is not traced, it does nothing; where no graph calls, it is
/// [`Denied::Rights`].
pub fn note(name: &str, value: i64) -> Result<(), Denied> {
    let api = table().ok_or(Denied::Rights)?;
    let mut key = [0_u8; 17]; // the last one stays
    let place = key[..16].get_mut(..name.len()).filter(|_| !name.contains('\0'));
    place.ok_or(Denied::Bounds)?.copy_from_slice(name.as_bytes());
    // SAFETY: it ends with a zero.
    Denied::check(unsafe { (api.note)(key.as_ptr().cast(), value) })
}

pub(crate) fn emit(edge: u32, bytes: u32) -> Result<(), Denied> {
    let api = table().ok_or(Denied::Rights)?;
    Denied::check((api.emit)(edge, bytes))
}

pub(crate) fn call<'c>(edge: u32, bytes: u32, limit: Duration) -> Result<&'c [u8], Denied> {
    let (mut at, mut size) = (ptr::null(), 0);
    let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    let api = table().ok_or(Denied::Rights)?;
    // SAFETY: both can be written.
    Denied::check(unsafe { (api.call)(edge, bytes, &mut at, &mut size, limit) })?;
    // SAFETY: what the executor says of an answer, until the next call over the edge: `'c` is that of the one reference
    // to `Call`, without which there is none.
    Ok(unsafe { readable(at.cast(), size) })
}
