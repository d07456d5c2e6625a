//! Paths and statuses of the interface, from which openapi.json is generated.
//!
//! The functions here are never called: each stands for a route of the server. A test of the server compares
//! them with the routes that there are, and real answers with these schemas.

#![allow(dead_code, reason = "these describe, and are never called")]

use utoipa::{OpenApi, ToResponse};

use crate::{
    Better, Bill, ClientBill, EndedLease, Error, Grant, Graph, Health, Lease, LeaseRequest,
    Leaving, NewNode, Node, Policy, RemovedNode, Renewal,
};

/// Returns the description as text, as it is checked in.
pub fn text() -> String {
    let mut text = Document::openapi().to_pretty_json().expect("it is made of types of JSON");
    text.push('\n');
    text
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "rFaaS resource manager",
        version = "1",
        description = "Nodes, leases and bills of a cluster. Bodies are JSON; their content type may be application/json, application/x-www-form-urlencoded (as `curl -d` has it), or missing, others are answered 415. Unknown fields and query parameters, and those given twice, are refused. What changes something is answered 403 if it comes from a web page (it has an Origin, or Host is no name of this machine), or from a machine that the operator has not allowed to (http_changes_from)."
    ),
    paths(
        add,
        remove,
        nodes,
        node,
        leaving,
        policy,
        set_policy,
        request_lease,
        leases,
        lease,
        better,
        graphs,
        end_lease,
        renew_lease,
        billing,
        healthz,
        metrics,
        openapi_json
    ),
    components(
        schemas(Error),
        responses(
            BadRequest, Forbidden, NotFound, Conflict, WrongType, TooLarge, TooOften, Stopping
        )
    )
)]
struct Document;

/// A field or parameter is missing or wrong; the text names it.
#[derive(ToResponse)]
struct BadRequest(Error);

/// It comes from a web page, or from a machine that may read only, or the token is not that of the lease; the
/// text says which, and what to do.
#[derive(ToResponse)]
struct Forbidden(Error);

/// What the path names is not known.
#[derive(ToResponse)]
struct NotFound(Error);

/// It cannot be done now; the text says why.
#[derive(ToResponse)]
struct Conflict(Error);

/// The content type is one that a body must not have.
#[derive(ToResponse)]
struct WrongType(Error);

/// The body is larger than 64 KiB.
#[derive(ToResponse)]
struct TooLarge(Error);

/// The client asks too often (limits.requests_per_second), or as many requests wait for room as may: 16 of one user or
/// machine, 256 in all.
#[derive(ToResponse)]
struct TooOften(Error);

/// The manager is stopping, or did not answer in time. Of a request for a lease also: no node is ready.
#[derive(ToResponse)]
struct Stopping(Error);

/// Adds a node, or changes a known one. Idempotent.
///
/// 409: more is leased on the node than would be left, or nodes would have too many different labels.
#[utoipa::path(
    post, path = "/add", operation_id = "add",
    params(("node" = String, Query, min_length = 1, max_length = 128, description = "Name of the node, 1 to 128 bytes.")),
    request_body = NewNode,
    responses(
        (status = 200, description = "The node is known.", body = Node),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 409, response = Conflict),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 503, response = Stopping),
    )
)]
fn add() {}

/// Withdraws a node: no new leases, those in use end within the grace period. Idempotent.
///
/// The body may be empty or any JSON; it is ignored.
#[utoipa::path(
    post, path = "/remove", operation_id = "remove",
    params(
        ("node" = String, Query, min_length = 1, max_length = 128, description = "Name of the node, 1 to 128 bytes."),
        ("grace_ms" = Option<u64>, Query, minimum = 0, maximum = 86400000, nullable = false, description = "How long invocations may go on; 5000 if it is not given."),
    ),
    responses(
        (status = 200, description = "It is not known any more, or will not be once its leases have ended.", body = RemovedNode),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 503, response = Stopping),
    )
)]
fn remove() {}

/// All nodes, by name.
#[utoipa::path(
    get, path = "/nodes", operation_id = "nodes",
    responses(
        (status = 200, description = "By name.", body = [Node]),
        (status = 400, response = BadRequest),
        (status = 503, response = Stopping),
    )
)]
fn nodes() {}

/// One node.
#[utoipa::path(
    get, path = "/nodes/{name}", operation_id = "node",
    params(("name" = String, Path, description = "Name of the node.")),
    responses(
        (status = 200, description = "The node.", body = Node),
        (status = 400, response = BadRequest),
        (status = 404, response = NotFound),
        (status = 503, response = Stopping),
    )
)]
fn node() {}

/// Says when a node leaves.
///
/// From now on it gets only leases that end before. Repeated, the last one counts; `/add` takes it back.
#[utoipa::path(
    post, path = "/nodes/{name}/leaving", operation_id = "leaving",
    params(("name" = String, Path, description = "Name of the node.")),
    request_body = Leaving,
    responses(
        (status = 200, description = "The node.", body = Node),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 404, response = NotFound),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 503, response = Stopping),
    )
)]
fn leaving() {}

/// How leases are placed.
#[utoipa::path(
    get, path = "/policy", operation_id = "policy",
    responses(
        (status = 200, description = "The policy.", body = Policy),
        (status = 400, response = BadRequest),
        (status = 503, response = Stopping),
    )
)]
fn policy() {}

/// Has leases placed by another policy, until another is chosen or the settings name another than now.
#[utoipa::path(
    put, path = "/policy", operation_id = "set_policy",
    request_body = Policy,
    responses(
        (status = 200, description = "The policy.", body = Policy),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 503, response = Stopping),
    )
)]
fn set_policy() {}

/// Asks for a lease.
///
/// It ends soon unless its token is shown to the executor manager (claim_timeout_ms). 409: it cannot be met
/// now, or the client would hold more than it may; the text says why and names the limit. With wait_ms it waits for
/// room, as long as its connection is open both ways.
#[utoipa::path(
    post, path = "/leases", operation_id = "request_lease",
    request_body = LeaseRequest,
    responses(
        (status = 201, description = "Granted.", body = Grant),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 409, response = Conflict),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 429, response = TooOften),
        (status = 503, response = Stopping),
    )
)]
fn request_lease() {}

/// Leases that have not ended.
#[utoipa::path(
    get, path = "/leases", operation_id = "leases",
    responses(
        (status = 200, description = "Oldest first, without tokens.", body = [Lease]),
        (status = 400, response = BadRequest),
        (status = 503, response = Stopping),
    )
)]
fn leases() {}

/// One lease that has not ended.
///
/// 404: it is not known, or has ended; then there is a bill.
#[utoipa::path(
    get, path = "/leases/{id}", operation_id = "lease",
    params(("id" = u64, Path, minimum = 1, description = "Id of the lease.")),
    responses(
        (status = 200, description = "The lease.", body = Lease),
        (status = 400, response = BadRequest),
        (status = 404, response = NotFound),
        (status = 503, response = Stopping),
    )
)]
fn lease() {}

/// Whether a lease, and those granted with it, would be better placed elsewhere.
///
/// It is advice by the policy: bin_pack and first_fit say whether fewer nodes would do, compact whether more nodes
/// would be empty. 404: it is not known, or has ended.
#[utoipa::path(
    get, path = "/leases/{id}/better", operation_id = "better",
    params(("id" = u64, Path, minimum = 1, description = "Id of the lease.")),
    responses(
        (status = 200, description = "The advice.", body = Better),
        (status = 400, response = BadRequest),
        (status = 404, response = NotFound),
        (status = 503, response = Stopping),
    )
)]
fn better() {}

/// Graphs whose workers have leases, as their clients say.
#[utoipa::path(
    get, path = "/graphs", operation_id = "graphs",
    responses(
        (status = 200, description = "In the order of their numbers.", body = [Graph]),
        (status = 400, response = BadRequest),
        (status = 503, response = Stopping),
    )
)]
fn graphs() {}

/// Ends a lease. Idempotent.
#[utoipa::path(
    delete, path = "/leases/{id}", operation_id = "end_lease",
    params(
        ("id" = u64, Path, minimum = 1, description = "Id of the lease."),
        ("Authorization" = Option<String>, Header, nullable = false, description = "`Bearer` and the lease's token. From other machines than the manager's it has to be there."),
    ),
    responses(
        (status = 200, description = "It has ended, or its node was asked to end it.", body = EndedLease),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 404, response = NotFound),
        (status = 415, response = WrongType),
        (status = 503, response = Stopping),
    )
)]
fn end_lease() {}

/// Moves the end of a lease to a time from now, never nearer than it is.
///
/// The token of the answer has the new end and is to be shown to the executor manager. 409: the lease has
/// ended or is ending.
#[utoipa::path(
    post, path = "/leases/{id}/renew", operation_id = "renew_lease",
    params(("id" = u64, Path, minimum = 1, description = "Id of the lease.")),
    request_body = Renewal,
    responses(
        (status = 200, description = "Renewed.", body = Grant),
        (status = 400, response = BadRequest),
        (status = 403, response = Forbidden),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = TooLarge),
        (status = 415, response = WrongType),
        (status = 429, response = TooOften),
        (status = 503, response = Stopping),
    )
)]
fn renew_lease() {}

/// Bills of leases that have ended, or their sums by client.
#[utoipa::path(
    get, path = "/billing", operation_id = "billing",
    params(
        ("client" = Option<String>, Query, nullable = false, description = "Only this client's."),
        ("since" = Option<String>, Query, nullable = false, format = DateTime, description = "Only of leases that ended then or later; RFC 3339."),
        ("by" = inline(Option<By>), Query, nullable = false, description = "One bill a lease (as if not given), or the sum of each client's."),
        ("format" = inline(Option<Format>), Query, nullable = false, description = "As JSON (as if not given), or as a table with the same names in its first line."),
    ),
    responses(
        (status = 200, description = "Bills in the order in which the leases ended; sums in the order of clients.",
         content((inline(Bills) = "application/json"), (String = "text/csv"))),
        (status = 400, response = BadRequest),
        (status = 503, response = Stopping),
    )
)]
fn billing() {}

/// What a bill is of.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
enum By {
    Lease,
    Client,
}

/// How bills are written.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
enum Format {
    Json,
    Csv,
}

/// Bills, or sums of bills.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum Bills {
    Each(Vec<Bill>),
    Sums(Vec<ClientBill>),
}

/// Whether the manager answers.
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz",
    responses(
        (status = 200, description = "It does.", body = Health),
        (status = 503, response = Stopping),
    )
)]
fn healthz() {}

/// Counts for Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics",
    responses(
        (status = 200, description = "Text format, version 0.0.4.", body = String, content_type = "text/plain"),
        (status = 503, response = Stopping),
    )
)]
fn metrics() {}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json"))
)]
fn openapi_json() {}
