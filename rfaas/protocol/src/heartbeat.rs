//! Signs of life on a control connection, and what their absence means. Pure: the caller has the clock.
//!
//! ```text
//!   we      ──beat──────beat──────beat──▶          one in every period
//!   peer    ──heard─────heard   ·    ·    · silent  nothing for so long: as good as dead
//! ```
//! That a process was killed is known at once, from its connection. That it is stopped, hangs, or
//! has lost its network is known only by its silence. From then on it is treated the same.

use std::time::{Duration, Instant};

/// How often a side gives a sign of life, and after which silence it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between two signs of life.
    pub period: Duration,
    /// Longest time without a sign of life.
    pub silence: Duration,
}

impl Heartbeat {
    /// Shortest period, in milliseconds: below it, a busy machine looks dead.
    pub const SHORTEST_PERIOD_MS: u32 = 10;
    /// A side is given up after at least so many periods, so that one beat that is late does no harm.
    pub const FEWEST_PERIODS: u32 = 2;

    /// Takes what a configuration or a peer says, in milliseconds. What is too short is made longer.
    pub fn from_ms(period_ms: u32, silence_ms: u32) -> Self {
        let period_ms = period_ms.max(Self::SHORTEST_PERIOD_MS);
        let silence_ms = silence_ms.max(period_ms.saturating_mul(Self::FEWEST_PERIODS));
        Heartbeat {
            period: Duration::from_millis(period_ms.into()),
            silence: Duration::from_millis(silence_ms.into()),
        }
    }

    /// Returns the period in milliseconds, for the wire.
    pub fn period_ms(&self) -> u32 {
        u32::try_from(self.period.as_millis()).unwrap_or(u32::MAX)
    }

    /// Returns the silence in milliseconds, for the wire.
    pub fn silence_ms(&self) -> u32 {
        u32::try_from(self.silence.as_millis()).unwrap_or(u32::MAX)
    }
}

/// The signs of life of one connection: ours to the peer, and its to us.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    heartbeat: Heartbeat,
    heard: Instant,
    beat_at: Instant,
}

impl Pulse {
    /// Begins now: the peer was just heard, and the first beat is due.
    pub fn new(heartbeat: Heartbeat, now: Instant) -> Self {
        Pulse::together(heartbeat, now, now)
    }

    /// Begins now, like [`new`](Self::new). The first beat is due at `beat_at`, with those of other connections: who is
    /// asked for all of them at that time gives the next ones together too.
    pub fn together(heartbeat: Heartbeat, now: Instant, beat_at: Instant) -> Self {
        Pulse { heartbeat, heard: now, beat_at }
    }

    /// Notes that the peer said something.
    pub fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// Returns whether a sign of life is to be sent, once a period. To be asked before
    /// [`silent`](Self::silent): a process that is late for its own sign of life was stopped
    /// itself, and the time in which it read nothing does not count.
    pub fn beat(&mut self, now: Instant) -> bool {
        let due = now >= self.beat_at;
        if now >= self.beat_at + self.heartbeat.period {
            self.heard = now;
        }
        if due {
            self.beat_at = now + self.heartbeat.period;
        }
        due
    }

    /// Returns for how long the peer has been silent, if that is too long. To be asked after
    /// everything that it sent was taken: a peer whose messages are still unread is not silent.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let silence = now.saturating_duration_since(self.heard);
        (silence >= self.heartbeat.silence).then_some(silence)
    }

    /// Returns when there is something to do at the latest.
    pub fn deadline(&self) -> Instant {
        self.beat_at.min(self.heard + self.heartbeat.silence)
    }
}

/// The signs of life of a peer that counts them up in memory. They are read once a period. The peer
/// is silent after so many readings that found nothing new, however much time lies between them: a
/// process that was stopped itself has not read.
#[derive(Clone, Copy, Debug)]
pub struct Beats {
    /// `None` before the first reading, which says nothing.
    seen: Option<u64>,
    idle_readings: u32,
    most_idle_readings: u32,
}

impl Beats {
    /// Begins with the first reading.
    pub fn new(heartbeat: Heartbeat) -> Self {
        let looks = heartbeat.silence.as_nanos().div_ceil(heartbeat.period.as_nanos().max(1));
        let most_idle_readings = u32::try_from(looks).unwrap_or(u32::MAX);
        Beats { seen: None, idle_readings: 0, most_idle_readings }
    }

    /// Takes a reading of the count. Returns whether the peer has been silent for too long.
    pub fn silent(&mut self, count: u64) -> bool {
        let idle = self.seen.replace(count) == Some(count);
        self.idle_readings = if idle { self.idle_readings.saturating_add(1) } else { 0 };
        self.idle_readings >= self.most_idle_readings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_too_short_for_a_busy_machine_is_made_longer() {
        let least = Heartbeat::from_ms(0, 0);
        assert_eq!((least.period_ms(), least.silence_ms()), (10, 20));
        let given = Heartbeat::from_ms(1000, 5000);
        assert_eq!((given.period_ms(), given.silence_ms()), (1000, 5000));
        assert_eq!(Heartbeat::from_ms(u32::MAX, 0).silence_ms(), u32::MAX);
    }

    #[test]
    fn a_beat_is_due_once_a_period_and_a_peer_silent_after_its_limit() {
        let now = Instant::now();
        let mut pulse = Pulse::new(Heartbeat::from_ms(100, 300), now);
        assert!(pulse.beat(now) && !pulse.beat(now + 99 * MS));
        assert_eq!(pulse.deadline(), now + 100 * MS);
        assert!(pulse.beat(now + 100 * MS));
        assert_eq!(pulse.silent(now + 299 * MS), None);
        assert_eq!(pulse.silent(now + 300 * MS), Some(300 * MS));
        pulse.heard(now + 300 * MS);
        assert_eq!(pulse.silent(now + 599 * MS), None);
    }

    #[test]
    fn those_that_begin_together_go_on_together() {
        let now = Instant::now();
        let (heartbeat, first) = (Heartbeat::from_ms(100, 300), now + 70 * MS);
        let mut pulses = [0, 30].map(|ms| Pulse::together(heartbeat, now + ms * MS, first));
        for late in [0, 20, 0] {
            let due = pulses[0].deadline();
            assert!(
                pulses.iter_mut().all(|pulse| !pulse.beat(due - MS) && pulse.beat(due + late * MS))
            );
            assert_eq!(pulses[0].deadline(), pulses[1].deadline());
            pulses.iter_mut().for_each(|pulse| pulse.heard(due));
        }
    }

    #[test]
    fn a_count_that_stands_still_for_the_limit_is_silence() {
        let mut beats = Beats::new(Heartbeat::from_ms(100, 250));
        assert!(![0, 0, 1, 1, 1].map(|count| beats.silent(count)).contains(&true));
        assert!(beats.silent(1));
        assert!(!beats.silent(2));
    }

    #[test]
    fn who_was_stopped_itself_judges_nobody_by_that_time() {
        let now = Instant::now();
        let mut pulse = Pulse::new(Heartbeat::from_ms(100, 300), now);
        assert!(pulse.beat(now));
        let late = now + 60_000 * MS;
        assert!(pulse.beat(late) && pulse.silent(late).is_none());
        for beat in [100, 200, 300] {
            assert!(pulse.beat(late + beat * MS));
        }
        assert_eq!(pulse.silent(late + 300 * MS), Some(300 * MS));
    }
}
