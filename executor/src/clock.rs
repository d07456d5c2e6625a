//! Time as this program counts it: nanoseconds for threads that wait, ticks for counting on the hot path.
//!
//! A tick is the processor's time-stamp counter where the kernel itself keeps time by it: then it counts at
//! one rate, also while the processor sleeps, and the same on all cores (`current_clocksource` of sysfs;
//! Linux, Documentation/timers/timekeeping.rst). Elsewhere a tick is a nanosecond. Reading one takes 7 ns
//! instead of the 16 of `clock_gettime(2)`, measured on an Intel Xeon at 2.6 GHz. How long ticks are, the
//! time since the program's start tells, so no time is spent on finding it out.

#![allow(unsafe_code)]

use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};

/// One millisecond.
pub const MS: u64 = 1_000_000;

/// Now, in nanoseconds on `CLOCK_MONOTONIC`, the same for all threads. Read from the vDSO, without a system
/// call.
#[inline]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("Linux always has CLOCK_MONOTONIC (clock_gettime(2))");
    // Never negative: it counts from the machine's start.
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The same moment on both clocks.
#[derive(Clone, Copy, Debug)]
struct Moment {
    ticks: u64,
    ns: u64,
}

/// Where both clocks were when the program started; `None` if ticks are nanoseconds.
static START: OnceLock<Option<Moment>> = OnceLock::new();

/// Chooses what ticks are. To be called at the start of the program; the first call decides.
pub fn start() {
    start_of_ticks();
}

#[inline]
fn start_of_ticks() -> Option<&'static Moment> {
    START.get_or_init(choose).as_ref()
}

#[cold]
fn choose() -> Option<Moment> {
    const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = std::fs::read_to_string(SOURCE).unwrap_or_default();
    (source.trim() == "tsc").then(moment).flatten()
}

/// Reads both clocks. A thread that has to wait for its processor in between reads them again, some times.
fn moment() -> Option<Moment> {
    const TRIES: usize = 8;
    const AT_ONCE_NS: u64 = 1000;
    let read = || {
        let (before, ticks, after) = (now_ns(), counter()?, now_ns());
        Some((after - before, Moment { ticks, ns: before + (after - before) / 2 }))
    };
    let mut best: Option<(u64, Moment)> = None;
    for _ in 0..TRIES {
        let (took, moment) = read()?;
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, moment));
        }
        if took <= AT_ONCE_NS {
            break;
        }
    }
    best.map(|(_, moment)| moment)
}

/// Returns the time-stamp counter, on processors that have one.
#[inline]
fn counter() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction; it reads a counter and touches nothing. Linux can
    // forbid it to a process (PR_SET_TSC, prctl(2)), which then keeps time by nothing else either: its
    // vDSO reads this counter.
    return Some(unsafe { std::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Now, in ticks.
#[inline]
pub fn ticks() -> u64 {
    match start_of_ticks() {
        Some(_) => counter().unwrap_or_default(),
        None => now_ns(),
    }
}

/// Returns how many nanoseconds so many ticks take.
pub fn ns_of(ticks: u64) -> u64 {
    scaled(ticks, |passed| (passed.ns, passed.ticks))
}

/// Returns how many ticks take so many nanoseconds.
pub fn ticks_of(ns: u64) -> u64 {
    scaled(ns, |passed| (passed.ticks, passed.ns))
}

fn scaled(amount: u64, ratio: impl FnOnce(Moment) -> (u64, u64)) -> u64 {
    let Some(start) = start_of_ticks() else { return amount };
    let Some(now) = moment() else { return amount };
    let passed = Moment {
        ticks: now.ticks.saturating_sub(start.ticks),
        ns: now.ns.saturating_sub(start.ns),
    };
    let (times, by) = ratio(passed);
    let scaled = u128::from(amount) * u128::from(times) / u128::from(by.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ticks_pass_as_the_clock_does() {
        start();
        let (start, from) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(30));
        let (passed, took) = (ticks() - from, start.elapsed());
        // The two clocks were not read at the same moments: at most `took` lies between the readings.
        let ns = ns_of(passed);
        assert!(ns >= 29 * MS, "{ns} ns");
        assert!(ns <= took.as_nanos() as u64 + MS, "{ns} ns of {took:?}");
        let back = ticks_of(ns);
        assert!(back.abs_diff(passed) <= passed / 100, "{back} of {passed}");
    }

    #[test]
    fn ticks_of_two_threads_are_of_one_clock() {
        let before = ticks();
        let there = std::thread::spawn(ticks).join().unwrap();
        assert!(before <= there && there <= ticks());
    }
}
