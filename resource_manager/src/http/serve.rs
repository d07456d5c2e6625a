//! Connections over HTTP: taken, bounded, and cut when they cost too much.
//!
//! ```text
//!   accept ─▶ room? ──▶ hyper over `TimedStream`: what is not read in time ends the connection
//!               └ no: of the peer that has most, the connection that has asked for nothing for longest makes it
//! ```
//! * BOUNDED - there are so many connections in all, and so many of one other machine. A client has a time for
//!   a request's head, for its body (`http`), to read on (here), and for a long answer (`pages`).
//!   None of them waits for another's connection: when there is no room, it is made at once. A
//!   client that waits for its answer makes it last.
//! * A client that has closed its sending side is answered, unless its request waits for room (`waiting`).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Extension, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::{Router, middleware};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rfaas_program::inherited::descriptor_limit;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::REQUEST_TIME;
use super::guard::Ends;

/// Most connections at a time; one more has another cut. Fewer where few descriptors may be open.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a client may take for its request before others come first: one that has just connected has not been read.
const MOMENT: Duration = Duration::from_millis(100);
/// Pause after a connection could not be taken (no descriptor is left, say).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// What is kept of an answer for a client that has not read so far.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take to read as much as that, or the rest of an answer. The slowest that is served so reads 6
/// KiB/s.
const READ_ON: Duration = REQUEST_TIME;

/// Serves `router` to all that connect, for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = Arc::new(Connections::new(most_connections()));
    let router = router.layer(middleware::from_fn(watch));
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
        connections.make_room(ends);
        let (place, side) = connections.place(ends.counts_as());
        let (from, to) = stream.into_split();
        let from = ClientEnd(Arc::new(from));
        let router = router.clone().layer(Extension(side)).layer(Extension(ends));
        let router = router.layer(Extension(from.clone()));
        let stream = TimedStream { from, to, unread: None };
        let service = TowerToHyperService::new(router);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIME)
            .half_close(true) // a client that has closed its sending side waits for the answer
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
        // However many connect at once, each is read before many more are taken in its place.
        tokio::task::yield_now().await;
    }
}

/// Which side a connection waits for, and since when.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// For this program: a request has come as a whole, and there is no answer yet. Else for its client.
    is_ours: bool,
    since: Instant,
}

impl Side {
    fn new(is_ours: bool) -> Self {
        Side { is_ours, since: Instant::now() }
    }

    /// The least is the first to go: of those that have waited for their client for more than a moment, and
    /// then of all, the one that has waited longest.
    fn rank(self, now: Instant) -> (bool, Instant) {
        let is_late = !self.is_ours && now.saturating_duration_since(self.since) >= MOMENT;
        (!is_late, self.since)
    }
}

type SharedSide = Arc<Mutex<Side>>;

/// Notes when a request has come as a whole and when it is answered. What comes slowly, or is refused before it has all
/// come, moves nothing.
async fn watch(Extension(side): Extension<SharedSide>, request: Request, next: Next) -> Response {
    let request = request.map(|body| {
        let watched = Watched { body, side: side.clone() };
        if watched.body.is_end_stream() {
            watched.note_whole();
        }
        Body::new(watched)
    });
    let answer = next.run(request).await;
    let mut side = lock(&side);
    if side.is_ours {
        *side = Side::new(false);
    }
    drop(side);
    answer
}

/// A request's body whose end is noted.
struct Watched {
    body: Body,
    side: SharedSide,
}

impl Watched {
    fn note_whole(&self) {
        let mut side = lock(&self.side);
        if !side.is_ours {
            *side = Side::new(true);
        }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.note_whole();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // whole after each statement
}

struct HttpConnection {
    peer: IpAddr,
    side: SharedSide,
    task: Option<AbortHandle>,
}

struct Connections {
    /// Most at a time.
    most: usize,
    open: Mutex<(u64, BTreeMap<u64, HttpConnection>)>,
}

/// The place of one connection, as long as it is there.
struct ConnectionPlace {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        lock(&self.connections.open).1.remove(&self.id);
    }
}

/// At most a quarter of the descriptors: clients, nodes and state are to have theirs.
fn most_connections() -> usize {
    usize::try_from(descriptor_limit() / 4)
        .map_or(MAX_CONNECTIONS, |most| most.min(MAX_CONNECTIONS))
}

impl Connections {
    fn new(most: usize) -> Self {
        Connections { most, open: Mutex::default() }
    }

    /// Most of one other machine: a quarter. On this machine, users cannot be told apart.
    fn of_address(&self) -> usize {
        self.most.div_ceil(4)
    }

    fn place(self: &Arc<Self>, peer: IpAddr) -> (ConnectionPlace, SharedSide) {
        let side = Arc::new(Mutex::new(Side::new(false)));
        let mut open = lock(&self.open);
        open.0 += 1;
        let id = open.0;
        open.1.insert(id, HttpConnection { peer, side: side.clone(), task: None });
        (ConnectionPlace { connections: self.clone(), id }, side)
    }

    fn started(&self, id: u64, task: AbortHandle) {
        if let Some(connection) = lock(&self.open).1.get_mut(&id) {
            connection.task = Some(task);
        }
    }

    /// Makes room for one more, if there is none: at the cost of its own peer if that has its share, else of the peer
    /// that has most.
    fn make_room(&self, ends: Ends) {
        let open = &mut lock(&self.open).1;
        let mut of = BTreeMap::<IpAddr, usize>::new();
        open.values().for_each(|connection| *of.entry(connection.peer).or_default() += 1);
        let newcomer = ends.counts_as();
        let its = of.get(&newcomer).copied().unwrap_or_default();
        let from = if !ends.is_local && its >= self.of_address() {
            Some(newcomer)
        } else if open.len() >= self.most {
            of.into_iter().max_by_key(|(_, count)| *count).map(|(peer, _)| peer)
        } else {
            None
        };
        let its = open.iter().filter(|(_, connection)| Some(connection.peer) == from);
        let now = Instant::now();
        let first = its.min_by_key(|(_, connection)| lock(&connection.side).rank(now));
        let first = first.map(|(id, _)| *id);
        if let Some(connection) = first.and_then(|id| open.remove(&id)) {
            tracing::debug!(peer = %connection.peer, "an HTTP connection was cut to make room");
            connection.task.inspect(AbortHandle::abort);
        }
    }
}

/// What comes from a client, and whether it is still there.
#[derive(Clone, Debug)]
pub struct ClientEnd(Arc<OwnedReadHalf>);

impl ClientEnd {
    /// That of a connection.
    #[cfg(test)]
    pub(super) fn of(stream: TcpStream) -> Self {
        ClientEnd(Arc::new(stream.into_split().0))
    }

    fn stream(&self) -> &TcpStream {
        (*self.0).as_ref()
    }

    /// Whether the client has closed the connection, or its sending side, or the connection has failed: also if there
    /// are bytes before that which were not read.
    pub fn is_gone(&self) -> bool {
        // nix has no name for it. Failures are told of in any case.
        let closed = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut stream = [PollFd::new(self.stream().as_fd(), closed)];
        poll(&mut stream, PollTimeout::ZERO).is_ok_and(|events| events > 0)
    }
}

/// A stream whose reader at the other end has to read on.
struct TimedStream {
    from: ClientEnd,
    to: OwnedWriteHalf,
    /// What the peer is to make room for: bytes that it has since, and until when.
    unread: Option<(usize, Pin<Box<Sleep>>)>,
}

impl TimedStream {
    /// Whether the peer has not read on in time.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let (_, deadline) =
            self.unread.get_or_insert_with(|| (0, Box::pin(tokio::time::sleep(READ_ON))));
        deadline.as_mut().poll(context).is_ready()
    }

    fn write_with(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut OwnedWriteHalf>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.is_late(context) {
            let why = format!("the client did not read on within {READ_ON:?}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        let written = write(Pin::new(&mut self.to), context);
        if let Poll::Ready(Ok(bytes)) = &written {
            if let Some((so_far, _)) = &mut self.unread {
                *so_far += bytes;
            }
            self.unread.take_if(|(so_far, _)| *so_far >= BUFFER_BYTES);
        }
        written
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.from.stream();
        loop {
            ready!(stream.poll_read_ready(context))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Ok(bytes) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // it was not, after all
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for TimedStream {
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
        self.to.is_write_vectored()
    }

    /// Called when everything was written that there was to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unread = None;
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str, is_local: bool) -> Ends {
        Ends { peer: peer.parse().unwrap(), is_local, is_forwarded: false }
    }

    #[test]
    fn who_waits_for_an_answer_makes_room_last_and_who_asked_last_before() {
        let connections = Arc::new(Connections::new(MAX_CONNECTIONS));
        let here = of("127.0.0.1", true);
        let all: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| connections.place(here.counts_as())).collect();
        let set = |at: usize, is_ours| *lock(&all[at].1) = Side::new(is_ours);
        set(0, true); // it waits longest, but for us
        set(1, false); // it has just been answered
        let mut newer = Vec::new();
        let mut cut = || {
            let ids = || lock(&connections.open).1.keys().copied().collect::<Vec<_>>();
            let before = ids();
            connections.make_room(here);
            let after = ids();
            let gone: Vec<_> = before.into_iter().filter(|id| !after.contains(id)).collect();
            newer.push(connections.place(here.counts_as()));
            gone.first().map(|gone| all.iter().position(|(place, _)| place.id == *gone).unwrap())
        };
        assert_eq!([cut(), cut()], [Some(2), Some(3)], "in the order in which they came");
        (4..MAX_CONNECTIONS).for_each(|at| set(at, true));
        lock(&all[1].1).since -= MOMENT;
        assert_eq!(cut(), Some(1), "the only one that has its client to wait for, for a moment");
        assert_eq!(cut(), Some(0), "and not one that has just come and was not read yet");
    }

    #[test]
    fn another_machine_makes_room_for_itself_and_takes_none_from_others() {
        let connections = Arc::new(Connections::new(MAX_CONNECTIONS));
        let (here, there) = (of("127.0.0.1", true), of("10.0.0.1", false));
        let (_mine, _) = connections.place(here.counts_as());
        let mut held = Vec::new();
        let most = connections.of_address();
        for _ in 0..2 * most {
            connections.make_room(there);
            held.push(connections.place(there.counts_as()));
        }
        let open = lock(&connections.open);
        let its = open.1.values().filter(|connection| connection.peer == there.peer).count();
        assert_eq!((its, open.1.len()), (most, most + 1));
    }
}
