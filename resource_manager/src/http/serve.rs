//! Connections over HTTP: taken, bounded, and cut when they cost too much.
//!
//! ```text
//!   accept ─▶ room? ──▶ hyper over `Timed`: what is not read in time ends the connection
//!               └ no: of the address that has most, the connection that stood still longest makes it
//! ```
//! * LIMITED - so many connections in all, and of one other machine. A client has a time for a request's head, for its
//!   body (`http`), to read on (here), and for a long answer (`pages`). None of them waits for one that does nothing:
//!   when there is no room, who has stood still makes it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::PATIENCE;
use super::guard::Ends;

/// Most connections at a time; more wait.
pub const MAX_CONNECTIONS: usize = 256;
/// Most of one other machine: a quarter. On this machine, users cannot be told apart.
pub const MAX_OF_ADDRESS: usize = MAX_CONNECTIONS / 4;
/// A connection on which so long nothing was read or written may be cut to make room.
const STANDS_STILL: Duration = Duration::from_secs(1);
/// How often it is looked whether there is room.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Pause after a connection could not be taken (no descriptor is left, say).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What is kept of an answer for a client that has not read so far.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take to read as much as that, or the rest of an answer. The slowest that is served so reads 6
/// KiB/s.
const READ_ON: Duration = PATIENCE;

/// Serves `router` to whoever connects, for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Connections::default());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue }; // it is gone
        let ends = Ends::new(peer, local);
        if !connections.have_room_for(ends).await {
            tracing::debug!(%peer, "an HTTP connection was not taken: its address has too many");
            continue;
        }
        let (place, progress) = connections.place(ends.counts_as());
        let stream = Timed { stream, progress, unread: None };
        let service = TowerToHyperService::new(router.clone().layer(Extension(ends)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .half_close(true) // who has closed the sending side waits for the answer
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let id = place.id;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "an HTTP connection failed");
            }
            drop(place);
        });
        connections.started(id, task.abort_handle());
    }
}

/// When something was last read or written.
type Progress = Arc<Mutex<Instant>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // whole after each statement
}

struct Connection {
    peer: IpAddr,
    progress: Progress,
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct Connections {
    open: Mutex<(u64, BTreeMap<u64, Connection>)>,
}

/// Of one connection, as long as it is there.
struct Place {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.connections.open).1.remove(&self.id);
    }
}

impl Connections {
    fn place(self: &Arc<Self>, peer: IpAddr) -> (Place, Progress) {
        let progress = Arc::new(Mutex::new(Instant::now()));
        let mut open = lock(&self.open);
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, Connection { peer, progress: progress.clone(), task: None });
        (Place { connections: self.clone(), id }, progress)
    }

    fn started(&self, id: u64, task: AbortHandle) {
        if let Some(connection) = lock(&self.open).1.get_mut(&id) {
            connection.task = Some(task);
        }
    }

    /// Waits until there is room for one more, making it if need be. False: its machine has too many.
    async fn have_room_for(&self, ends: Ends) -> bool {
        loop {
            match self.make_room(ends) {
                Room::There => return true,
                Room::TooManyOfIts => return false,
                Room::None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    fn make_room(&self, ends: Ends) -> Room {
        let open = &mut lock(&self.open).1;
        let mut of = BTreeMap::<IpAddr, usize>::new();
        open.values().for_each(|connection| *of.entry(connection.peer).or_default() += 1);
        let its = of.get(&ends.counts_as()).copied().unwrap_or_default();
        let too_many_of_its = !ends.is_local && its >= MAX_OF_ADDRESS;
        if open.len() < MAX_CONNECTIONS && !too_many_of_its {
            return Room::There;
        }
        let most = of.into_iter().max_by_key(|(_, count)| *count).map(|(peer, _)| peer);
        let from = if too_many_of_its { Some(ends.counts_as()) } else { most };
        let stood = |connection: &Connection| lock(&connection.progress).elapsed();
        let still = open
            .iter()
            .filter(|(_, connection)| Some(connection.peer) == from)
            .map(|(id, connection)| (stood(connection), *id))
            .max()
            .filter(|(time, _)| *time >= STANDS_STILL);
        match still.and_then(|(_, id)| open.remove(&id)) {
            Some(connection) => {
                tracing::debug!(peer = %connection.peer, "an HTTP connection was cut to make room");
                connection.task.inspect(AbortHandle::abort);
                Room::There
            }
            None if too_many_of_its => Room::TooManyOfIts,
            None => Room::None,
        }
    }
}

enum Room {
    There,
    TooManyOfIts,
    None,
}

/// A stream whose reader at the other end has to read on.
struct Timed {
    stream: TcpStream,
    progress: Progress,
    /// What the peer is to make room for: bytes that it has since, and until when.
    unread: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Timed {
    /// Whether the peer has not read on in time.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let (_, deadline) =
            self.unread.get_or_insert_with(|| (0, Box::pin(tokio::time::sleep(READ_ON))));
        deadline.as_mut().poll(context).is_ready()
    }

    fn write_with(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.is_late(context) {
            let why = format!("the client did not read on within {READ_ON:?}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        let written = write(Pin::new(&mut self.stream), context);
        if let Poll::Ready(Ok(bytes)) = &written {
            *lock(&self.progress) = Instant::now();
            if let Some((so_far, _)) = &mut self.unread {
                *so_far += bytes;
            }
            self.unread.take_if(|(so_far, _)| *so_far >= BUFFER_BYTES);
        }
        written
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            *lock(&self.progress) = Instant::now();
        }
        read
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_with(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_with(context, |stream, context| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when everything was written that there was to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unread = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
