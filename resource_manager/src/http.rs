//! The HTTP interface: batch systems add and remove nodes, clients without RDMA get leases, people look.
//!
//! Handlers check what came in, send the rest to the server's loop as one piece of work and wait for
//! its answer; they hold no state. So a request either changes everything it should or nothing.
//! * Every answer is JSON, errors are `{"error":"…"}`; `/metrics` is Prometheus' text, bills also CSV. Bodies
//!   are read as JSON also if they are said to be a form, as `curl -d` does.
//! * Who may change something is decided before any handler runs (`guard`).
//! * BOUNDED - bodies, connections and the time of a request have bounds (`serve`), and so have the memory and
//!   the time for an answer (`pages`).
//! * DURABLE FIRST - an answer comes after the commit of what it tells (`ledger`); bills are read from what was
//!   committed, beside the loop.
//!
//! Elsewhere: signals and threads (`lib`); what requests change (`pool`); requests that wait (`waiting`).

mod bills;
mod guard;
mod input;
mod output;
mod pages;
mod serve;
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use http_body_util::BodyExt;
use rdmalib::Peer;
use rfaas_api as api;
use rfaas_protocol::lease::{EndReason, LeaseId, Token};
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::commands::{Commands, Stopped};
use crate::metrics::{self, LoopEvents};
use crate::pool::{Action, Denied, Limit, NotRenewed, Now, Pool};
use crate::state::{StateError, StateFile};
use bills::Bills;
pub use guard::Access;
use guard::Ends;
use input::{Params, Wanted};
use output::{GraphList, LeaseList, NodeList};
use pages::{Format, READ_ALL, Rows};
use serve::ClientEnd;
pub use serve::{MAX_CONNECTIONS, serve};
use waiting::ask_for_leases;

/// Largest body of a request, in bytes: the fields of the largest one, a hundred times.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// How much of a body that is too large is read before the connection is cut.
const MAX_DISCARDED_BYTES: usize = 1 << 20;
/// How long a client may take to send a request's head, and again to send its body; also how long
/// a connection is kept without a request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How often a request that waits looks for its answer, and for its client.
const LOOK: Duration = Duration::from_millis(50);
/// Pages of bills that are read at a time, each by a thread: more wait for their turn, so that lookups come in between.
const READS: usize = 4;
/// Sums of bills that are made at a time: each looks at all bills.
const SUMS: usize = 4;

/// What handlers need.
#[derive(Clone)]
pub struct Api {
    commands: Commands,
    durable: Arc<StateFile>,
    events: Arc<LoopEvents>,
    secret: Arc<[u8]>,
    access: Access,
    reads: Arc<Semaphore>,
    sums: Arc<Semaphore>,
}

/// An answer that tells what is wrong.
#[derive(Debug)]
struct Failure(StatusCode, String);

type HttpResult = Result<Response, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(api::Error { error: self.1 })).into_response()
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
    /// Has handlers send their work to `commands`, read bills from `durable`, sign leases with the cluster
    /// secret, and change something for those that `access` allows to.
    pub fn new(
        commands: Commands,
        durable: Arc<StateFile>,
        events: Arc<LoopEvents>,
        secret: Arc<[u8]>,
        access: Access,
    ) -> Self {
        let [reads, sums] = [READS, SUMS].map(|most| Arc::new(Semaphore::new(most)));
        Api { commands, durable, events, secret, access, reads, sums }
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pool, Now, &mut Vec<Action>) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        in_time(self.commands.ask(work)).await?.map_err(Failure::from)
    }

    fn is_token_of(&self, lease: LeaseId, token: &Token) -> Result<(), Failure> {
        if token.terms.lease.get() == lease.get() && token.verify(&self.secret) {
            return Ok(());
        }
        Err(Failure(StatusCode::FORBIDDEN, format!("the token is not that of lease {lease}")))
    }

    /// Reads what was committed, in a thread of its own. Nothing ends that thread when nobody waits for it any more, so
    /// it has one of [`READS`] turns until it ends itself, and reads a page at most.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StateFile) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = in_time(self.reads.clone().acquire_owned()).await?;
        let durable = self.durable.clone();
        let failed = |why: String| Failure(StatusCode::INTERNAL_SERVER_ERROR, why);
        let read = move || {
            let _turn = turn;
            read(&durable)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(answer) => answer.map_err(|error| failed(format!("the state: {error}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// What comes of `work` if it is done soon.
async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    within(REQUEST_TIME, work).await
}

async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure(StatusCode::SERVICE_UNAVAILABLE, "no answer in time".into());
    tokio::time::timeout(time, work).await.map_err(late)
}

/// All routes; [`OPENAPI`](api::OPENAPI) describes the same.
pub fn router(api: Api) -> Router {
    let guard = middleware::from_fn_with_state(api.access.clone(), guard::check);
    Router::new()
        .route("/add", post(add))
        .route("/remove", post(remove))
        .route("/nodes", get(nodes))
        .route("/nodes/{name}", get(node))
        .route("/nodes/{name}/leaving", post(leaving))
        .route("/policy", get(policy).put(set_policy))
        .route("/leases", post(request_lease).get(leases))
        .route("/leases/{id}", get(lease).delete(end_lease))
        .route("/leases/{id}/renew", post(renew_lease))
        .route("/leases/{id}/better", get(better))
        .route("/graphs", get(graphs))
        .route("/billing", get(billing))
        .route("/healthz", get(healthz))
        .route("/metrics", get(show_metrics))
        .route("/openapi.json", get(openapi))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .with_state(api)
}

async fn add(State(api): State<Api>, uri: Uri, body: Body) -> HttpResult {
    let spec = input::add(&uri, &read(body).await?)?;
    let added = api.ask(move |pool, now, out| pool.add_node(now, spec, out)).await?;
    let node = added.map_err(|why| conflict(why.to_string()))?;
    Ok(ok(output::node(node)))
}

async fn remove(State(api): State<Api>, uri: Uri, body: Body) -> HttpResult {
    let (node, grace) = input::remove(&uri, &read(body).await?)?;
    let name = node.clone();
    let state = api.ask(move |pool, now, out| pool.remove_node(now, &name, grace, out)).await?;
    Ok(ok(api::RemovedNode { node, state }))
}

async fn nodes(State(api): State<Api>, uri: Uri) -> HttpResult {
    Params::parse(&uri)?.finish()?;
    pages::answer(NodeList::new(api), Format::Json).await
}

async fn node(State(api): State<Api>, path: Result<Path<String>, PathRejection>) -> HttpResult {
    let name = path_text(path)?;
    let wanted = name.clone();
    let node = api.ask(move |pool, _, _| pool.node(&wanted)).await?;
    let node = node.ok_or_else(|| not_found(format!("node {name:?} is not known")))?;
    Ok(ok(output::node(node)))
}

async fn leaving(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Body,
) -> HttpResult {
    let name = path_text(path)?;
    let after = input::leaving(&uri, &read(body).await?)?;
    let node = name.clone();
    let left = api.ask(move |pool, now, out| pool.set_leaving(now, &node, after, out)).await?;
    let left = left.ok_or_else(|| not_found(format!("node {name:?} is not known")))?;
    Ok(ok(output::node(left)))
}

async fn policy(State(api): State<Api>, uri: Uri) -> HttpResult {
    Params::parse(&uri)?.finish()?;
    let policy = api.ask(|pool, _, _| pool.policy()).await?;
    Ok(ok(api::Policy { placement: policy.name().into() }))
}

async fn set_policy(State(api): State<Api>, uri: Uri, body: Body) -> HttpResult {
    let policy = input::policy(&uri, &read(body).await?)?;
    api.ask(move |pool, _, _| pool.set_policy(policy)).await?;
    Ok(ok(api::Policy { placement: policy.name().into() }))
}

async fn request_lease(
    State(api): State<Api>,
    Extension(ends): Extension<Ends>,
    Extension(client): Extension<ClientEnd>,
    uri: Uri,
    body: Body,
) -> HttpResult {
    let Wanted { ask, in_parts, wait, workers } = input::lease(&uri, &read(body).await?)?;
    let ask = ask.by(Peer::Address(ends.counts_as()));
    let granted = ask_for_leases(&api, ask, wait, &client).await?;
    let grants = granted.map_err(|denied| match denied {
        Denied::Limit(Limit::Rate { .. }) => {
            Failure(StatusCode::TOO_MANY_REQUESTS, denied.to_string())
        }
        Denied::TooManyWait { .. } => Failure(StatusCode::TOO_MANY_REQUESTS, denied.to_string()),
        Denied::NoNodes(_) => Failure(StatusCode::SERVICE_UNAVAILABLE, denied.to_string()),
        _ => conflict(denied.to_string()),
    })?;
    if !workers.is_empty() {
        let leases: Vec<_> = grants.iter().map(|grant| grant.terms.lease).collect();
        let note = move |pool: &mut Pool, _, _: &mut _| {
            leases
                .into_iter()
                .zip(workers)
                .for_each(|(lease, worker)| pool.note_worker(lease, worker));
        };
        let _ = api.ask(note).await; // for people: the leases count without it, and their tokens are to be told
    }
    let grant = match in_parts {
        true => output::grant_in_parts(&grants, &api.secret),
        false => grants.first().map(|grant| output::grant(grant, &api.secret)),
    };
    let grant = grant.expect("a request is met by one lease at least");
    let place = [(header::LOCATION, format!("/leases/{}", grant.id))];
    Ok((StatusCode::CREATED, place, Json(grant)).into_response())
}

async fn renew_lease(
    State(api): State<Api>,
    Extension(ends): Extension<Ends>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
    body: Body,
) -> HttpResult {
    let lease = lease_id(&path_text(path)?)?;
    let (token, timeout) = input::renewal(&uri, &read(body).await?)?;
    api.is_token_of(lease, &token)?;
    let peer = Some(Peer::Address(ends.counts_as()));
    let renewed = api.ask(move |pool, now, _| pool.renew(now, lease, timeout, peer)).await?;
    let grant = renewed.map_err(|why| match why {
        NotRenewed::Unknown(_) => not_found(why.to_string()),
        NotRenewed::Timeout(wrong) => Failure::from(wrong),
        NotRenewed::Limit(Limit::Rate { .. }) => {
            Failure(StatusCode::TOO_MANY_REQUESTS, why.to_string())
        }
        _ => conflict(why.to_string()),
    })?;
    Ok(ok(output::grant(&grant, &api.secret)))
}

async fn leases(State(api): State<Api>, uri: Uri) -> HttpResult {
    Params::parse(&uri)?.finish()?;
    pages::answer(LeaseList::new(api), Format::Json).await
}

async fn lease(State(api): State<Api>, path: Result<Path<String>, PathRejection>) -> HttpResult {
    let id = path_text(path)?;
    let lease = lease_id(&id)?;
    let found = api.ask(move |pool, _, _| pool.lease(lease)).await?;
    if let Some(found) = found.and_then(output::lease) {
        return Ok(ok(found));
    }
    match api.read(move |durable| durable.bill(lease)).await? {
        Some(bill) => {
            let reason = bill.reason.name();
            Err(not_found(format!("lease {id} has ended ({reason}); /billing has its bill")))
        }
        None => Err(unknown_lease(&id)),
    }
}

async fn better(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> HttpResult {
    Params::parse(&uri)?.finish()?;
    let id = path_text(path)?;
    let lease = lease_id(&id)?;
    let better = api.ask(move |pool, now, _| pool.better(now, lease)).await?;
    Ok(ok(output::better(&better.ok_or_else(|| unknown_lease(&id))?)))
}

async fn graphs(State(api): State<Api>, uri: Uri) -> HttpResult {
    Params::parse(&uri)?.finish()?;
    pages::answer(GraphList::new(api), Format::Json).await
}

async fn end_lease(
    State(api): State<Api>,
    Extension(ends): Extension<Ends>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> HttpResult {
    let id = path_text(path)?;
    let lease = lease_id(&id)?;
    match input::shown_token(&headers)? {
        Some(token) => api.is_token_of(lease, &token)?,
        None if ends.is_ours() => {} // the operator's machine, until there are roles
        None => {
            let why = format!(
                "from another machine, the token of lease {lease} ends it: send it as \"Authorization: \
                 Bearer TOKEN\""
            );
            return Err(Failure(StatusCode::FORBIDDEN, why));
        }
    }
    let ended = api
        .ask(move |pool, now, out| pool.end_lease(now, lease, EndReason::Withdrawn, out))
        .await?;
    let state = ended.ok_or_else(|| unknown_lease(&id))?;
    Ok(ok(output::ended(lease, state)))
}

async fn billing(State(api): State<Api>, uri: Uri) -> HttpResult {
    let input::Billing { client, since, by_client, format } = input::billing(&uri)?;
    let bills = Bills::new(api.clone(), client, since);
    if !by_client {
        return pages::answer(bills, format).await;
    }
    let turn = in_time(api.sums.acquire()).await?;
    let sums = within(READ_ALL, bills.by_client()).await??;
    drop(turn); // a client that reads slowly holds none
    pages::answer(Rows::new(sums), format).await
}

/// Healthy is a loop that answers.
async fn healthz(State(api): State<Api>) -> HttpResult {
    api.ask(|_, _, _| ()).await?;
    Ok(ok(api::Health { status: api::HealthStatus::Ok }))
}

async fn show_metrics(State(api): State<Api>) -> HttpResult {
    let events = api.events.clone();
    let metrics = api.ask(move |pool, _, _| metrics::Metrics::of(pool, &events)).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render()).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api::OPENAPI).into_response()
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

/// Reads the whole body, up to a bound. What is too long is read on for a while and thrown away, since a client
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
    match tokio::time::timeout(REQUEST_TIME, whole).await {
        Ok(read) => read,
        Err(_) => Err(Failure(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into())),
    }
}
