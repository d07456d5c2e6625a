//! Who may change something over HTTP.
//!
//! There are no users and no passwords yet, so what counts is where a request comes from: the machine, and the program.
//! * Requests from this machine may change something, and those from machines that the operator has named. Others
//!   may read. What a proxy on this machine passes on, and says so, is from elsewhere.
//! * A request that a web page had a browser send changes nothing, also if the browser runs on this machine.
//!
//! How a page is told from `curl`: browsers put `Origin` into every request that may change
//! something, also into those of a page of the same origin, and a page cannot leave it out or forge
//! it: so whatever has one is refused. `Sec-Fetch-Site` says the same where there is no TLS in
//! between. That would do; what follows guards against a browser that knows neither:
//! * A page can send `text/plain`, `multipart/form-data` and `application/x-www-form-urlencoded` to
//!   another site without asking that first. The first two are refused. The third is what `curl -d`
//!   says, as the tutorial has it, so it has to do; JSON needs a browser's preflight, which is not
//!   answered.
//! * A page whose site's name was made to mean this machine (DNS rebinding) sends that name as
//!   `Host`. So that must be an address, a name without a dot, which no public site has, or one of
//!   this machine. Of an address, all counts: a site's name may begin like one.
//!
//! Reading needs none of this: no answer to a `GET` has a token, and answers do not allow other sites to read them.
//!
//! Elsewhere: the token that ends a lease (`http`). Authentication, by role, is to come here.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rfaas_config::AddressRange;

use super::Failure;

/// Where changes may come from, and what this machine is called.
#[derive(Clone, Debug, Default)]
pub struct Access {
    changes_from: Arc<[AddressRange]>,
    /// Names of this machine, in small letters; no addresses.
    names: Arc<[String]>,
}

impl Access {
    /// Allows changes from this machine and from `changes_from`. `address` is the name or address that HTTP is
    /// served at.
    pub fn new(changes_from: &[AddressRange], address: &str) -> Self {
        let machine = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Access::on(changes_from, [Some(address.to_owned()), machine].into_iter().flatten())
    }

    /// Likewise, on a machine of these names.
    fn on(changes_from: &[AddressRange], names: impl Iterator<Item = String>) -> Self {
        let names = names.map(|name| name.to_ascii_lowercase()).filter(|name| !is_address(name));
        Access { changes_from: changes_from.into(), names: names.collect() }
    }

    /// Whether `host`, without a port, means this machine and cannot be a public site.
    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        // A machine knows its name, not always its domain. Where it does, that counts too; and any
        // site may have a machine called localhost.
        let in_a_domain = |name: &str| {
            let alone = !name.contains('.') && name != "localhost";
            alone && host.split_once('.').is_some_and(|(first, _)| first == name)
        };
        is_address(&host)
            || !host.contains('.')
            || host.ends_with(".localhost")
            || self.names.iter().any(|name| *name == host || in_a_domain(name))
    }
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

/// Both ends of a connection, and what came over it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The client's address.
    pub peer: IpAddr,
    /// Whether it is of this machine.
    pub is_local: bool,
    /// Whether the request was passed on by a proxy.
    pub is_forwarded: bool,
}

/// Bits of an IPv6 address that tell a network from others. A machine in it takes as many addresses as it likes.
const NETWORK_BITS: u32 = 64;

impl Ends {
    /// The ends of a connection from `peer` that was taken at `local`.
    pub fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let (peer, local) = (peer.ip().to_canonical(), local.ip().to_canonical());
        // Only this machine has connections to a loopback address.
        let is_local = peer.is_loopback() || local.is_loopback() || peer == local;
        Ends { peer, is_local, is_forwarded: false }
    }

    /// Whether the request comes from this machine.
    pub fn is_ours(&self) -> bool {
        self.is_local && !self.is_forwarded
    }

    /// The machine that limits count for: this one, by whatever address of its own it asks, another
    /// one, or a network of IPv6.
    pub fn counts_as(&self) -> IpAddr {
        match self.peer {
            _ if self.is_local => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) => self.peer,
            IpAddr::V6(address) => {
                let network = u128::MAX << (u128::BITS - NETWORK_BITS);
                Ipv6Addr::from_bits(address.to_bits() & network).into()
            }
        }
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What a body that changes something may be called.
const CONTENT_TYPES: [&str; 2] = ["application/json", "application/x-www-form-urlencoded"];

/// Lets a request through if it may do what it is for.
pub(super) async fn check(
    State(access): State<Access>,
    Extension(mut ends): Extension<Ends>,
    mut request: Request,
    next: Next,
) -> Response {
    ends.is_forwarded |= is_forwarded(request.headers());
    request.extensions_mut().insert(ends); // for handlers
    match allowed(&access, ends, &request) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            let (method, path, peer) = (request.method(), request.uri().path(), ends.peer);
            tracing::debug!(%method, ?path, %peer, why = refused.1, "HTTP request refused");
            refused.into_response()
        }
    }
}

fn allowed(access: &Access, ends: Ends, request: &Request<Body>) -> Result<(), Failure> {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let forbidden = |why: String| Err(Failure(StatusCode::FORBIDDEN, why));
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN) {
        return forbidden(format!(
            "web pages change nothing here; this is one of {:?}",
            text(origin)
        ));
    }
    let site = headers.get(SEC_FETCH_SITE);
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return forbidden("web pages change nothing here, and this is one of another site".into());
    }
    if let Some(host) = hosts(headers, request.uri()).find(|host| !access.is_ours(host)) {
        return forbidden(format!(
            "{host:?} is no name of this machine: use its address, its host name, or the name in \
             http_network_address"
        ));
    }
    if let Some(given) = foreign_type(headers) {
        let why = format!("a body must be application/json, or as `curl -d` has it, not {given}");
        return Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    if !ends.is_ours() && !access.changes_from.iter().any(|range| range.contains(ends.peer)) {
        let through = if ends.is_forwarded { "what is passed on by " } else { "" };
        return forbidden(format!(
            "{through}{0} may read but change nothing: the operator of the resource manager can allow it \
             with \"http_changes_from\": [\"{0}\"]",
            ends.peer
        ));
    }
    Ok(())
}

/// Whether a proxy says that it passed the request on.
fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| {
        ["forwarded", "via", "x-real-ip"].contains(&name) || name.starts_with("x-forwarded-")
    })
}

/// The hosts that a request names, without their ports.
fn hosts<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> impl Iterator<Item = String> + 'a {
    let named = headers.get_all(header::HOST).iter();
    let named = named.map(|host| {
        let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
        // What is no host is none of ours.
        authority.map_or_else(|| "not.a.host".to_owned(), |host| host.host().to_owned())
    });
    named.chain(uri.host().map(str::to_owned))
}

/// The content type, if it is one that a body must not have.
fn foreign_type(headers: &HeaderMap) -> Option<String> {
    let types = headers.get_all(header::CONTENT_TYPE).iter();
    let foreign = |given: &str| {
        let essence = given.split(';').next().unwrap_or_default().trim();
        !CONTENT_TYPES.iter().any(|known| essence.eq_ignore_ascii_case(known))
    };
    types.map(text).find(|given| foreign(given)).map(|given| format!("{given:?}"))
}

/// The text of a header. What `Debug` makes of that is one line; what it makes of the header itself may have tabs.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_content_type_is_one_line() {
        let told = |given: &'static str| {
            let value = HeaderValue::from_static(given);
            foreign_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        assert_eq!(told("appli\tation/json").as_deref(), Some(r#""appli\tation/json""#));
        assert_eq!(told("Application/JSON\t; charset=utf-8"), None);
    }

    /// The names of a machine called so that serves HTTP at `address`.
    fn on(address: &str, machine: &str) -> Access {
        Access::on(&[], [address, machine].into_iter().map(str::to_owned))
    }

    #[test]
    fn names_of_this_machine_are_known_and_those_of_sites_are_not() {
        let named = on("rm.cluster.example", "Node17");
        for ours in [
            "rm.cluster.example",
            "RM.Cluster.Example",
            "rm.cluster.example.",
            "node17.any.example",
        ] {
            assert!(named.is_ours(ours), "{ours}");
        }
        let default = rfaas_config::ResourceManagerNode::default().http_network_address;
        for access in [named, on(&default, "localhost"), on("127.0.0.1", "x"), on("::1", "[::1]")] {
            for ours in [
                "127.0.0.1",
                "10.1.2.3",
                "[::1]",
                "localhost",
                "LOCALHOST",
                "x",
                "rm",
                "node18.",
                "app.localhost",
            ] {
                assert!(access.is_ours(ours), "{ours}");
            }
            for site in [
                "evil.example",
                "127.evil.example",
                "127.0.0.1.evil.example",
                "localhost.evil.example",
                "rm.evil.example",
                "1.2.3",
            ] {
                assert!(!access.is_ours(site), "{site}");
            }
        }
        assert!(!on("127.0.0.1", "node17.cluster.example").is_ours("node17.evil.example"));
        let access = Access::new(&[], "127.0.0.1");
        assert!(!access.is_ours("127.evil.example"), "on this machine");
    }

    #[test]
    fn a_machine_is_local_by_any_of_its_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (peer, local, is_local) in [
            ("127.0.0.1:1", "127.0.0.1:5000", true),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:5000", true),
            ("10.0.0.1:1", "10.0.0.1:5000", true),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1:5000", true),
            ("10.0.0.1:1", "127.0.0.1:5000", true),
            ("10.0.0.2:1", "10.0.0.1:5000", false),
        ] {
            assert_eq!(Ends::new(at(peer), at(local)).is_local, is_local, "{peer}");
        }
    }

    #[test]
    fn limits_count_this_machine_once_and_a_network_of_ipv6_once() {
        let counts_as = |peer: &str, local: &str| {
            let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
            Ends::new(at(peer), at(local)).counts_as().to_string()
        };
        for (peer, local, whom) in [
            ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
            ("127.9.8.7", "127.0.0.1", "127.0.0.1"),
            ("10.0.0.1", "127.0.0.1", "127.0.0.1"),
            ("10.0.0.1", "10.0.0.1", "127.0.0.1"),
            ("::1", "::1", "127.0.0.1"),
            ("10.0.0.2", "10.0.0.1", "10.0.0.2"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8::1", "2001:db8:1:2::"),
            ("2001:db8:1:2::7", "2001:db8::1", "2001:db8:1:2::"),
        ] {
            assert_eq!(counts_as(peer, local), whom, "{peer} at {local}");
        }
    }
}
