//! The log of an executor manager that cannot be written, and what executors and functions write.

#![allow(clippy::unwrap_used)] // clippy does not see that all of this is test code

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use common::{Client, Node, OBEDIENT, ResourceManager, allocate, runs, unsigned, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

#[test]
fn what_an_executor_writes_is_told_with_its_lease_and_stream() {
    let script = r#"echo "to standard output"; echo 'to "standard" error' >&2
printf 'forged\033[2J\r2026-11-29T06:00:00Z  INFO lease ended lease=1\n\nwithout an end'
kill -SEGV $$"#;
    let mut node = Node::alone(script);
    let mut client = node.client();
    let lease = client.claim(unsigned(1));
    let line = node.wait_for_log("to standard output");
    let of_lease = format!("lease={lease} ");
    assert!(line.contains(&of_lease) && line.contains("stream=\"stdout\""), "{line}");
    let line = node.wait_for_log(r#"to \"standard\" error"#);
    assert!(line.contains(&of_lease) && line.contains("stream=\"stderr\""), "{line}");
    // Written when it had crashed already, as far as the manager could see.
    node.wait_for_log("without an end");
    let forged = node.wait_for_log("forged");
    assert!(forged.contains(r"forged\u{1b}[2J\r2026"), "{forged}");
    assert!(!forged.chars().any(char::is_control), "{forged}");
}

#[test]
fn an_executor_that_floods_the_log_has_some_lines_of_it_and_the_rest_is_counted() {
    let script = "mkdir $DIR/first 2> /dev/null || { echo a quiet word; exec sleep 1000; }
exec yes \"so much to say, every line of it the same or not: $$\"";
    let mut node = Node::alone(script);
    let mut client = node.client();
    let flooding = client.claim(unsigned(1));
    node.wait_for_log("so much to say");
    let mut other = node.client();
    let quiet = other.claim(unsigned(1)); // is served and heard as before
    let heard = node.wait_for_log("a quiet word");
    assert!(heard.contains(&format!("lease={quiet} ")), "{heard}");
    other.release();
    client.release();
    let told =
        node.wait_for_log(&format!("lines of the functions of lease {flooding} were dropped"));
    let dropped = told.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
    assert!(dropped > 1000, "{told}");
    let passed = node.log().matches("so much to say").count();
    assert!(passed < 1000, "{passed} lines of the flood are in the log");
}

#[test]
fn what_a_function_does_to_its_output_is_nobody_elses_trouble() {
    // It leaves a daemon with its streams, outside of its group, and then closes them itself.
    let script = "trap 'exit 0' TERM; cat > /dev/null
setsid sh -c 'echo $$ > $DIR/daemon.new; mv $DIR/daemon.new $DIR/daemon; exec sleep 1000' &
exec 2>&-; echo lost >&2; echo closed; exec >&-
while :; do sleep 0.01; done";
    let mut node = Node::alone(script);
    let mut client = node.client();
    client.refused(allocate(unsigned(0))); // connected
    let descriptors =
        |node: &Node| fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    let before = descriptors(&node);
    client.claim(unsigned(1));
    node.wait_for_log("closed");
    let daemon = wait_for("its daemon", || fs::read_to_string(node.setup.path("daemon")).ok());
    let daemon: i32 = daemon.trim().parse().unwrap();
    assert!(descriptors(&node) > before);
    client.release();
    wait_for("the streams to be closed", || (descriptors(&node) <= before).then_some(()));
    assert!(runs(daemon));
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    node.stop();
}
