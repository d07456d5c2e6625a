//! The connection to an executor process that has dialled: it is sent the library unless its node has that, and names
//! its functions. Nothing here waits.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdmalib::{Access, ConnectRequest, Region, RemoteAddress};
use rfaas_protocol::channel::{Channel, ChannelError, Incoming};
use rfaas_protocol::session::{
    CodeFrom, ExecutorHello, FromExecutor, FunctionNames, MAX_FUNCTIONS, ToExecutor,
};
use rfaas_protocol::{Empty, Malformed};

use crate::error::{Error, Result};
use crate::library::Library;

const WHAT: &str = "the executor";

/// The executor process.
pub(crate) struct DialledExecutor {
    channel: Channel,
    /// Stays until the executor has read it. `None`: its node has the library.
    code: Option<Region>,
    /// File of the library, for errors.
    path: PathBuf,
    functions: Vec<String>,
    count: Option<usize>,
    /// When it had what it needs to load it.
    begun: Instant,
    /// From there until the last function was named.
    loaded_in: Option<Duration>,
    /// Where its workers are dialled, if it is one of a graph and has said so.
    listening: Option<SocketAddr>,
}

impl DialledExecutor {
    /// Accepts the executor that dials with `hello`, on `channel`, and sends it `library` if it wants that. `None` if
    /// it is gone again, of which its manager tells.
    pub(crate) fn accept(
        mut channel: Channel,
        request: ConnectRequest,
        (hello, code_from): (&ExecutorHello, CodeFrom),
        library: &Library,
    ) -> Result<Option<Self>> {
        let code = match code_from {
            CodeFrom::Client => Some(code_to_send(library, &channel)?),
            CodeFrom::Node => None,
        };
        if let Err(error) = channel.accept(request, &Empty {}) {
            tracing::debug!(%error, "executor not connected");
            return Ok(None);
        }
        if let Some(code) = &code {
            let to = RemoteAddress { addr: hello.code_addr.get(), key: hello.code_key.get() };
            let bytes = u32::try_from(code.len()).expect("checked when the file was read");
            match channel.write_with_immediate(code, code.len(), to, bytes) {
                Ok(()) | Err(ChannelError::Disconnected) => {} // `read` tells
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(Some(DialledExecutor {
            channel,
            code,
            path: library.path.clone(),
            functions: Vec::new(),
            count: None,
            begun: Instant::now(),
            loaded_in: None,
            listening: None,
        }))
    }

    /// Takes what it has sent. Returns false once its connection has ended.
    pub(crate) fn read(&mut self) -> Result<bool> {
        loop {
            match self.channel.try_receive() {
                Ok(None) => return Ok(true),
                Ok(Some(incoming)) => self.take(incoming)?,
                Err(ChannelError::Disconnected) => return Ok(false),
                Err(source) => return Err(failed(source)),
            }
        }
    }

    fn take(&mut self, incoming: Incoming<FromExecutor>) -> Result<()> {
        match incoming {
            Incoming::Message(FromExecutor::Functions(names)) => self.add(&names),
            Incoming::Message(FromExecutor::LoadFailed(failed)) => {
                let reason = failed.reason.get()?.replace(char::is_control, " ");
                Err(Error::LoadFailed { path: self.path.clone(), reason })
            }
            Incoming::Message(FromExecutor::CodeDiffers(_)) => Err(Error::LibraryGarbled),
            Incoming::Message(FromExecutor::Listening(listening)) => {
                self.listening = Some(listening.address.into());
                Ok(())
            }
            Incoming::Written { .. } => Err(Malformed::Field("message kind").into()),
        }
    }

    /// Adds functions to the list. They come in the order of their numbers, all of the same count.
    fn add(&mut self, part: &FunctionNames) -> Result<()> {
        let (count, names) = (part.count.get() as usize, part.get()?);
        let known = self.functions.len();
        let in_order = part.first.get() as usize == known && self.loaded_in.is_none();
        let counted = count <= MAX_FUNCTIONS
            && *self.count.get_or_insert(count) == count
            && known + names.len() <= count;
        if !in_order || !counted {
            return Err(Malformed::Field("number of a function").into());
        }
        self.functions.extend(names.into_iter().map(str::to_owned));
        if self.functions.len() == count {
            self.loaded_in = Some(self.begun.elapsed());
        }
        Ok(())
    }

    /// Tells it something of its graph. Returns false if it takes nothing now: it is to be told later.
    pub(crate) fn tell(&mut self, message: &ToExecutor) -> Result<bool> {
        match self.channel.send(message) {
            Ok(()) | Err(ChannelError::Disconnected) => Ok(true), // `read` tells
            Err(ChannelError::Busy) => Ok(false),
            Err(source) => Err(failed(source)),
        }
    }

    /// Returns where its workers are dialled, once it has said so.
    pub(crate) fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// Has the [descriptor](AsFd::as_fd) tell of what it sends from now on.
    pub(crate) fn arm(&mut self) -> Result<()> {
        self.channel.arm().map_err(failed)
    }

    /// Silences the descriptor.
    pub(crate) fn acknowledge(&mut self) -> Result<()> {
        self.channel.acknowledge().map_err(failed)
    }

    /// Returns whether it was sent the library.
    pub(crate) fn library_sent(&self) -> bool {
        self.code.is_some()
    }

    /// Returns how long it took to load the library, once it has named all functions.
    pub(crate) fn loaded_in(&self) -> Option<Duration> {
        self.loaded_in
    }

    /// Returns the connection, whose end ends the process, and the names of all functions.
    pub(crate) fn finish(self) -> (Channel, Vec<String>) {
        (self.channel, self.functions)
    }
}

impl AsFd for DialledExecutor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Returns `library` as memory that can be sent on `channel`.
fn code_to_send(library: &Library, channel: &Channel) -> Result<Region> {
    let region = channel.domain().allocate(library.code.len(), Access::empty())?;
    region.write(0, &library.code)?;
    Ok(region)
}

pub(crate) fn failed(source: ChannelError) -> Error {
    Error::Connection { what: WHAT, source }
}
