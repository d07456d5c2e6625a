//! Which fault each request meets: scripts, in a program or in text.

use std::collections::BTreeMap;
use std::env;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

/// Environment variable with a script for every queue pair of the process, each with a stream of
/// its own; see [`Script::from_str`].
pub const VARIABLE: &str = "RDMALIB_FAULTS";

/// Longest delay; longer ones are cut. A helper thread sleeps that long, perhaps for nobody.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// What happens to one send, write, or write with immediate data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer never sees the request, and uses up no receive. It completes with success: a write
    /// of no bytes goes in its place, so the completion of a send has the opcode of a write. An
    /// error in the request itself stays unseen, too.
    Drop,
    /// It, and everything posted after it, goes so much later.
    Delay(Duration),
    /// The peer gets it twice, if the send queue has room for both.
    Duplicate,
    /// The connection ends instead; the request is flushed.
    Disconnect,
    /// The peer gets only so many of its first bytes.
    Truncate(usize),
}

/// How likely each fault is for one request, from 0 to 1, and all together at most 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Chances {
    /// Of [`Fault::Drop`].
    pub drop: f64,
    /// Of [`Fault::Delay`].
    pub delay: f64,
    /// How long that delay is.
    pub delay_for: Duration,
    /// Of [`Fault::Duplicate`].
    pub duplicate: f64,
    /// Of [`Fault::Truncate`], to any length below the request's own, all alike.
    pub truncate: f64,
    /// Of [`Fault::Disconnect`].
    pub disconnect: f64,
}

/// Which requests of a queue pair have which fault: by number, else by chance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    at: BTreeMap<u64, Fault>,
    seed: u64,
    chances: Chances,
}

/// Why a text or numbers are no script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidScript(String);

impl Script {
    /// Makes a script without faults.
    pub fn new() -> Script {
        Script::default()
    }

    /// Makes a script of faults by chance. The same seed gives the same faults to the same sequence
    /// of requests.
    pub fn random(seed: u64, chances: Chances) -> Result<Script, InvalidScript> {
        let Chances { drop, delay, duplicate, truncate, disconnect, .. } = chances;
        let all = [drop, delay, duplicate, truncate, disconnect];
        if !all.iter().all(|chance| (0.0..=1.0).contains(chance)) {
            return Err(InvalidScript("a chance is from 0 to 1".into()));
        }
        if all.iter().sum::<f64>() > 1.0 {
            return Err(InvalidScript("the chances are more than 1 together".into()));
        }
        Ok(Script { at: BTreeMap::new(), seed, chances })
    }

    /// Adds `fault` for request `number`; the first send or write posted from now on is number 0.
    #[must_use]
    pub fn at(mut self, number: u64, fault: Fault) -> Script {
        self.at.insert(number, fault);
        self
    }

    /// The script with chances of its own for queue pair `number`.
    fn stream(&self, number: u32) -> Script {
        Script { seed: random(self.seed, number.into()), ..self.clone() }
    }

    /// Returns what happens to request `number`, of `bytes` bytes.
    pub fn fault(&self, number: u64, bytes: usize) -> Option<Fault> {
        if let Some(fault) = self.at.get(&number) {
            return Some(*fault);
        }
        let Chances { drop, delay, delay_for, duplicate, truncate, disconnect } = self.chances;
        let drawn = random(self.seed, number.wrapping_mul(2));
        let mut left = (drawn >> 11) as f64 / (1u64 << 53) as f64; // as many bits as fit: below 1
        let mut hit = |chance: f64| {
            let hit = (0.0..chance).contains(&left);
            left -= chance;
            hit
        };
        if hit(drop) {
            Some(Fault::Drop)
        } else if hit(delay) {
            Some(Fault::Delay(delay_for))
        } else if hit(duplicate) {
            Some(Fault::Duplicate)
        } else if hit(disconnect) {
            Some(Fault::Disconnect)
        } else if hit(truncate) && bytes > 0 {
            let drawn = random(self.seed, number.wrapping_mul(2).wrapping_add(1));
            Some(Fault::Truncate((drawn % bytes as u64) as usize))
        } else {
            None
        }
    }
}

/// Number `index` of the sequence that begins with `seed`: SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", OOPSLA 2014; constants as in Vigna's splitmix64.c).
fn random(seed: u64, index: u64) -> u64 {
    let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = seed.wrapping_add(step);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Reads `seed=7,drop=0.01,delay=0.05:20ms,duplicate=0.01,truncate=0.005,disconnect=0.001`: a seed,
/// and any of the chances. Delays are in us, ms or s.
impl FromStr for Script {
    type Err = InvalidScript;

    fn from_str(text: &str) -> Result<Script, InvalidScript> {
        let mut seed = None;
        let mut chances = Chances::default();
        for entry in text.split(',') {
            let (key, value) = entry
                .split_once('=')
                .ok_or_else(|| InvalidScript(format!("{entry:?} is not KEY=VALUE")))?;
            let wrong = |what: &str| InvalidScript(format!("{key}={value}: {what}"));
            let chance = |text: &str| text.parse::<f64>().map_err(|_| wrong("not a number"));
            match key {
                "seed" => seed = Some(value.parse().map_err(|_| wrong("not a whole number"))?),
                "drop" => chances.drop = chance(value)?,
                "delay" => {
                    let (of, delay) = value
                        .split_once(':')
                        .ok_or_else(|| wrong("not CHANCE:TIME, e.g. 0.05:20ms"))?;
                    chances.delay = chance(of)?;
                    chances.delay_for =
                        duration(delay).ok_or_else(|| wrong("not a time of at most a minute"))?;
                }
                "duplicate" => chances.duplicate = chance(value)?,
                "truncate" => chances.truncate = chance(value)?,
                "disconnect" => chances.disconnect = chance(value)?,
                _ => {
                    return Err(wrong(
                        "unknown; known are seed, drop, delay, duplicate, truncate, disconnect",
                    ));
                }
            }
        }
        let seed = seed.ok_or_else(|| InvalidScript("seed=NUMBER is missing".into()))?;
        Script::random(seed, chances)
    }
}

fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..unit].parse().ok()?;
    let duration = match &text[unit..] {
        "us" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return None,
    };
    (duration <= MAX_DELAY).then_some(duration)
}

/// What [`VARIABLE`] said when the first device was opened.
static ENVIRONMENT: OnceLock<Option<Script>> = OnceLock::new();

/// Reads [`VARIABLE`] the first time that a device is opened.
pub(crate) fn read_environment() -> Result<(), InvalidScript> {
    if ENVIRONMENT.get().is_some() {
        return Ok(());
    }
    let script = match env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => {
            let script = text.parse().map_err(|e| InvalidScript(format!("{VARIABLE}: {e}")))?;
            tracing::warn!("{VARIABLE}={text}: requests of this process meet these faults");
            Some(script)
        }
        Ok(_) | Err(env::VarError::NotPresent) => None,
        Err(env::VarError::NotUnicode(_)) => {
            return Err(InvalidScript(format!("{VARIABLE} is not UTF-8")));
        }
    };
    ENVIRONMENT.get_or_init(|| script);
    Ok(())
}

/// The script of [`VARIABLE`] for queue pair `number`, if there is one.
pub(crate) fn of_environment(number: u32) -> Option<Script> {
    Some(ENVIRONMENT.get()?.as_ref()?.stream(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_numbers_are_those_of_splitmix64() {
        // The first outputs of splitmix64.c for the seed 1234567.
        let known: [u64; 3] =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|index| random(1_234_567, index)), known);
    }

    fn often() -> Chances {
        Chances {
            drop: 0.1,
            delay: 0.1,
            delay_for: Duration::from_millis(20),
            duplicate: 0.1,
            truncate: 0.1,
            disconnect: 0.1,
        }
    }

    fn faults(script: &Script) -> Vec<Option<Fault>> {
        (0..1000).map(|number| script.fault(number, 100)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_and_another_gives_others() {
        let script = Script::random(7, often()).unwrap();
        assert_eq!(faults(&script), faults(&script.clone()));
        assert_ne!(faults(&script), faults(&Script::random(8, often()).unwrap()));
        assert_ne!(faults(&script.stream(1)), faults(&script.stream(2)));
        assert_eq!(faults(&script.stream(1)), faults(&script.stream(1)));
    }

    #[test]
    fn faults_are_about_as_frequent_as_was_asked_for() {
        let faults = faults(&Script::random(7, often()).unwrap());
        let count = |is: fn(&Fault) -> bool| faults.iter().flatten().filter(|f| is(f)).count();
        for counted in [
            count(|f| *f == Fault::Drop),
            count(|f| *f == Fault::Delay(Duration::from_millis(20))),
            count(|f| *f == Fault::Duplicate),
            count(|f| matches!(f, Fault::Truncate(0..100))),
            count(|f| *f == Fault::Disconnect),
        ] {
            // 100 of 1000 expected, standard deviation 9.5. The sequence is fixed: no luck is
            // needed.
            assert!((70..130).contains(&counted), "{counted}");
        }
    }

    #[test]
    fn chances_of_nothing_and_of_everything_are_just_that() {
        assert!(
            faults(&Script::random(7, Chances::default()).unwrap()).iter().all(Option::is_none)
        );
        let always = Chances { drop: 1.0, ..Chances::default() };
        let dropped = faults(&Script::random(7, always).unwrap());
        assert!(dropped.iter().all(|fault| *fault == Some(Fault::Drop)));
        let cut = Chances { truncate: 1.0, ..Chances::default() };
        assert_eq!(Script::random(7, cut).unwrap().fault(0, 0), None, "nothing can be cut off");
    }

    #[test]
    fn what_is_said_of_a_number_goes_before_chance() {
        let always = Chances { drop: 1.0, ..Chances::default() };
        let script = Script::random(7, always).unwrap().at(5, Fault::Duplicate);
        assert_eq!(script.fault(5, 8), Some(Fault::Duplicate));
        assert_eq!(script.fault(6, 8), Some(Fault::Drop));
    }

    #[test]
    fn a_script_is_read_from_text() {
        let text = "seed=7,drop=0.1,delay=0.1:20ms,duplicate=0.1,truncate=0.1,disconnect=0.1";
        assert_eq!(text.parse(), Script::random(7, often()));
        assert_eq!("seed=1".parse(), Script::random(1, Chances::default()));
    }

    #[test]
    fn what_is_wrong_with_a_text_is_named() {
        for (text, named) in [
            ("", "\"\" is not KEY=VALUE"),
            ("drop=0.1", "seed=NUMBER is missing"),
            ("seed=x", "seed=x: not a whole number"),
            ("seed=1,drop=much", "drop=much: not a number"),
            ("seed=1,drop=1.5", "a chance is from 0 to 1"),
            ("seed=1,drop=NaN", "a chance is from 0 to 1"),
            ("seed=1,drop=0.6,duplicate=0.6", "the chances are more than 1 together"),
            ("seed=1,delay=0.1", "delay=0.1: not CHANCE:TIME, e.g. 0.05:20ms"),
            ("seed=1,delay=0.1:20", "delay=0.1:20: not a time of at most a minute"),
            ("seed=1,delay=0.1:2h", "delay=0.1:2h: not a time of at most a minute"),
            ("seed=1,delay=0.1:61s", "delay=0.1:61s: not a time of at most a minute"),
            (
                "seed=1,lose=1",
                "lose=1: unknown; known are seed, drop, delay, duplicate, truncate, disconnect",
            ),
        ] {
            assert_eq!(text.parse::<Script>(), Err(InvalidScript(named.into())), "{text}");
        }
    }
}
