//! What functions print, as a client reads it.

use rfaas::{Deployment, EndReason, Error, OutputStream};

use crate::common::{Node, eventually};

#[test]
fn what_functions_have_printed_is_read_with_the_number_of_bytes_that_were_dropped() {
    let (node, lease) = Node::leased(1);
    let printed = lease.printed().unwrap();
    assert!(printed.is_empty() && printed.dropped() == 0, "nobody is asked before the claim");
    let executor = lease.deploy_with(crate::common::library(), &Deployment::default()).unwrap();
    for printed in [executor.printed().unwrap(), lease.printed().unwrap()] {
        let pieces: Vec<_> = printed.pieces().collect();
        assert_eq!(pieces, [(OutputStream::Stderr, &b"printed"[..])]);
        assert_eq!((printed.to_string().as_str(), printed.dropped()), ("printed", 10));
    }
    // Also when the lease is over, as long as the node listens.
    node.announce(EndReason::Expired, 0);
    eventually("the end is known", || lease.ending().is_some());
    assert_eq!(executor.printed().unwrap().to_string(), "printed");
    lease.release().unwrap_err();
    let error = executor.printed().unwrap_err();
    assert!(matches!(error, Error::LeaseEnded { .. }), "{error:?}");
}

#[test]
fn a_node_that_is_gone_is_not_asked_for_what_was_printed() {
    let (node, executor) = Node::deployed(1, &Deployment::default());
    node.hang_up();
    let mut last = None;
    eventually("it cannot be asked", || {
        last = executor.printed().err();
        last.is_some()
    });
    assert!(matches!(last, Some(Error::ExecutorGone | Error::Connection { .. })), "{last:?}");
}
