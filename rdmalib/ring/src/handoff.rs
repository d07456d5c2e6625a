//! The ownership hand-off: a state that belongs to one of two threads. The poster finds it without
//! a lock as long as nothing has to wait, and the helper takes over while requests wait.
//!
//! ```text
//!   PosterEnd ──give──▶ HelperEnd ──give_back──▶ PosterEnd
//! ```
//! The flag is stored with Release by the end that lets go, and loaded with Acquire by the end that
//! takes. Only the current holder changes it, so one end at most uses the state.

#![allow(unsafe_code)]

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(loom))]
use std::cell::UnsafeCell;
use std::sync::Arc;

use crate::sync::{AtomicBool, Ordering};

struct Handoff<T> {
    with_helper: AtomicBool,
    state: UnsafeCell<T>,
}

// SAFETY: the state is reached only through the two ends, which hand it over by the flag, so it is
// never used by two threads at once; `T: Send` lets it change threads.
unsafe impl<T: Send> Sync for Handoff<T> {}

/// The poster's end of a hand-off.
pub struct PosterEnd<T>(Arc<Handoff<T>>);

/// The helper's end of a hand-off.
pub struct HelperEnd<T>(Arc<Handoff<T>>);

/// Makes the two ends of a hand-off. The poster holds `state` at first.
pub fn hand_off<T>(state: T) -> (PosterEnd<T>, HelperEnd<T>) {
    let shared =
        Arc::new(Handoff { with_helper: AtomicBool::new(false), state: UnsafeCell::new(state) });
    (PosterEnd(shared.clone()), HelperEnd(shared))
}

impl<T> PosterEnd<T> {
    /// Runs `f` on the state. `None` if the helper holds it.
    #[inline]
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.0.with_helper.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the flag says poster, only the poster's end could change that (`give`), and that
        // end is borrowed exclusively here; the helper's end does not touch the state meanwhile.
        Some(with_cell(&self.0.state, |state| f(unsafe { &mut *state })))
    }

    /// Hands the state to the helper. Without effect if the helper holds it already.
    pub fn give(&mut self) {
        self.0.with_helper.store(true, Ordering::Release);
    }
}

impl<T> HelperEnd<T> {
    /// Runs `f` on the state. `None` if the poster holds it.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.0.with_helper.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: as in `PosterEnd::with`, with the sides exchanged.
        Some(with_cell(&self.0.state, |state| f(unsafe { &mut *state })))
    }

    /// Hands the state back to the poster. Without effect if the poster holds it already.
    pub fn give_back(&mut self) {
        if self.0.with_helper.load(Ordering::Acquire) {
            self.0.with_helper.store(false, Ordering::Release);
        }
    }
}

#[cfg(not(loom))]
#[inline]
fn with_cell<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    f(cell.get())
}

#[cfg(loom)]
fn with_cell<T, R>(cell: &UnsafeCell<T>, f: impl FnOnce(*mut T) -> R) -> R {
    cell.with_mut(f)
}

impl<T> std::fmt::Debug for PosterEnd<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PosterEnd")
    }
}

impl<T> std::fmt::Debug for HelperEnd<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HelperEnd")
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;

    #[test]
    fn loom_the_state_never_has_two_holders() {
        loom::model(|| {
            let (mut poster, mut helper) = hand_off(0);
            poster.with(|n| *n += 1).expect("the poster starts");
            poster.give();
            let other = loom::thread::spawn(move || {
                helper.with(|n| *n += 10).expect("given before the thread started");
                helper.give_back();
            });
            let seen = poster.with(|n| *n); // loom fails if both use it at once
            assert!(seen.is_none() || seen == Some(11));
            other.join().expect("no panic");
            assert_eq!(poster.with(|n| *n), Some(11));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod facts {
    use super::*;

    #[test]
    fn only_the_holder_reaches_the_state() {
        let (mut poster, mut helper) = hand_off(1);
        assert_eq!(helper.with(|n| *n), None);
        assert_eq!(poster.with(|n| *n), Some(1));
        poster.give();
        assert_eq!(poster.with(|n| *n), None);
        assert_eq!(helper.with(|n| std::mem::replace(n, 2)), Some(1));
        helper.give_back();
        assert_eq!(poster.with(|n| *n), Some(2));
        assert_eq!(helper.with(|n| *n), None);
    }
}
