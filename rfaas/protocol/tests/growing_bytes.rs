//! The bytes of a request that grows leases.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

use rfaas_protocol::constraints::Constraints;
use rfaas_protocol::lease::{ClientName, FromClient, GangRequest, GrowRequest, LeaseId};
use rfaas_protocol::{MessageKind, Text};
use zerocopy::IntoBytes;

fn text<const N: usize>(text: &str) -> Vec<u8> {
    Text::<N>::new(text).unwrap().as_bytes().to_vec()
}

#[test]
fn a_request_that_grows_leases_has_these_bytes() {
    let mut gang = GangRequest::new(1.into(), 2, (3, 4), 5);
    (gang.wait_ms, gang.client) = (6.into(), ClientName::new("alice").unwrap());
    let constraints = Constraints {
        together: true,
        leave_free: 8,
        at_least: 7,
        has: vec!["gpu".into(), "fast".into()],
        ..Constraints::default()
    };
    constraints.write_to(&mut gang).unwrap();
    let grown = [LeaseId::new(9), LeaseId::new(0x0102)].map(Option::unwrap);
    let grow = GrowRequest::new(&gang, &grown);
    let bytes = [
        &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0][..],
        &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 7, 0, 0, 0, 8, 0, 0, 0],
        &text::<64>("alice"),
        &text::<256>("gpu\nfast"),
        &[9, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
        &[0; 30 * 8],
    ]
    .concat();
    assert_eq!(grow.as_bytes(), bytes);
    let said = FromClient::Grow(grow);
    assert_eq!(said.encode(), [&[6, 0][..], &bytes].concat());
    assert_eq!(FromClient::decode(&said.encode()), Ok(said));
}
