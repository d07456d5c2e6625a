//! What a function died of, where the signal alone does not say it.
//!
//! ```text
//!   SIGSEGV, SIGABRT ──handler──▶ in the guard page of this thread's stack? ──yes──▶ it dies of STACK_OVERFLOW
//!                                     └──no──▶ memory was refused before? ──yes──▶ … of MEMORY_LIMIT
//!                                                            └──no──▶ … of the same signal, as without a handler
//! ```
//! A signal of its own is news that reaches the client in any case: whoever waits for a process learns
//! it. The kernel sends neither to an executor, so only a function that raises it itself deceives its own caller.
//! * Memory was refused: the last error of the thread is ENOMEM, which the C library leaves there when an allocation
//!   fails. What a function then does of itself is to use a null pointer, or to end with an exception or an assertion.
//! * The handler runs on the stack for signals that the standard library gives its threads. A thread that
//!   a function has started has none: its overflow is SIGSEGV.
//! * A function that handles these signals itself has taken the place of this handler.
//!
//! Elsewhere: the signals that ask the process to end (`signals`).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use nix::errno::Errno;
use nix::libc::{self, pthread_attr_t, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction, signal};
use rfaas_protocol::assignment::{MEMORY_LIMIT, STACK_OVERFLOW};

thread_local! {
    /// Where the guard page of this thread's stack is, once that is known.
    static GUARD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Has the signals handled.
pub fn watch() -> nix::Result<()> {
    let handler = SigHandler::SigAction(on_fatal);
    let action = SigAction::new(handler, SaFlags::SA_ONSTACK, SigSet::empty());
    for kind in [Signal::SIGSEGV, Signal::SIGABRT] {
        // SAFETY: the handler does only what signal-safety(7) allows: it reads errno and a thread-local cell, which
        // this program has from its start (`const`, no destructor), and makes system calls. What it replaces is the
        // standard library's handler of SIGSEGV, which would print a line and abort.
        unsafe { sigaction(kind, &action) }?;
    }
    Ok(())
}

/// Notes where the stack of this thread ends.
pub fn note_stack() {
    if let Some(guard) = guard() {
        GUARD.set((guard.start, guard.end));
    }
}

/// Returns where the guard page is: directly below the stack or, in older C libraries, at its lowest end. Nothing else
/// that faults is within a page's size of that place: it is the stack itself.
fn guard() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::<pthread_attr_t>::uninit();
    // SAFETY: it has no preconditions.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: this thread lives, and the place is that of such a value.
    if unsafe { libc::pthread_getattr_np(this, attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call before has initialised it.
    let mut attributes = unsafe { attributes.assume_init() };
    let (mut lowest, mut size, mut guard) = (ptr::null_mut(), 0, 0);
    // SAFETY: the attributes are initialised, and the places are those of such values.
    let stack = unsafe { libc::pthread_attr_getstack(&attributes, &mut lowest, &mut size) };
    // SAFETY: likewise.
    let guarded = unsafe { libc::pthread_attr_getguardsize(&attributes, &mut guard) };
    // SAFETY: initialised, and not used again.
    unsafe { libc::pthread_attr_destroy(&mut attributes) };
    let lowest = lowest.addr();
    (stack == 0 && guarded == 0).then(|| lowest.saturating_sub(guard)..lowest.saturating_add(guard))
}

extern "C" fn on_fatal(number: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let refused = Errno::last_raw() == Errno::ENOMEM as i32; // before calls that may change it
    let (start, end) = GUARD.get();
    if number == Signal::SIGSEGV as c_int && (start..end).contains(&address(info)) {
        die_of(STACK_OVERFLOW);
    } else if refused {
        die_of(MEMORY_LIMIT);
    }
    die_of(number); // if the other is blocked, or was of no concern
}

/// Returns the address that was accessed.
fn address(info: *mut siginfo_t) -> usize {
    // SAFETY: the kernel passes a valid siginfo_t to a handler with SA_SIGINFO (nix sets that flag for
    // such a handler), which lives until the handler returns; nobody else has it.
    let info = unsafe { &*info };
    // SAFETY: every siginfo_t is as large as the union with this field, and any bytes are an address, which is not
    // used. For a SIGSEGV that a process has sent it is another number.
    unsafe { info.si_addr() }.addr()
}

/// Has the process die of signal `number`: at once, or as soon as the handler returns if that signal is handled.
fn die_of(number: c_int) {
    let Ok(kind) = Signal::try_from(number) else { return };
    // SAFETY: the default disposition runs no code of this program.
    let _ = unsafe { signal(kind, SigHandler::SigDfl) };
    let _ = raise(kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_of_a_thread_is_below_its_stack_and_nobody_may_use_it() {
        let of_thread = || {
            let mut on_stack = 0u8;
            let on_stack = (&raw mut *std::hint::black_box(&mut on_stack)).addr();
            (guard().unwrap(), on_stack, std::fs::read_to_string("/proc/self/maps").unwrap())
        };
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(of_thread).unwrap();
        let (guard, on_stack, maps) = thread.join().unwrap();
        assert!(guard.end < on_stack, "{guard:x?}, {on_stack:x}");
        let without_rights = maps.lines().filter(|line| line.contains(" ---p ")).any(|line| {
            let (start, rest) = line.split_once('-').unwrap();
            let bound = |text: &str| usize::from_str_radix(text, 16).unwrap();
            let end = bound(rest.split_once(' ').unwrap().0);
            bound(start) < guard.end && guard.start < end
        });
        assert!(without_rights, "{guard:x?} in\n{maps}");
    }
}
