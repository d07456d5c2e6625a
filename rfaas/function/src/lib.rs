//! Functions of rFaaS in Rust.
//!
//! A crate of type `cdylib` exports them with [`function!`]. Each gets its input, a place for its output, and the call
//! that it is called by, which a function of a graph may ask for more.
//!
//! ```
//! use rfaas_function::{Call, End, Failure, Output, function};
//!
//! /// The square root of 2, a step at a time, until it stays the same.
//! fn root(input: &[u8], output: &mut Output<'_>, _call: &mut Call<'_>) -> Result<End, Failure> {
//!     let guess = f64::from_le_bytes(input.try_into().map_err(|_| Failure::new(1))?);
//!     let next = (guess + 2.0 / guess) / 2.0;
//!     output.extend(&next.to_le_bytes())?;
//!     Ok(if next == guess { End::Value } else { End::Again })
//! }
//! function!(root);
//!
//! // One that only has an output.
//! function!(double, |input, output, _| {
//!     let doubled: Vec<u8> = input.iter().map(|byte| byte.wrapping_mul(2)).collect();
//!     output.extend(&doubled)
//! });
//!
//! // A function is tested like any other.
//! let mut place = [0; 8];
//! let mut output = Output::new(&mut place);
//! let end = root(&1.0_f64.to_le_bytes(), &mut output, &mut Call::outside());
//! assert_eq!((end, output.written()), (Ok(End::Again), &1.5_f64.to_le_bytes()[..]));
//! ```
//!
//! # How a call ends
//! A function returns anything that becomes an [`End`]: `()` when its output is written, an [`End`] for something else,
//! or a `Result` of that, whose error fails the run. One that panics ends its executor, as one that crashes does.
//! In a call that belongs to no graph there is nothing but an output: each other end is told to the caller as an output
//! that is larger than any.
//!
//! # Batches
//! A function that is called with several runs of a graph at once is exported with [`batch!`], and gets a [`Run`] of
//! each. Only a graph that says that it takes batches calls it, and as nothing else.
//!
//! # What a slice promises
//! Inputs and outputs lie in memory that others can write: the client, and for a graph the workers before and behind
//! this one, which are the same client's. They write a place again when its run is over, and the function has returned
//! by then. So inputs are slices here, which do not change while a function has them. The promise is the client's,
//! whose functions these are: one that does not follow the protocol can change what its own function reads, from
//! outside, and nobody else's. A function that is not to rely on its client, such as one that is offered to others as a
//! service, has to be called through something that copies inputs before they are looked at.
//!
//! # Versions
//! This crate exports `rfaas_init`, by which an executor gives each worker the table of what functions may ask for. In
//! a process that does not call it, functions have no room for an output: every [`Output`] is full.
//!
//! Functions in C and C++ have the same, in `include/rfaas_function.h`.

mod batch;
mod call;
mod end;
#[doc(hidden)]
#[allow(unsafe_code)] // pointers from the executor, and its table: see there
pub mod interface;
mod items;
mod output;

pub use batch::Run;
pub use call::{About, Call, Sending};
pub use end::{Denied, End, Failure};
pub use interface::{leaving, note};
pub use items::{Item, Items, NotItems, items};
pub use output::{Full, Output};

/// The program in docs/functions.md, which compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/functions.md")]
struct Guide;

/// Exports a function that takes batches: `batch!(name)` a function of this name, `batch!(name, what)` something else that
/// can be called with `&mut [Run<'_>]` under this name. It returns `()`, or a `Result` of that, whose error fails all runs.
///
/// ```
/// use rfaas_function::{Failure, Run, batch};
///
/// /// The length of each input, and in how much company it was.
/// fn measure(runs: &mut [Run<'_>]) -> Result<(), Failure> {
///     let count = u8::try_from(runs.len()).map_err(|_| Failure::new(1))?; // all of them fail
///     for run in runs {
///         match u8::try_from(run.input().len()) {
///             Ok(bytes) => run.output().extend(&[bytes, count])?,
///             Err(_) => run.end(Failure::new(2)), // this one does
///         }
///     }
///     Ok(())
/// }
/// batch!(measure);
///
/// // It is tested like any other.
/// let (mut first, mut second) = ([0; 8], [0; 8]);
/// let mut runs = [Run::new(b"abc", &mut first), Run::new(&[0; 300], &mut second)];
/// measure(&mut runs)?;
/// assert_eq!((runs[0].written(), runs[1].written()), (Ok(&[3, 2][..]), Err(Failure::new(2).into())));
/// # Ok::<_, Failure>(())
/// ```
#[macro_export]
macro_rules! batch {
    ($name:ident) => {
        $crate::batch!($name, $name);
    };
    ($name:ident, $what:expr) => {
        const _: () = {
            #[allow(unsafe_code)]
            #[unsafe(export_name = concat!("rfaas_batch_", stringify!($name)))]
            unsafe extern "C" fn exported(
                runs: *const *mut $crate::interface::BatchRun,
                count: u32,
            ) -> i32 {
                // SAFETY: executors call it, with what the function interface says.
                unsafe { $crate::interface::enter_batch(runs, count, $what) }
            }
        };
    };
}

/// Exports a function: `function!(name)` a function of this name, `function!(name, what)` something else that can be
/// called with `(&[u8], &mut Output<'_>, &mut Call<'_>)` under this name, such as a closure. What it returns becomes an
/// [`End`].
///
/// ```
/// rfaas_function::function!(length, |input, output, _| output.extend(&input.len().to_le_bytes()));
/// ```
#[macro_export]
macro_rules! function {
    ($name:ident) => {
        $crate::function!($name, $name);
    };
    ($name:ident, $what:expr) => {
        const _: () = {
            #[allow(unsafe_code)]
            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C" fn exported(input: *const u8, bytes: u32, output: *mut u8) -> u32 {
                // SAFETY: executors call it, with what the function interface says.
                unsafe { $crate::interface::enter(input, bytes, output, $what) }
            }
        };
    };
}
