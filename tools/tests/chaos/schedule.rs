//! Which faults come when: made of the seed alone, so that a seed that fails can be tried again. What runs at that
//! moment is up to the machine.

use std::fmt;
use std::time::Duration;

/// Lease cycles between two faults: at least, and how many different numbers there are.
const BETWEEN: (u32, u64) = (4, 9);
/// How long somebody is stopped, or away until started again, at least, and how many milliseconds more there may be:
/// some are shorter than the silence that is as good as a death, a second, and some are longer. Faults overlap.
const AWAY_MS: (u64, u64) = (50, 1800);

/// Whom a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// One of those that run then: so many modulo their number.
    Executor(usize),
    /// Of this node.
    ExecutorManager(usize),
    /// Its number.
    Client(usize),
    ResourceManager,
}

impl Victim {
    pub fn name(self) -> &'static str {
        match self {
            Victim::Executor(_) => "executor",
            Victim::ExecutorManager(_) => "executor manager",
            Victim::Client(_) => "client",
            Victim::ResourceManager => "resource manager",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; managers and clients are started again.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Stop,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// When so many cycles have ended.
    pub cycle: u32,
    pub victim: Victim,
    pub fault: Fault,
    /// From the fault until it goes on or is started again.
    pub away: Duration,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Strike { cycle, victim, fault, away } = self;
        write!(f, "after cycle {cycle}: {fault:?} {victim:?} for {} ms", away.as_millis())
    }
}

/// The faults of a run of `cycles` cycles with `clients` clients on `nodes` nodes.
pub fn schedule(seed: u64, cycles: u32, clients: usize, nodes: usize) -> Vec<Strike> {
    let mut random = Random::new(seed);
    let mut strikes = Vec::new();
    let mut cycle = 0;
    loop {
        cycle += BETWEEN.0 + random.below(BETWEEN.1) as u32;
        if cycle >= cycles {
            return strikes;
        }
        let any = random.below(1000) as usize;
        let victim = match random.below(8) {
            0..3 => Victim::Executor(any),
            3..5 => Victim::ExecutorManager(any % nodes),
            5..7 => Victim::Client(any % clients),
            _ => Victim::ResourceManager,
        };
        let fault = if random.below(2) == 0 { Fault::Kill } else { Fault::Stop };
        let away = Duration::from_millis(AWAY_MS.0 + random.below(AWAY_MS.1));
        strikes.push(Strike { cycle, victim, fault, away });
    }
}

/// Numbers that a seed decides: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The seed decides everything.
pub fn the_seed_alone_decides_which_faults_come_when() {
    let one = schedule(1, 2000, 8, 3);
    assert_eq!(one, schedule(1, 2000, 8, 3));
    assert_ne!(one, schedule(2, 2000, 8, 3));
    assert!(one.is_sorted_by_key(|strike| strike.cycle));
    for victim in [Victim::ExecutorManager(2), Victim::Client(7), Victim::ResourceManager] {
        for fault in [Fault::Kill, Fault::Stop] {
            let meets = |strike: &Strike| strike.victim == victim && strike.fault == fault;
            assert!(one.iter().any(meets), "{fault:?} {victim:?} never comes");
        }
    }
}
