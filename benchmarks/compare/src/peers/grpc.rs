//! gRPC, by tonic: a unary call whose messages are bytes, so that no time goes into a serialization that an echo does
//! not need.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use axum::http::{self, uri::PathAndQuery};
use bytes::{Buf, BufMut, Bytes};
use hyper_util::rt::TokioIo;
use rfaas_program::Failure;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::UnaryService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::http::runtime;
use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use crate::server::{Role, os};
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::PeerProcess;
use benchmarks::plan::later;

/// Largest message, instead of 4 MiB; and what may be under way before the receiver makes room, instead of 64 KiB.
const MOST_BYTES: usize = 64 << 20;
const WINDOW_BYTES: u32 = 64 << 20;
/// Bytes of a frame, instead of 16 KiB, which takes a third longer for 64 KiB; the largest, 16 MiB,
/// is slower for 16 MiB.
const FRAME_BYTES: u32 = 1 << 20;
/// The method that echoes.
const METHOD: &str = "/compare.Echo/Echo";

/// gRPC, over one of two kinds of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grpc {
    /// A Unix socket.
    Unix,
    /// Loopback TCP.
    Tcp,
}

impl Contender for Grpc {
    fn id(&self) -> Id {
        match self {
            Grpc::Unix => Id::GrpcUnix,
            Grpc::Tcp => Id::GrpcTcp,
        }
    }

    fn settings(&self) -> String {
        let socket = match self {
            Grpc::Unix => "Unix socket",
            Grpc::Tcp => "loopback TCP with TCP_NODELAY",
        };
        format!(
            "tonic, unary call of raw bytes (no protobuf), {socket}, one connection, current-thread runtimes, \
             windows of 64 MiB, frames of 1 MiB"
        )
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let runtime = runtime()?;
        let (channel, peer) = match self {
            Grpc::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").map_err(os("a TCP socket"))?;
                let at = listener.local_addr().map_err(os("a TCP socket"))?;
                let peer = Role::GrpcTcp.start(listener.into())?;
                let endpoint = endpoint(format!("http://{at}"))?;
                (runtime.block_on(endpoint.connect()), peer)
            }
            Grpc::Unix => {
                let (ours, theirs) = UnixStream::pair().map_err(os("socketpair"))?;
                let peer = Role::GrpcUnix.start(theirs.into())?;
                let endpoint = endpoint("http://localhost".into())?;
                (runtime.block_on(connect_unix(&endpoint, ours)), peer)
            }
        };
        let grpc = tonic::client::Grpc::new(channel.map_err(later)?)
            .max_decoding_message_size(MOST_BYTES)
            .max_encoding_message_size(MOST_BYTES);
        let mut client = GrpcCaller {
            runtime,
            grpc,
            payload: vec![0; payload as usize],
            request: None,
            answer: Bytes::new(),
            _peer: peer,
        };
        settle_down(End::First);
        Ok(Round::of(measure(&mut client, payload, effort)?))
    }
}

fn endpoint(at: String) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(at).map_err(os("gRPC"))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES))
}

/// A channel over a stream that is connected already; there is no second one, should it be asked for.
async fn connect_unix(
    endpoint: &Endpoint,
    stream: UnixStream,
) -> Result<Channel, tonic::transport::Error> {
    let stream = Mutex::new(Some(stream));
    let connector = service_fn(move |_: http::Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        async move {
            let stream = stream.ok_or(std::io::ErrorKind::NotConnected)?;
            stream.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::from_std(stream)?))
        }
    });
    endpoint.connect_with_connector(connector).await
}

struct GrpcCaller {
    runtime: Runtime,
    grpc: tonic::client::Grpc<Channel>,
    payload: Vec<u8>,
    request: Option<Request<Bytes>>,
    answer: Bytes,
    _peer: PeerProcess,
}

impl Echo for GrpcCaller {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.payload[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.request = Some(Request::new(Bytes::copy_from_slice(&self.payload)));
        Ok(())
    }

    fn round_trip(&mut self) -> Result<usize, Failure> {
        let request = self.request.take().expect("`prepare` is called before each call");
        let grpc = &mut self.grpc;
        let answer = self.runtime.block_on(async {
            grpc.ready().await.map_err(later)?;
            let method = PathAndQuery::from_static(METHOD);
            grpc.unary(request, method, Raw).await.map_err(os("gRPC"))
        });
        self.answer = answer?.into_inner();
        Ok(self.answer.len())
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.answer[offset..offset + out.len()]);
        Ok(())
    }
}

/// Messages are the bytes themselves.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What the server does.
#[derive(Clone, Copy, Debug)]
struct EchoMethod;

impl UnaryService<Bytes> for EchoMethod {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

/// The service around it; it has one method.
#[derive(Clone, Copy, Debug)]
struct EchoService;

impl tower::Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async {
            let mut grpc = tonic::server::Grpc::new(Raw)
                .max_decoding_message_size(MOST_BYTES)
                .max_encoding_message_size(MOST_BYTES);
            Ok(grpc.unary(EchoMethod, request).await)
        })
    }
}

fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

/// The other process, listening.
pub fn serve_tcp(end: OwnedFd) -> Result<(), Failure> {
    let listener = TcpListener::from(end);
    listener.set_nonblocking(true).map_err(os("gRPC"))?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(os("gRPC"))?;
        // The server's own `tcp_nodelay` is about sockets that it listens on itself.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        server().serve_with_incoming(EchoService, incoming).await.map_err(os("gRPC"))
    })
}

/// The other process, connected.
pub fn serve_unix(end: OwnedFd) -> Result<(), Failure> {
    let stream = UnixStream::from(end);
    stream.set_nonblocking(true).map_err(os("gRPC"))?;
    runtime()?.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).map_err(os("gRPC"))?;
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
        server().serve_with_incoming(EchoService, incoming).await.map_err(os("gRPC"))?;
        // The stream of connections has ended, the one that there is goes on; its end is that of the client, who
        // ends this process.
        std::future::pending().await
    })
}
