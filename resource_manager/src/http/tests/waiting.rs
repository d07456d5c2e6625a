//! Requests that wait for room, and clients that do not.

use super::super::serve::ClientEnd;
use super::super::waiting::ask_for_leases;
use super::*;

/// A request for a core that waits for a minute.
const WAITS: &str = r#"{"cores":1,"memory":1,"wait_ms":60000}"#;

impl World {
    fn waiting(&self) -> usize {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.commands.ask(|pool, _, _| pool.count_waiting())).unwrap()
    }

    fn until_waiting(&self, count: usize) {
        for _ in 0..2_000 {
            if self.waiting() == count {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{} wait, not {count}", self.waiting());
    }

    /// Sends a request that waits.
    fn waits(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = WAITS.len();
        let head = format!("POST /leases HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + WAITS).as_bytes()).unwrap();
        stream
    }
}

#[test]
fn a_client_that_goes_away_or_sends_no_more_waits_no_longer() {
    let world = World::new();
    assert_eq!(world.call("POST", "/add?node=a", NODE).0, 200);
    world.connect("a");
    assert_eq!(world.call("POST", "/leases", r#"{"cores":1,"memory":1}"#).0, 201);
    let (stays, goes, half, mut pipelines) =
        (world.waits(), world.waits(), world.waits(), world.waits());
    pipelines.write_all(b"GET /nodes HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    world.until_waiting(4);
    drop(goes);
    world.until_waiting(3);
    half.shutdown(std::net::Shutdown::Write).unwrap();
    world.until_waiting(2);
    drop(pipelines);
    world.until_waiting(1);
    let id = world.call("GET", "/leases", "").1[0]["id"].clone();
    assert_eq!(world.call("DELETE", &format!("/leases/{id}"), "").0, 200);
    let mut answer = [0; 12];
    let mut stays = stays;
    stays.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
}

#[test]
fn a_request_that_is_given_up_before_the_loop_heard_of_it_leaves_nothing_behind() {
    let (commands, inbox) = commands().unwrap();
    let (durable, events) = (Arc::new(StateFile::in_memory().unwrap()), Arc::default());
    let api = Api::new(commands, durable, events, Arc::from(&b"42"[..]), Access::default());
    let now = Now::read();
    let mut pool = Pool::new(now, Duration::from_secs(10));
    let capacity = Capacity { cores: 1, memory: 64 };
    let spec = NodeSpec::new("a", "192.168.0.29", 10_005, capacity).unwrap();
    pool.add_node(now, spec, &mut Vec::new()).unwrap();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (mine, its) = tokio::join!(connecting, listener.accept());
        (mine.unwrap(), ClientEnd::of(its.unwrap().0))
    });
    let ask = Ask::new(1, 1, Duration::from_secs(60), "c").unwrap();
    runtime.block_on(async {
        let asked = ask_for_leases(&api, ask, Duration::from_secs(60), &client.1);
        assert!(tokio::time::timeout(Duration::from_millis(20), asked).await.is_err());
    });
    let mut done = 0;
    while let Some(Command::Work(work)) = inbox.try_next() {
        work(&mut pool, now, &mut Vec::new())();
        done += 1;
    }
    assert_eq!((done, pool.count_waiting()), (2, 0), "it was asked for, and then not any more");
}
