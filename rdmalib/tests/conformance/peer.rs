//! The second process of some facts: connects back to the first, then does what its role says.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdmalib::{Device, DeviceSpec, Flags, Operation, QueuePairConfig, RemoteAddress};

use crate::ends::{End, PATIENCE, next, write_imm};

/// Environment variable with the role; the others follow it.
pub const ROLE: &str = "RDMALIB_CONFORMANCE_PEER";
const TO: &str = "RDMALIB_CONFORMANCE_TO";
const DEVICE: &str = "RDMALIB_CONFORMANCE_DEVICE";

/// Additions that role `add` makes.
pub const ADDITIONS: u64 = 20_000;

/// Bytes that role `write` writes at a time.
pub const LARGE: usize = 2 << 20;

/// What a listener's private data says, when it accepts role `add` or `write`.
pub fn address(bytes: &[u8]) -> RemoteAddress {
    let (addr, key) = bytes.split_at(8);
    RemoteAddress {
        addr: u64::from_le_bytes(addr.try_into().unwrap()),
        key: u64::from_le_bytes(key[..8].try_into().unwrap()),
    }
}

/// The private data that says it.
pub fn address_bytes(at: RemoteAddress) -> Vec<u8> {
    [&at.addr.to_le_bytes()[..], &at.key.to_le_bytes()].concat()
}

/// A child process that is killed when the fact is over, however it ends.
pub struct Peer(Child);

impl Peer {
    pub fn start(role: &str, device: &DeviceSpec, to: SocketAddr) -> Peer {
        Peer::start_with(role, device, to, &[])
    }

    /// With these environment variables; what it says on standard error is kept for
    /// [`error`](Self::error).
    pub fn start_with(
        role: &str,
        device: &DeviceSpec,
        to: SocketAddr,
        variables: &[(&str, &str)],
    ) -> Peer {
        let text = [
            &device.name,
            &device.provider.to_string(),
            &device.ip_address.to_string(),
            &device.max_inline_data.to_string(),
        ]
        .map(String::as_str)
        .join(" ");
        let child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, role)
            .env(TO, to.to_string())
            .env(DEVICE, text)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(if variables.is_empty() { Stdio::inherit() } else { Stdio::piped() })
            .spawn()
            .unwrap();
        Peer(child)
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap(); // SIGKILL
    }

    /// What it said on standard error, until it ended.
    pub fn error(&mut self) -> String {
        std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap()
    }

    pub fn wait(&mut self) {
        assert!(self.0.wait().unwrap().success(), "the peer process failed");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn device() -> DeviceSpec {
    let text = std::env::var(DEVICE).unwrap();
    let fields: Vec<_> = text.split(' ').collect();
    DeviceSpec {
        name: fields[0].into(),
        provider: fields[1].parse().unwrap(),
        ip_address: fields[2].parse().unwrap(),
        max_inline_data: fields[3].parse().unwrap(),
    }
}

/// Runs in the child.
pub fn act(role: &str) {
    let to: SocketAddr = std::env::var(TO).unwrap().parse().unwrap();
    let device = Device::open(&device()).unwrap();
    let mut end = End::new(&device, &QueuePairConfig::default());
    end.post_receives(0..4);
    let answer = end.pair.connect(to, role.as_bytes(), PATIENCE).unwrap();
    match role {
        // Tells that it is connected, then ends in one of three ways when told.
        "close" | "exit" | "linger" => {
            let hello =
                Operation::Send { source: rdmalib::Source::Inline(&[]), immediate: Some(1) };
            end.post(0, hello, Flags::SIGNALED);
            next(&mut end.sends);
            next(&mut end.receives);
            match role {
                "close" => {
                    drop(end);
                    std::thread::sleep(Duration::from_millis(300));
                }
                "exit" => std::process::exit(0),
                _ => std::thread::sleep(PATIENCE), // is killed here
            }
        }
        // Writes large messages, each when the one before was answered, until it is killed.
        "write" => {
            let (to, source) = (address(answer.as_slice()), end.region(LARGE));
            for n in 0u8.. {
                source.fill(0..LARGE, n).unwrap();
                let operation = write_imm(&source, 0..LARGE, to, n.into());
                end.post(0, operation, Flags::SIGNALED | Flags::WITH_COMPLETION);
                assert_eq!(next(&mut end.sends).status, rdmalib::Status::Success);
                next(&mut end.receives);
                end.post_receives(0..1);
            }
        }
        "add" => {
            let at = address(answer.as_slice());
            let old = end.region(8);
            for _ in 0..ADDITIONS {
                let into = old.slice(0..8).unwrap();
                end.post(0, Operation::FetchAdd { into, at, add: 3 }, Flags::SIGNALED);
                assert_eq!(next(&mut end.sends).status, rdmalib::Status::Success);
            }
        }
        other => panic!("unknown role {other}"),
    }
}
