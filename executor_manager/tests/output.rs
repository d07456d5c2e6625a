//! The log of an executor manager that cannot be written, and what executors and functions write.

#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use common::{Client, Node, OBEDIENT, ResourceManager, allocate, runs, terms, unsigned, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rfaas_protocol::allocation::{FromClient, ReadOutput, ToClient};
use rfaas_protocol::lease::{EndReason, Token};

/// Has clients claim, be refused and release at a manager that `set_up` changed the command of; then it
/// is stopped in order. Its log cannot tell where it listens, so it tells its resource manager.
fn serves(what: &str, set_up: impl FnOnce(&mut Command)) {
    let mut manager = ResourceManager::new();
    let setup = manager.node(OBEDIENT);
    let mut command = setup.command();
    set_up(&mut command);
    let mut process = command.spawn().unwrap();
    let mut link = manager.register();
    let mut client = Client::connect(link.address);
    // It logs some thousand lines at level debug.
    for _ in 0..300 {
        client.refused(allocate(unsigned(0)));
    }
    for lease in 1..=5 {
        client.claim(link.signed(lease, 1));
        assert_eq!(link.claimed(), lease);
        client.release();
        assert_eq!(link.ended().0, lease);
        link.acknowledge(lease);
    }
    assert!(process.try_wait().unwrap().is_none(), "{what}: it goes on");
    drop(client);
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    let status = wait_for("its end", || process.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{what}");
}

#[test]
fn a_manager_serves_whatever_becomes_of_its_log() {
    serves("a full disk", |command| {
        command.stderr(File::options().write(true).open("/dev/full").unwrap());
    });
    serves("a pipe whose reader has gone", |command| {
        command.stderr(std::io::pipe().unwrap().1);
    });
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'x'; 1 << 16]).unwrap(); // as much as a pipe holds
    serves("a pipe that nobody reads", |command| {
        command.stderr(writer);
    });
    drop(reader);
    // A file that has reached the limit that the operator has set: a signal otherwise.
    let full = tempfile::NamedTempFile::new().unwrap();
    full.as_file().set_len(1 << 30).unwrap(); // nothing of it is stored
    serves("a file at its limit", |command| {
        in_a_shell(command, "ulimit -f 2097152; exec \"$0\" \"$@\""); // of 512 bytes
        command.stderr(File::options().append(true).open(full.path()).unwrap());
    });
    assert_eq!(full.as_file().metadata().unwrap().len(), 1 << 30, "it was full");
}

/// Has a shell start `command`, by `script`.
fn in_a_shell(command: &mut Command, script: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(command.get_program()).args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    *command = shell;
}

#[test]
fn a_manager_serves_without_standard_descriptors() {
    serves("closed", |command| {
        in_a_shell(command, "exec \"$0\" \"$@\" <&- >&- 2>&-");
    });
}

/// What a program writes before functions may write.
const FUNCTIONS: &str = r"printf '\0' >&2";

/// Stops `node` in order; returns all that it has logged.
fn log_of(mut node: Node) -> String {
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
    node.log()
}

#[test]
fn what_functions_write_is_read_by_their_client_and_is_not_in_the_log() {
    let script = format!(
        r#"{FUNCTIONS}; echo "to standard output"; echo 'to "standard" error' >&2
printf '2026-11-29T06:00:00Z  INFO forged\0\377\n' >&2
printf 'without an end'
kill -SEGV $$"#
    );
    let node = Node::alone(&script);
    let mut client = node.client();
    client.claim(unsigned(1));
    client.exited();
    let (pieces, dropped) = client.printed();
    assert_eq!(dropped, 0);
    let of = |wanted: u16| -> Vec<u8> {
        pieces.iter().filter(|(stream, _)| *stream == wanted).flat_map(|p| p.1.clone()).collect()
    };
    assert_eq!(of(1), b"to standard output\nwithout an end");
    assert_eq!(of(2), b"to \"standard\" error\n2026-11-29T06:00:00Z  INFO forged\0\xff\n");
    let log = log_of(node);
    for text in ["standard", "forged", "without an end"] {
        assert!(!log.contains(text), "{text} is in\n{log}");
    }
}

#[test]
fn what_an_executor_says_before_functions_run_is_in_the_log_and_not_for_the_client() {
    let script = format!(
        r#"echo 'cannot open "it"' >&2; printf 'half a line\033[2J' >&2
{FUNCTIONS}; echo of functions >&2; exit 1"#
    );
    let mut node = Node::alone(&script);
    let mut client = node.client();
    let lease = client.claim(unsigned(1));
    client.exited();
    assert_eq!(client.printed(), (vec![(2, b"of functions\n".to_vec())], 0));
    let line = node.wait_for_log(r#"cannot open \"it\""#);
    assert!(line.contains(&format!("lease={lease} ")), "{line}");
    let half = node.wait_for_log("half a line");
    assert!(half.contains(r"\u{1b}[2J") && !half.chars().any(char::is_control), "{half}");
    assert!(!log_of(node).contains("of functions"));
}

#[test]
fn of_an_executor_that_floods_the_last_words_are_kept_and_others_are_served_as_before() {
    let script = format!(
        "{FUNCTIONS}
mkdir $DIR/first 2> /dev/null || {{ echo a quiet word; exec sleep 1000; }}
yes \"so much to say, every line of it the same or not: $$\" | head -c 4000000; echo; echo the end; exec sleep 1000"
    );
    let node = Node::alone(&script);
    let mut client = node.client();
    client.claim(unsigned(1));
    wait_for("the first one", || node.setup.path("first").exists().then_some(()));
    let mut other = node.client();
    other.claim(unsigned(1));
    wait_for("the quiet word", || {
        (other.printed() == (vec![(1, b"a quiet word\n".to_vec())], 0)).then_some(())
    });
    let (pieces, dropped) = wait_for("the end", || {
        let printed = client.printed();
        let bytes: Vec<u8> = printed.0.iter().flat_map(|piece| piece.1.clone()).collect();
        bytes.ends_with(b"\nthe end\n").then_some((bytes, printed.1))
    });
    assert_eq!(pieces.len() as u64 + dropped, 4_000_000 + 9);
    assert!(pieces.len() <= 256 << 10, "{}", pieces.len());
    assert!(!log_of(node).contains("so much to say"));
}

#[test]
fn output_is_for_the_connection_that_claimed_its_lease_also_after_its_end() {
    let node = Node::alone(&format!(
        "trap 'echo stopped; exit 0' TERM; {FUNCTIONS}
echo started; while :; do sleep 0.01; done"
    ));
    let mut stranger = node.client();
    let mut client = node.client();
    client.claim(Token::unsigned(terms(0, 1, 100, Duration::from_millis(500))));
    let text = |client: &mut Client| -> String {
        let pieces = client.printed().0.into_iter();
        pieces.map(|piece| String::from_utf8(piece.1).unwrap()).collect()
    };
    wait_for("its words", || (text(&mut client) == "started\n").then_some(()));
    stranger.send(&FromClient::ReadOutput(ReadOutput { from: 0.into() }));
    let refused = stranger.next();
    assert!(matches!(refused, ToClient::Refused(_)), "{refused:?}");
    assert_eq!(client.ending().0, EndReason::Expired);
    wait_for("its last words", || (text(&mut client) == "started\nstopped\n").then_some(()));
    // Another lease on the same connection begins with nothing.
    node.setup.script(&format!("{FUNCTIONS}; echo anew; exec sleep 1000"));
    wait_for("another lease", || match client.ask(allocate(unsigned(1))) {
        ToClient::Allocated(_) => Some(()),
        _ => None, // the process of the first is not gone yet
    });
    wait_for("the other's words", || (text(&mut client) == "anew\n").then_some(()));
}

/// The number of threads that read executors.
fn readers(node: &Node) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    // A thread may end between the two.
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.unwrap())).filter(|name| name.trim() == "output").count()
}

#[test]
fn what_a_function_does_to_its_output_is_nobody_elses_trouble() {
    // It leaves a daemon with its streams, outside of its group, and then closes them itself.
    let script = format!(
        "trap 'exit 0' TERM; cat > /dev/null; {FUNCTIONS}
setsid sh -c 'echo $$ > $DIR/daemon.new; mv $DIR/daemon.new $DIR/daemon; exec sleep 1000' &
exec 2>&-; echo lost >&2; echo closed; exec >&-
while :; do sleep 0.01; done"
    );
    let node = Node::alone(&script);
    let mut client = node.client();
    client.claim(unsigned(1));
    wait_for("their reader", || (readers(&node) == 1).then_some(())); // it names itself
    wait_for("its word", || {
        (client.printed() == (vec![(1, b"closed\n".to_vec())], 0)).then_some(())
    });
    let daemon = wait_for("its daemon", || fs::read_to_string(node.setup.path("daemon")).ok());
    let daemon: i32 = daemon.trim().parse().unwrap();
    client.release();
    // It closes the streams first.
    wait_for("the end of their reader", || (readers(&node) == 0).then_some(()));
    assert!(runs(daemon));
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    node.stop();
}
