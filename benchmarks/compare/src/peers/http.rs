//! HTTP/1.1 on loopback TCP: axum serves, hyper asks.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rfaas_program::Failure;
use tokio::runtime::Runtime;

use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::echo::{Echo, measure};
use crate::effort::Effort;
use crate::server::{Role, os};
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::PeerProcess;

/// The web's way.
#[derive(Debug)]
pub struct Http;

impl Contender for Http {
    fn id(&self) -> Id {
        Id::Http
    }

    fn settings(&self) -> String {
        "axum server, hyper client, HTTP/1.1, one kept connection, TCP_NODELAY, body as bytes, \
         current-thread runtimes"
            .into()
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(os("a TCP socket"))?;
        let at = listener.local_addr().map_err(os("a TCP socket"))?;
        let peer = Role::Http.start(listener.into())?;
        let runtime = runtime()?;
        let sender = runtime.block_on(connect(at))?;
        let mut client = HttpCaller {
            runtime,
            sender,
            at,
            payload: vec![0; payload as usize],
            request: None,
            answer: Bytes::new(),
            _peer: peer,
        };
        settle_down(End::First);
        Ok(Round::of(measure(&mut client, payload, effort)?))
    }
}

/// A runtime of one thread, the caller's.
pub fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(os("a runtime"))
}

async fn connect(at: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let stream = tokio::net::TcpStream::connect(at).await.map_err(os("HTTP"))?;
    stream.set_nodelay(true).map_err(os("HTTP"))?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(os("HTTP"))?;
    tokio::spawn(connection);
    Ok(sender)
}

struct HttpCaller {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    at: SocketAddr,
    payload: Vec<u8>,
    request: Option<Request<Full<Bytes>>>,
    answer: Bytes,
    _peer: PeerProcess,
}

impl Echo for HttpCaller {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.payload[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let body = Full::new(Bytes::copy_from_slice(&self.payload));
        let request = Request::post("/").header("host", self.at.to_string()).body(body);
        self.request = Some(request.map_err(os("HTTP"))?);
        Ok(())
    }

    fn round_trip(&mut self) -> Result<usize, Failure> {
        let request = self.request.take().expect("`prepare` is called before each call");
        let sender = &mut self.sender;
        let asked = self.runtime.block_on(async {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let ok = answer.status().is_success();
            Ok::<_, hyper::Error>((ok, answer.into_body().collect().await?.to_bytes()))
        });
        let (ok, answer) = asked.map_err(os("HTTP"))?;
        if !ok {
            return Err(Failure::later("HTTP: the server refused a request"));
        }
        self.answer = answer;
        Ok(self.answer.len())
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        out.copy_from_slice(&self.answer[offset..offset + out.len()]);
        Ok(())
    }
}

/// The other process.
pub fn serve(end: OwnedFd) -> Result<(), Failure> {
    let listener = TcpListener::from(end);
    listener.set_nonblocking(true).map_err(os("HTTP"))?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(os("HTTP"))?;
        let listener = listener.tap_io(|stream| {
            // A stream that has ended already needs none.
            let _ = stream.set_nodelay(true);
        });
        let echo = post(|body: Bytes| async { Ok::<_, Infallible>(body) });
        let service = Router::new().route("/", echo).layer(DefaultBodyLimit::disable());
        axum::serve(listener, service).await.map_err(os("HTTP"))
    })
}
