//! Foreign code in this process: loading a function library, calling its functions, leaving without
//! being held up by it. The only unsafe code of this program.
//!
//! ```text
//!   sealed file in memory (`file`) ──dlopen /proc/self/fd/N──▶ functions, numbered in the order of their names
//!                       in each worker, before its first call: rfaas_init, if it has that (`table`)
//! ```
//! The library is the client's and may do whatever a process may: that is why it runs in a process
//! of its own, which holds nothing but one client's lease. So nothing here tries to survive it. A
//! function that crashes, aborts or exits ends the process, and the executor manager tells the client
//! how. What this module owes to its safe callers is that *they* give foreign code no pointer it
//! may not use.
//!
//! Its symbols are there for all that it loads itself, its dependencies and plugins (`RTLD_GLOBAL`). Libraries of the
//! operator that were loaded before there was a lease are not: each keeps its symbols to itself (`RTLD_LOCAL`) until it
//! is the one that is wanted.
//!
//! A library is loaded once and never unloaded: it may have started threads, or registered callbacks,
//! whose code must stay.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use rdmalib::ForkMark;
use rfaas_call::Place;
use rfaas_call::edge::{BatchRun, Turn};
use rfaas_protocol::library::{BATCH_PREFIX, Exports, INIT, LibraryError, exports};

mod error;
mod file;
mod guards;
mod table;
#[cfg(test)]
mod tests;

pub use error::LoadError;
pub use file::{Code, GivenFile, Inherited, SealedFile};
pub use guards::{GuardedMemory, MAX_GUARDS};
pub use table::set_leaving;

/// Of dlopen(3), which libloading has no name for: only what is loaded already is opened.
const RTLD_NOLOAD: c_int = nix::libc::RTLD_NOLOAD;

/// What a function is: `uint32_t name(void *input, uint32_t input_bytes, void *output)`. Typed as one
/// that may unwind, which C++ can do, so that [`enter`] is where that ends.
type Foreign = extern "C-unwind" fn(*mut c_void, u32, *mut c_void) -> u32;

/// What [`INIT`] is: `int32_t rfaas_init(const struct rfaas_api *api)`. It may unwind likewise.
type Init = extern "C-unwind" fn(*const table::Api) -> i32;

/// A file that is a function library as far as can be seen without running it.
#[derive(Debug)]
pub struct CheckedLibrary {
    code: SealedFile,
    /// What it says it has.
    exports: Exports,
}

impl CheckedLibrary {
    /// Looks at `code`. An error if it is none.
    pub fn new(code: SealedFile) -> Result<Self, LoadError> {
        let exports = exports(&code.map()?)?;
        Ok(CheckedLibrary { code, exports })
    }
}

/// A loaded function library.
#[derive(Debug)]
pub struct Library {
    names: Vec<String>,
    functions: Vec<Function>,
    /// Those that take batches, by name.
    batches: Vec<(String, BatchFunction)>,
    /// What is to be called in each worker first.
    init: Option<Init>,
    /// Never closed: the loader knows a library by its path, so another library must not get this
    /// number while this one is loaded.
    code: ManuallyDrop<OwnedFd>,
    /// Never closed; see the module's words on unloading.
    _handle: ManuallyDrop<Handle>,
}

impl Library {
    /// Loads what was `checked`. Runs its constructors, once.
    pub fn load(checked: CheckedLibrary) -> Result<Library, LoadError> {
        Library::load_as(checked, RTLD_GLOBAL)
    }

    /// Loads one that may be wanted later, and whose symbols are nobody else's until it is
    /// [published](Self::publish).
    pub fn load_early(checked: CheckedLibrary) -> Result<Library, LoadError> {
        Library::load_as(checked, RTLD_LOCAL)
    }

    /// Has its symbols found by what it loads itself, as if it was loaded now. Its constructors have run.
    pub fn publish(&self) -> Result<(), LoadError> {
        let path = format!("/proc/self/fd/{}", self.code.as_raw_fd());
        let flags = RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL;
        // SAFETY: the library is loaded, so this runs no code of it (RTLD_NOLOAD).
        let handle = unsafe { Handle::open(Some(&path), flags) };
        let handle = handle.map_err(|error| LoadError::Loader(loaders_words(&error, &path)))?;
        std::mem::forget(handle); // never closed, like the first one
        Ok(())
    }

    fn load_as(checked: CheckedLibrary, scope: c_int) -> Result<Library, LoadError> {
        let CheckedLibrary { code, exports: Exports { functions: names, batches, init } } = checked;
        let process = ForkMark::new();
        let path = format!("/proc/self/fd/{}", code.as_fd().as_raw_fd());
        // SAFETY: loading runs the library's constructors. They are the client's code in the
        // client's process, like its functions (module docs), and rely on nothing of ours.
        let handle = unsafe { Handle::open(Some(&path), RTLD_NOW | scope) };
        if !process.is_here() {
            leave_forked();
        }
        let handle = handle.map_err(|error| match Path::new(&path).exists() {
            true => LoadError::Loader(loaders_words(&error, &path)),
            false => LoadError::NoProc,
        })?;
        // What the loader does not find after all cannot be called; the rest can.
        let exported = names.len();
        let found = names.into_iter().filter_map(|name| find(&handle, &name).map(|f| (name, f)));
        let (names, functions): (Vec<_>, Vec<_>) = found.unzip();
        let batches = batches.into_iter().filter_map(|name| {
            let Function(code) = find(&handle, &format!("{BATCH_PREFIX}{name}"))?;
            Some((name, BatchFunction(code)))
        });
        let batches: Vec<_> = batches.collect();
        let init = if init { find_init(&handle) } else { None };
        tracing::debug!(
            exported,
            callable = names.len(),
            batches = batches.len(),
            init = init.is_some(),
            "library loaded"
        );
        if names.is_empty() && batches.is_empty() {
            return Err(LibraryError::NoFunctions.into());
        }
        Ok(Library {
            names,
            functions,
            batches,
            init,
            code: ManuallyDrop::new(code.into_descriptor()),
            _handle: ManuallyDrop::new(handle),
        })
    }

    /// Returns the names of the functions, in the order of their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the number of the function called `name`.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.names.iter().position(|known| known == name).and_then(|at| u32::try_from(at).ok())
    }

    /// Returns the number of the function called `name` among those that take batches.
    pub fn batch_number(&self, name: &str) -> Option<u32> {
        self.batches
            .iter()
            .position(|(known, _)| known == name)
            .and_then(|at| u32::try_from(at).ok())
    }

    /// Returns whether each worker is to [initialise](Self::initialise) it.
    pub fn has_init(&self) -> bool {
        self.init.is_some()
    }

    /// Gives it what its functions may ask for on this thread, which is that of worker number `worker`. To be called
    /// once, before they are. `room`: bytes that the output of a call holds that belongs to no graph.
    pub fn initialise(&self, worker: u16, room: u32) -> Result<(), LoadError> {
        let Some(init) = self.init else { return Ok(()) };
        let process = ForkMark::new();
        table::set_room(room);
        let returned = enter_init(init, &table::TABLE);
        if !process.is_here() {
            leave_forked();
        }
        if returned == 0 { Ok(()) } else { Err(LoadError::Init { returned, worker }) }
    }

    /// Returns the function of this number.
    #[inline]
    pub fn function(&self, number: u32) -> Option<Function> {
        self.functions.get(number as usize).copied()
    }

    /// Returns that of this number among those that take batches.
    pub fn batch_function(&self, number: u32) -> Option<BatchFunction> {
        self.batches.get(number as usize).map(|(_, function)| *function)
    }
}

/// A function of a library; callable for ever, since libraries are not unloaded.
#[derive(Clone, Copy, Debug)]
pub struct Function(Foreign);

impl Function {
    /// Calls it with the input of `place`. Returns how many bytes of output it says it wrote, which
    /// may be any number.
    #[inline]
    pub fn call(self, place: Place<'_>) -> u32 {
        enter(self.0, place.input().cast(), place.input_bytes(), place.output().cast())
    }

    /// Does the same for a function of a graph, and lets it ask `turn` for more through the table that it was given.
    #[inline]
    pub fn call_in(self, place: Place<'_>, turn: &mut dyn Turn) -> u32 {
        table::during(turn, || self.call(place))
    }
}

/// A function that takes batches, likewise: `int32_t rfaas_batch_NAME(struct rfaas_run *const *runs, uint32_t count)`.
/// Typed as one of the usual kind, of which it is called as what it is: arguments are in the registers in which C has
/// them, and one that takes two does not look at the third.
#[derive(Clone, Copy, Debug)]
pub struct BatchFunction(Foreign);

impl BatchFunction {
    /// Calls it with `runs`, of which it sets what is its to set, and lets it ask `turn`. `pointers` is what it gets:
    /// it is filled here, and kept by the caller so that a call allocates nothing. Returns what the function returns.
    pub fn call(
        self,
        runs: &mut [BatchRun],
        pointers: &mut Vec<*mut BatchRun>,
        turn: &mut dyn Turn,
    ) -> i32 {
        let count = u32::try_from(runs.len()).expect("no more than slots");
        let first = runs.as_mut_ptr();
        pointers.clear();
        pointers.extend((0..runs.len()).map(|number| first.wrapping_add(number)));
        // `runs` is borrowed for as long as the function has the pointers. What it writes there are numbers and
        // pointers, of which each value is one.
        let pointers = pointers.as_mut_ptr().cast();
        let returned = table::during(turn, || enter(self.0, pointers, count, std::ptr::null_mut()));
        returned.cast_signed()
    }
}

/// Calls `function`. A C++ exception that nobody catches in it ends the process where it was thrown, with what
/// it says on standard error and SIGABRT, as in a program of C++: who unwinds finds the end of the stack here, since
/// this code has no unwind tables. With tables of Rust it would be caught, and what it says would be lost.
///
/// What the function may do with the pointers: read and write the input, which has the length it is
/// told, and write the output up to the agreed capacity. Both stay valid until it returns. Nobody here
/// has a reference to either, so it may also do so badly; behind the output is a guard.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn enter(function: Foreign, input: *mut c_void, bytes: u32, output: *mut c_void) -> u32 {
    // The arguments move up by one; the stack is aligned at the call.
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov esi, edx",
        "mov rdx, rcx",
        "call rax",
        "pop rbp",
        "ret",
    )
}

/// Likewise.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn enter(function: Foreign, input: *mut c_void, bytes: u32, output: *mut c_void) -> u32 {
    naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "mov x29, sp",
        "mov x8, x0",
        "mov x0, x1",
        "mov w1, w2",
        "mov x2, x3",
        "blr x8",
        "ldp x29, x30, [sp], #16",
        "ret",
    )
}

/// Likewise, where the exception ends here, with SIGABRT alone: an `extern "C"` function does not unwind.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
extern "C" fn enter(function: Foreign, input: *mut c_void, bytes: u32, output: *mut c_void) -> u32 {
    function(input, bytes, output)
}

/// Calls `init` likewise.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn enter_init(init: Init, api: *const table::Api) -> i32 {
    // SAFETY: both are addresses of code, and `enter` does nothing with this one but jump there, with the arguments in
    // the registers in which C has them: one that takes the first alone does not look at the others, and what a
    // function of C returns in 32 bits is in the same register, signed or not.
    let init = unsafe { std::mem::transmute::<Init, Foreign>(init) };
    let returned = enter(init, api.cast_mut().cast(), 0, std::ptr::null_mut());
    returned.cast_signed()
}

/// Likewise.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
extern "C" fn enter_init(init: Init, api: *const table::Api) -> i32 {
    init(api)
}

/// Returns the function of a loaded library that is called first, if the loader knows it.
fn find_init(library: &Handle) -> Option<Init> {
    // SAFETY: as in `find`, with the type that the header gives it.
    let symbol = unsafe { library.get::<Option<Init>>(INIT) };
    symbol.ok().and_then(|symbol| *symbol)
}

/// Returns the function called `name` of a loaded library. `None` if the loader does not know it,
/// or its resolver (an ifunc's) finds none for this processor.
fn find(library: &Handle, name: &str) -> Option<Function> {
    // SAFETY: the symbol is code that the library defines (`exported_functions`), and that its functions have
    // this type is what a client promises by sending a library: the machine code itself does not tell. One
    // of another type computes nonsense in the client's own process. That it may be nothing is in the type.
    let symbol = unsafe { library.get::<Option<Foreign>>(name) };
    symbol.ok().and_then(|symbol| (*symbol).map(Function))
}

/// Returns what the loader said, without the path, which means nothing to the client.
fn loaders_words(error: &libloading::Error, path: &str) -> String {
    let words = std::error::Error::source(error).unwrap_or(error).to_string();
    words.replace(path, "the library")
}

/// Time that a library's destructors have when the process ends.
const DESTRUCTORS: Duration = Duration::from_millis(100);

/// Ends the process with `status` in the orderly way, in which a library's destructors run and what
/// its functions printed is flushed; but at once if that takes longer than 100 ms.
///
/// Only for when no code of the library runs any more: destructors pull the ground from under it, and a
/// constructor holds the loader's lock.
pub fn leave(status: i32) -> ! {
    thread::spawn(move || {
        thread::sleep(DESTRUCTORS);
        leave_at_once(status)
    });
    std::process::exit(status)
}

/// Ends a process that a function, or a constructor, has forked and returned in: it was to do something else, and
/// the executor's connections are not its own.
#[cold]
pub fn leave_forked() -> ! {
    leave_at_once(0)
}

/// Ends the process with `status`, also while functions run.
pub fn leave_at_once(status: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions; it runs nothing in this process.
    unsafe { nix::libc::_exit(status) }
}
