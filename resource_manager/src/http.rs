//! The HTTP interface: batch systems add and remove nodes, clients without RDMA get leases, people look.
//!
//! Handlers check what came in, send the rest to the server's loop as one piece of work and wait for
//! its answer; they hold no state. So a request either changes everything it should or nothing.
//! * JSON - every answer is JSON, errors are `{"error":"…"}`; `/metrics` is Prometheus' text, bills also CSV. Bodies
//!   are read as JSON whatever their content type says: `curl -d` names another.
//! * LIMITED - bodies, connections and the time of a request are bounded.
//!
//! * DURABLE FIRST - an answer comes after the commit of what it tells (`ledger`); bills are read from what was
//!   committed, beside the loop.
//!
//! Elsewhere: signals and threads (`lib`); what requests change (`pool`).

mod bills;
mod input;
mod output;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rfaas::protocol::lease::{EndReason, LeaseId};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::commands::{Commands, Stopped};
use crate::metrics::{self, Events};
use crate::pool::{Action, NotRenewed, Now, Pool, Removal};
use crate::state::{State as Durable, StateError};
use bills::{BillRow, ClientRow};
use input::Params;
use output::{EndedJson, GrantJson, LeaseJson, NodeJson, RemovedJson};

/// Largest body of a request, in bytes: the fields of the largest one, a hundred times.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// How much of a body that is too large is read before the connection is cut.
const MAX_DISCARDED_BYTES: usize = 1 << 20;
/// Most connections at a time; more wait.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send a request's head, and again to send its body; also how long
/// a connection is kept without a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be taken (no descriptor is left, say).
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// What this interface is, for programs.
const OPENAPI: &str = include_str!("../openapi.json");

/// What handlers need.
#[derive(Clone)]
pub struct Api {
    commands: Commands,
    durable: Arc<Durable>,
    events: Arc<Events>,
    secret: Arc<[u8]>,
}

/// An answer that tells what is wrong.
#[derive(Debug)]
struct Failure(StatusCode, String);

type Answer = Result<Response, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

/// A wrong request.
impl From<String> for Failure {
    fn from(wrong: String) -> Self {
        Failure(StatusCode::BAD_REQUEST, wrong)
    }
}

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Failure(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string())
    }
}

impl Api {
    /// Has handlers send their work to `commands`, read bills from `durable`, and sign leases with the cluster
    /// secret.
    pub fn new(
        commands: Commands,
        durable: Arc<Durable>,
        events: Arc<Events>,
        secret: Arc<[u8]>,
    ) -> Self {
        Api { commands, durable, events, secret }
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pool, Now, &mut Vec<Action>) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(PATIENCE, self.commands.ask(work)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure(StatusCode::SERVICE_UNAVAILABLE, "no answer in time".into())),
        }
    }

    /// Reads what was committed, in a thread of its own: there may be much of it.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Durable) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, Failure> {
        let durable = self.durable.clone();
        let failed = |why: String| Failure(StatusCode::INTERNAL_SERVER_ERROR, why);
        match tokio::task::spawn_blocking(move || read(&durable)).await {
            Ok(answer) => answer.map_err(|error| failed(format!("the state: {error}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// All routes; `openapi.json` describes the same.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/add", post(add))
        .route("/remove", post(remove))
        .route("/nodes", get(nodes))
        .route("/nodes/{name}", get(node))
        .route("/leases", post(request_lease).get(leases))
        .route("/leases/{id}", get(lease).delete(end_lease))
        .route("/leases/{id}/renew", post(renew_lease))
        .route("/billing", get(billing))
        .route("/healthz", get(healthz))
        .route("/metrics", get(show_metrics))
        .route("/openapi.json", get(openapi))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

/// Serves `router` to whoever connects, for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection failed");
            }
            drop(permit);
        });
    }
}

async fn add(State(api): State<Api>, uri: Uri, body: Body) -> Answer {
    let spec = input::add(&uri, &read(body).await?)?;
    let added = api.ask(move |pool, now, out| pool.add_node(now, spec, out)).await?;
    let node = added.map_err(|why| conflict(why.to_string()))?;
    Ok(ok(NodeJson::from(node)))
}

async fn remove(State(api): State<Api>, uri: Uri, body: Body) -> Answer {
    let (node, grace) = input::remove(&uri, &read(body).await?)?;
    let name = node.clone();
    let removal = api.ask(move |pool, now, out| pool.remove_node(now, &name, grace, out)).await?;
    let state = match removal {
        Removal::Removed => "removed",
        Removal::Draining => "draining",
    };
    Ok(ok(RemovedJson { node, state }))
}

async fn nodes(State(api): State<Api>, uri: Uri) -> Answer {
    Params::parse(&uri)?.finish()?;
    let nodes = api.ask(|pool, _, _| pool.nodes()).await?;
    Ok(ok(nodes.into_iter().map(NodeJson::from).collect::<Vec<_>>()))
}

async fn node(State(api): State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    let name = path_text(path)?;
    let wanted = name.clone();
    let node = api.ask(move |pool, _, _| pool.node(&wanted)).await?;
    Ok(ok(NodeJson::from(node.ok_or_else(|| not_found(format!("node {name:?} is not known")))?)))
}

async fn request_lease(State(api): State<Api>, uri: Uri, body: Body) -> Answer {
    let input::LeaseRequest { ask, in_parts } = input::lease(&uri, &read(body).await?)?;
    let granted = api.ask(move |pool, now, _| pool.request(now, &ask)).await?;
    let grants = granted.map_err(|denied| conflict(denied.to_string()))?;
    let grant = match in_parts {
        true => GrantJson::in_parts(&grants, &api.secret),
        false => grants.first().map(|grant| GrantJson::new(grant, &api.secret)),
    };
    let grant = grant.expect("a request is met by one lease at least");
    let place = [(header::LOCATION, format!("/leases/{}", grant.id()))];
    Ok((StatusCode::CREATED, place, Json(grant)).into_response())
}

async fn renew_lease(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Body,
) -> Answer {
    let lease = lease_id(&path_text(path)?)?;
    let (token, timeout) = input::renewal(&uri, &read(body).await?)?;
    if token.terms.lease.get() != lease.get() || !token.verify(&api.secret) {
        let why = format!("the token is not that of lease {lease}");
        return Err(Failure(StatusCode::FORBIDDEN, why));
    }
    let renewed = api.ask(move |pool, now, _| pool.renew(now, lease, timeout)).await?;
    let grant = renewed.map_err(|why| match why {
        NotRenewed::Unknown(_) => not_found(why.to_string()),
        NotRenewed::Timeout(wrong) => Failure::from(wrong),
        _ => conflict(why.to_string()),
    })?;
    Ok(ok(GrantJson::new(&grant, &api.secret)))
}

async fn leases(State(api): State<Api>, uri: Uri) -> Answer {
    Params::parse(&uri)?.finish()?;
    let leases = api.ask(|pool, _, _| pool.leases()).await?;
    Ok(ok(leases.into_iter().map(LeaseJson::from).collect::<Vec<_>>()))
}

async fn lease(State(api): State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    let id = path_text(path)?;
    let lease = lease_id(&id)?;
    if let Some(found) = api.ask(move |pool, _, _| pool.lease(lease)).await? {
        return Ok(ok(LeaseJson::from(found)));
    }
    match api.read(move |durable| durable.bill(lease)).await? {
        Some(_) => Err(not_found(format!("lease {id} has ended; /billing has its bill"))),
        None => Err(unknown_lease(&id)),
    }
}

async fn end_lease(State(api): State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    let id = path_text(path)?;
    let lease = lease_id(&id)?;
    let ended = api
        .ask(move |pool, now, out| pool.end_lease(now, lease, EndReason::Withdrawn, out))
        .await?;
    let state = ended.ok_or_else(|| unknown_lease(&id))?;
    Ok(ok(EndedJson::new(lease.get(), state)))
}

async fn billing(State(api): State<Api>, uri: Uri) -> Answer {
    let input::Billing { client, since, by_client, csv } = input::billing(&uri)?;
    if by_client {
        let sums = api.read(move |durable| bills::by_client(durable, client.as_deref(), since));
        return table(&sums.await?, ClientRow::COLUMNS, csv);
    }
    let bills = api.read(move |durable| bills::list(durable, client.as_deref(), since));
    table(&bills.await?, BillRow::COLUMNS, csv)
}

/// Rows as they were asked for.
fn table(rows: &[impl Serialize], columns: &[&str], csv: bool) -> Answer {
    if !csv {
        return Ok(ok(rows));
    }
    let table = bills::csv(columns, rows)
        .map_err(|error| Failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], table).into_response())
}

/// Healthy is a loop that answers.
async fn healthz(State(api): State<Api>) -> Answer {
    api.ask(|_, _, _| ()).await?;
    Ok(ok(json!({ "status": "ok" })))
}

async fn show_metrics(State(api): State<Api>) -> Answer {
    let events = api.events.clone();
    let snapshot = api.ask(move |pool, _, _| metrics::Snapshot::of(pool, &events)).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], snapshot.render()).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn unknown_path(uri: Uri) -> Failure {
    not_found(format!("no such path: {}; GET /openapi.json lists those that there are", uri.path()))
}

async fn wrong_method(method: axum::http::Method, uri: Uri) -> Failure {
    let path = uri.path();
    Failure(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not know method {method}"))
}

fn ok(body: impl Serialize) -> Response {
    Json(body).into_response()
}

fn not_found(what: String) -> Failure {
    Failure(StatusCode::NOT_FOUND, what)
}

fn conflict(why: String) -> Failure {
    Failure(StatusCode::CONFLICT, why)
}

fn unknown_lease(id: &str) -> Failure {
    not_found(format!("lease {id:?} is not known"))
}

fn lease_id(text: &str) -> Result<LeaseId, Failure> {
    text.parse().ok().and_then(LeaseId::new).ok_or_else(|| unknown_lease(text))
}

fn path_text(path: Result<Path<String>, PathRejection>) -> Result<String, Failure> {
    path.map(|Path(text)| text).map_err(|rejection| Failure::from(rejection.body_text()))
}

/// The whole body (LIMITED). What is too long is read on for a while and thrown away, since a client
/// that still writes would find the connection cut instead of the answer.
async fn read(mut body: Body) -> Result<Vec<u8>, Failure> {
    let whole = async {
        let (mut bytes, mut length) = (Vec::new(), 0);
        while length <= MAX_DISCARDED_BYTES {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|error| format!("the body could not be read: {error}"))?;
            let Ok(data) = frame.into_data() else { continue }; // a trailer
            length += data.len();
            if length <= MAX_BODY_BYTES {
                bytes.extend_from_slice(&data);
            }
        }
        if length > MAX_BODY_BYTES {
            let why = format!("the body is larger than {MAX_BODY_BYTES} bytes");
            return Err(Failure(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(bytes)
    };
    match tokio::time::timeout(PATIENCE, whole).await {
        Ok(read) => read,
        Err(_) => Err(Failure(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into())),
    }
}
