//! An executor that stands by: started without a lease, which comes over a channel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rfaas_program::local_channel::{LocalChannel, LocalError, to_file};
use rfaas_protocol::Empty;
use rfaas_protocol::assignment::{Assignment, LibraryFile, PreloadedLibrary};
use rfaas_protocol::launch::{FromStandby, ToStandby};

use super::Running;
use crate::cache::Library;
use crate::groups::{GroupLimits, limits_of};
use crate::preload::Kind;

/// How long one may take until it stands by. It takes milliseconds; what takes longer are constructors of libraries.
pub const READY_WITHIN: Duration = Duration::from_secs(10);

/// Descriptors of the manager for one: those of its process, sockets, shared memory; some 13 on any device, rounded up.
const DESCRIPTORS: u64 = 16;

/// Fails if `standing` of them would take more than half of the descriptors of this process, of which it may have
/// `limit`: the other half is for leases.
pub fn check_descriptors(standing: u32, limit: u64) -> Result<(), String> {
    let most = limit / 2 / DESCRIPTORS;
    if u64::from(standing) <= most {
        return Ok(());
    }
    let needed = 2 * DESCRIPTORS * u64::from(standing);
    Err(format!(
        "of executor.prewarm, {standing} executors stand by, and this process may have at most {limit} descriptors \
         (open files), half of them for these: allow {needed} (`ulimit -n`, LimitNOFILE= of systemd) or have {most}"
    ))
}

/// A process that stands by, or will.
#[derive(Debug)]
pub struct Standing {
    pub running: Running,
    /// What it has loaded, or will.
    pub kind: Kind,
    /// What it is ready for.
    expected: Option<Expected>,
    /// Where it hears what to work for.
    channel: LocalChannel,
    /// When it has to be ready; `None`: it is.
    ready_by: Option<Instant>,
    /// Its channel is closed, or has said something else, before it was ready. It has ended, or is killed when it is
    /// late.
    lost: bool,
}

/// A lease, as far as one that stands by is made for it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its memory, in MB.
    pub memory: u32,
    /// What its control group may have already.
    pub limits: Option<GroupLimits>,
}

impl Standing {
    /// Waits for one that was started at `now` to be ready for what is `expected`.
    pub fn new(
        running: Running,
        (kind, expected): (Kind, Option<Expected>),
        channel: LocalChannel,
        now: Instant,
    ) -> Self {
        let ready_by = Some(now + READY_WITHIN);
        Standing { running, kind, expected, channel, ready_by, lost: false }
    }

    /// Whether a lease can have it, as far as is known.
    pub fn is_ready(&self) -> bool {
        self.was_ready() && self.running.process.is_running()
    }

    /// Whether it has ever said that it is ready.
    pub fn was_ready(&self) -> bool {
        self.ready_by.is_none()
    }

    /// When it has to be ready, if it is not.
    pub fn ready_by(&self) -> Option<Instant> {
        self.ready_by.filter(|_| self.running.process.is_running())
    }

    /// What is readable when it is ready, if it is not.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ready_by().filter(|_| !self.lost).map(|_| self.channel.as_fd())
    }

    /// Whether it has become ready just now.
    pub fn hears_ready(&mut self) -> bool {
        if self.ready_by().is_none() || self.lost {
            return false;
        }
        match self.channel.try_receive() {
            Ok(Some((FromStandby::Ready(_), _))) => self.ready_by = None,
            Ok(None) => {}
            Err(_) => self.lost = true,
        }
        self.was_ready()
    }

    /// Gives it its lease. If it has loaded something, `preload`, that is its library. If this fails it is ended.
    pub fn assign(
        self,
        assignment: &Assignment,
        library: &Library,
        preload: &[PreloadedLibrary],
    ) -> Result<Running, LocalError> {
        let loaded = !preload.is_empty();
        let kind = if loaded { LibraryFile::Preloaded } else { assignment.library };
        let assignment = &Assignment { library: kind, ..assignment.clone() };
        let Standing { mut running, channel, expected, .. } = self;
        let file = to_file(c"assignment", assignment)?;
        let has_memory = expected.as_ref().is_some_and(|it| it.memory == assignment.memory);
        let pipe = if has_memory { None } else { Some(io::pipe()?) };
        let mut given = vec![file.as_fd()];
        given.extend(pipe.as_ref().map(|(grown, _)| grown.as_fd()));
        if !loaded {
            given.extend(library.descriptors());
        }
        running.process.gets_lease(assignment.lease);
        running.account.limit(assignment.workers);
        let limits = limits_of(assignment, preload);
        let is_limited = expected.and_then(|it| it.limits).is_some_and(|its| its == limits);
        if running.user.is_some() && !is_limited {
            running.process.limit(&limits)?; // it is confined
        }
        channel.send(&ToStandby::Assign(Empty {}), &given)?;
        // Behind that, so that it connects to its client meanwhile: it runs no foreign code before the end of the pipe.
        // Whose guardian is gone has ended with it, which is told as every end of one that has a lease.
        if let Some((_, growing)) = pipe {
            let _ = running.process.grow(assignment.memory, growing);
        }
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    use rfaas_config::ExecutorSettings;
    use rfaas_program::inherited::FEWEST_DESCRIPTORS;

    use super::*;

    #[test]
    fn as_many_may_stand_by_as_half_of_the_descriptors_suffice_for() {
        check_descriptors(ExecutorSettings::default().prewarmed(), FEWEST_DESCRIPTORS).unwrap();
        check_descriptors(32, 1024).unwrap();
        check_descriptors(0, 0).unwrap();
        check_descriptors(u32::MAX, u64::MAX).unwrap();
        let told = check_descriptors(256, 1024).unwrap_err();
        for words in ["executor.prewarm, 256", "at most 1024", "allow 8192", "have 32"] {
            assert!(told.contains(words), "{told}");
        }
    }
}
