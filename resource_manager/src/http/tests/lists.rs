//! Long lists and bills.

use std::num::NonZeroU64;

use super::*;

#[test]
fn a_list_of_many_pages_is_whole_and_in_order() {
    let world = World::new();
    let many = 2 * pages::ROWS + 7;
    world
        .commands
        .tell(move |pool, now, out| {
            for number in (0..many).rev() {
                let capacity = Capacity { cores: 1, memory: 1 };
                let spec =
                    NodeSpec::new(&format!("node-{number:05}"), "10.0.0.1", 1, capacity).unwrap();
                pool.add_node(now, spec, out).unwrap();
            }
            let address = ([10, 0, 0, 1], 1).into();
            let run = Run {
                instance: NonZeroU64::MIN,
                address,
                clock_ahead_ms: 0,
                isolation: Layers::NONE,
            };
            pool.node_connected(now, "node-00000", run, LinkId(1), out).unwrap();
            let spec =
                NodeSpec::new("node-00000", "10.0.0.1", 1, Capacity { cores: 9999, memory: 9999 });
            pool.add_node(now, spec.unwrap(), out).unwrap();
            for client in 0..many {
                let hour = Duration::from_secs(3600);
                let ask = Ask::new(1, 1, hour, &format!("client-{}", client % 1000)).unwrap();
                let lease = pool.request(now, &ask).unwrap().remove(0).terms.lease;
                if client >= pages::ROWS {
                    pool.end_lease(now, lease, EndReason::Withdrawn, out);
                }
            }
        })
        .unwrap();
    // Of version 1.0, so that the answer comes as it is, without chunks.
    let list = |target: &str| {
        let answer = world.raw(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let json = |target: &str| serde_json::from_str::<Vec<Value>>(&list(target)).unwrap();
    let nodes = json("/nodes");
    for (number, node) in nodes.iter().enumerate() {
        assert_eq!(node["node"], format!("node-{number:05}"));
    }
    assert_eq!(nodes.len(), many);
    assert_eq!(json("/leases").len(), pages::ROWS, "a page that is full, and an empty one");
    let ended = many - pages::ROWS;
    let bills = json("/billing");
    let ids: Vec<_> = bills.iter().map(|bill| bill["lease"].as_u64()).collect();
    assert!(ids.is_sorted() && ids.len() == ended, "{}", ids.len());
    let table = list("/billing?format=csv");
    assert_eq!(table.lines().count(), 1 + ended);
    assert_eq!(table.matches("provisional").count(), 1, "one head");
    assert_eq!(json("/billing?by=client").len(), ended.min(1000));
    assert_eq!(json("/billing?client=client-600").len(), 1);
}

#[test]
fn graphs_of_several_pages_are_listed_once_each() {
    let world = World::new();
    let node = r#"{"ip_address":"192.168.0.29","port":10005,"cores":50,"memory":512}"#;
    assert_eq!(world.call("POST", "/add?node=a", node).0, 200);
    world.connect("a");
    for graphs in [0, 7, 1, 40] {
        let listed = || {
            let answer = world.raw(b"GET /graphs HTTP/1.0\r\n\r\n"); // which has no chunks
            serde_json::from_str::<Vec<Value>>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
        };
        let before = listed().len() as u64;
        for graph in 0..graphs {
            let (_, lease) = world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#);
            world.note_worker(lease["id"].as_u64().unwrap(), before + graph + 1);
        }
        let numbers = listed().into_iter().map(|graph| graph["id"].as_u64().unwrap());
        assert!(numbers.eq(1..=before + graphs), "{graphs} more than {before}");
    }
}

#[test]
fn a_read_has_its_turn_until_it_ends_also_when_nobody_waits_for_it() {
    let (commands, _inbox) = commands().unwrap();
    let durable = Arc::new(StateFile::in_memory().unwrap());
    let secret = Arc::from(&b"42"[..]);
    let api = Api::new(commands, durable, Arc::default(), secret, Access::default());
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let reader = api.clone();
        let request = tokio::spawn(async move {
            let slow = move |_: &StateFile| {
                begin.send(()).unwrap();
                let _ = ended.recv();
                Ok(())
            };
            let _ = reader.read(slow).await;
        });
        begun.await.unwrap();
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(api.reads.available_permits(), READS - 1);
        drop(end);
        drop(api.reads.acquire_many(READS as u32).await.unwrap());
    });
}
