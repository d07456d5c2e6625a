//! Everything that the main thread waits for, in one place.
//!
//! ```text
//!   signals ─────────┐
//!   other threads ───┤
//!   client ──────────┼──▶ next ──▶ News
//!   manager ─────────┘
//! ```
//! * The ends of client and manager are reported once each.
//! * As long as this process stands by, the manager is heard over a channel too, which is closed when there is an
//!   assignment. The connection to the client is not connected then, and nothing comes of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rdmalib::{CompletionQueue, Notify};
use rfaas_program::local_channel::LocalChannel;
use rfaas_protocol::Empty;
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::launch::{FromStandby, ToStandby};
use rfaas_protocol::session::ToExecutor;

use crate::events::{ThreadEvent, ThreadEvents};
use crate::signals::Signals;
use crate::worker::WorkerStartError;

/// What happened.
#[derive(Debug)]
pub enum News {
    /// The manager asks this process to end, with a signal.
    Signal,
    /// Another thread has an event.
    Event(ThreadEvent),
    /// The client wrote so many bytes.
    Written(u32),
    /// It says something of a graph.
    Told(Box<ToExecutor>),
    /// The client is gone, or does not follow the protocol.
    ClientGone(ChannelError),
    /// The executor manager ended an accounting connection, or the channel: it is gone.
    ManagerGone,
    /// It has a lease for this process, which came with these.
    Assigned(Vec<OwnedFd>),
    /// Nothing, until the time was up.
    Nothing,
}

impl News {
    /// Whether this is a reason to end.
    pub fn is_the_end(&self) -> bool {
        match self {
            News::Signal | News::ManagerGone | News::ClientGone(_) => true,
            // The client is told why before.
            News::Event(ThreadEvent::WorkerEnded {
                end: Err(WorkerStartError::Library(_)),
                ..
            }) => false,
            News::Event(
                ThreadEvent::BeatEnded(_) | ThreadEvent::WorkerEnded { end: Err(_), .. },
            ) => true,
            News::Event(ThreadEvent::Loaded(_) | ThreadEvent::Preloaded(_)) => false,
            News::Event(ThreadEvent::WorkerEnded { end: Ok(_), .. }) => false,
            News::Event(ThreadEvent::CountsHere | ThreadEvent::WorkerConnected) => false,
            News::Event(ThreadEvent::Initialised | ThreadEvent::WorkersJoined) => false,
            News::Assigned(_) | News::Written(_) | News::Told(_) | News::Nothing => false,
        }
    }
}

/// What is waited for.
#[derive(Debug)]
pub struct Watch {
    signals: Signals,
    events: ThreadEvents,
    /// The connection to the client.
    pub client: Channel,
    /// Where the ends of the connections to the manager complete.
    manager: CompletionQueue,
    /// Where it says what to work for; `None`: that is known.
    standby: Option<LocalChannel>,
    client_gone: bool,
    manager_gone: bool,
}

impl Watch {
    /// Makes one that waits for these.
    pub fn new(
        signals: Signals,
        events: ThreadEvents,
        client: Channel,
        manager: CompletionQueue,
        standby: Option<LocalChannel>,
    ) -> Self {
        let (client_gone, manager_gone) = (false, false);
        Watch { signals, events, client, manager, standby, client_gone, manager_gone }
    }

    /// Returns where the ends of the connections to the manager complete.
    pub fn manager_ends(&self) -> &CompletionQueue {
        &self.manager
    }

    /// Tells the manager that this process stands by.
    pub fn tell_ready(&self) {
        if let Some(standby) = &self.standby {
            let _ = standby.send(&FromStandby::Ready(Empty {}), &[]); // that it is gone is heard
        }
    }

    /// Returns what happens next, within `timeout`.
    pub fn next(&mut self, timeout: Duration) -> io::Result<News> {
        let start = Instant::now();
        loop {
            if let Some(news) = self.poll()? {
                return Ok(news);
            }
            self.arm()?;
            // Polled again: what came before `arm` rang no bell, and the thread would sleep on it.
            if let Some(news) = self.poll()? {
                return Ok(news);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(News::Nothing);
            }
            self.sleep(left)?;
        }
    }

    /// Returns what has happened by now.
    fn poll(&mut self) -> io::Result<Option<News>> {
        if self.signals.take()? {
            return Ok(Some(News::Signal));
        }
        if let Some(event) = self.events.next() {
            return Ok(Some(News::Event(event)));
        }
        if !self.client_gone {
            match self.client.try_receive::<ToExecutor>() {
                Ok(None) => {}
                Ok(Some(Incoming::Written { bytes, .. })) => return Ok(Some(News::Written(bytes))),
                Ok(Some(Incoming::Message(message))) => {
                    return Ok(Some(News::Told(Box::new(message))));
                }
                Err(error) => {
                    self.client_gone = true;
                    return Ok(Some(News::ClientGone(error)));
                }
            }
        }
        if !self.manager_gone && self.manager.poll_one().is_some() {
            self.manager_gone = true;
            return Ok(Some(News::ManagerGone));
        }
        if let Some(standby) = &self.standby {
            let said = standby.try_receive::<ToStandby>();
            if !matches!(said, Ok(None)) {
                self.standby = None;
            }
            return Ok(match said {
                Ok(None) => None,
                Ok(Some((ToStandby::Assign(_), given))) => Some(News::Assigned(given)),
                Err(_) => Some(News::ManagerGone),
            });
        }
        Ok(None)
    }

    fn arm(&mut self) -> io::Result<()> {
        if !self.client_gone {
            self.client.arm().map_err(io::Error::other)?;
        }
        if !self.manager_gone {
            self.manager.arm(Notify::Any).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        // Rounded up: rounded down, the last millisecond would be spent spinning.
        let timeout = timeout + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![self.signals.as_fd(), self.events.as_fd()];
        fds.extend(self.standby.as_ref().map(AsFd::as_fd));
        if !self.client_gone {
            fds.push(self.client.as_fd());
        }
        if !self.manager_gone {
            fds.push(self.manager.as_fd());
        }
        let mut fds: Vec<PollFd> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        drop(fds);
        if !self.client_gone {
            self.client.acknowledge().map_err(io::Error::other)?;
        }
        if !self.manager_gone {
            self.manager.acknowledge().map_err(io::Error::other)?;
        }
        Ok(())
    }
}
