//! Executors that flood, streams that never answer, and questions.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::reader::{CHUNK, PERIOD, READ_BYTES, READ_COST};
use super::*;

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

const CLIENT: ClientId = ClientId(1);
const OTHER: ClientId = ClientId(2);

/// A reader that does not run by itself, and the end of its stream that an executor has.
fn reader(outputs: &Outputs) -> (Reader, ExecutorOutput, UnixStream) {
    let (from, to) = stream(OutputStream::Stdout).unwrap();
    let (reader, output) = outputs.reader(Some(7), vec![from]).unwrap();
    (reader, output, to)
}

fn readers(outputs: &Outputs) -> usize {
    outputs.shared.lock().readers.len()
}

/// Waits until `done`, which a reader brings about.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks for the first part, and returns the answer when it is there.
fn ask(outputs: &Outputs, client: ClientId) -> Vec<u8> {
    let start = Instant::now();
    assert!(outputs.ask(start, client, 0));
    loop {
        let answers = outputs.answers(start); // as if no time passed: not because it is late
        if let [(to, part)] = &answers[..] {
            assert_eq!(*to, client);
            return part.bytes().unwrap().to_vec();
        }
        assert!(start.elapsed() < PATIENCE, "no answer");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_executor_that_floods_is_read_in_measure_and_what_it_left_is_bounded() {
    let outputs = Outputs::default();
    let (mut reader, _output, mut to) = reader(&outputs);
    let start = Instant::now();
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    while reader.may_read() {
        to.write_all(&[b'\n'; CHUNK]).unwrap();
        written += CHUNK;
        reader.read(start, &mut buffer);
    }
    assert_eq!(written, READ_BYTES);
    let read_on = reader.deadline().unwrap();
    reader.read(read_on, &mut buffer);
    assert!(reader.may_read());
    // A daemon holds the stream and writes on and on: the end comes all the same.
    let daemon = thread::spawn(move || while to.write_all(&[b'x'; CHUNK]).is_ok() {});
    reader.finish(&mut buffer);
    daemon.join().unwrap(); // the stream is closed under it
    assert_eq!(readers(&outputs), 0);
    assert!(read_on <= start + PERIOD);
}

#[test]
fn an_executor_that_writes_byte_after_byte_is_read_in_measure_too() {
    let outputs = Outputs::default();
    let (mut reader, _output, mut to) = reader(&outputs);
    let start = Instant::now();
    let mut reads = 0;
    while reader.may_read() {
        to.write_all(b"\n").unwrap();
        reader.read(start, &mut [0; CHUNK]);
        reads += 1;
    }
    assert_eq!(reads, READ_BYTES / READ_COST);
}

#[test]
fn a_descriptor_that_a_function_passes_is_held_by_nobody() {
    let outputs = Outputs::default();
    let (mut reader, _output, to) = reader(&outputs);
    let (held, mut other) = UnixStream::pair().unwrap();
    let (fds, bytes) = ([held.as_raw_fd()], [IoSlice::new(b"\n")]);
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None);
    drop(held);
    let kernel_can = rdmalib::refuse_descriptors(&UnixStream::pair().unwrap().0);
    assert_eq!(sent, if kernel_can { Err(Errno::EPERM) } else { Ok(1) });
    reader.read(Instant::now(), &mut [0; CHUNK]);
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0, "its other end is open somewhere");
}

/// A stream of which a read never ends, until the other side of a channel is gone.
struct Stuck {
    ready: UnixStream,
    begun: Sender<()>,
    held: Receiver<()>,
}

impl AsFd for Stuck {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Read for Stuck {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let _ = self.begun.send(());
        let _ = self.held.recv();
        Ok(0)
    }
}

/// An executor of `lease` whose reader hangs in a read; it goes on when what is returned is dropped.
fn stuck(outputs: &Outputs, lease: u64) -> (ExecutorOutput, Sender<()>) {
    let (ready, mut to) = UnixStream::pair().unwrap();
    to.write_all(b"x").unwrap();
    let ((begun, has_begun), (let_go, held)) = (channel(), channel());
    let streams = vec![Stream::new(OutputStream::Stdout, Stuck { ready, begun, held })];
    let output = outputs.read(Some(lease), streams).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    (output, let_go)
}

#[test]
fn a_stream_that_never_answers_keeps_no_other_lease_waiting_and_its_own_for_a_bounded_time() {
    let outputs = Outputs::default();
    outputs.keep(CLIENT, 7);
    outputs.keep(OTHER, 8);
    let (hung, let_go) = stuck(&outputs, 7);
    let (output, ends) = outputs.follow(Some(8)).unwrap();
    File::from(ends.stdout).write_all(b"of another lease\n").unwrap();
    let asked = Instant::now();
    assert!(outputs.ask(asked, CLIENT, 0));
    assert_eq!(outputs.next_deadline(), Some(asked + ANSWER_WITHIN));
    assert_eq!(outputs.answers(asked), []);
    outputs.forget(CLIENT); // or its own question would be among the answers
    assert_eq!(ask(&outputs, OTHER), b"of another lease\n");
    drop(output);
    outputs.keep(CLIENT, 7);
    assert!(outputs.ask(asked, CLIENT, 0));
    assert_eq!(outputs.answers(asked), []);
    let answers = outputs.answers(asked + ANSWER_WITHIN);
    assert!(matches!(&answers[..], [(CLIENT, part)] if part.bytes() == Ok(b"")), "{answers:?}");
    drop(hung); // it was reaped, as far as that goes
    drop(let_go);
    wait_until("the end of the readers", || readers(&outputs) == 0);
}

#[test]
fn a_question_is_answered_with_all_that_was_written_before_it() {
    let outputs = Outputs::default();
    outputs.keep(CLIENT, 7);
    assert_eq!(ask(&outputs, CLIENT), b"", "nobody runs");
    let (output, ends) = outputs.follow(Some(7)).unwrap();
    let mut to = File::from(ends.stdout);
    let mut expected = Vec::<u8>::new();
    for line in 0..100 {
        let text = format!("{line}\n");
        to.write_all(text.as_bytes()).unwrap();
        expected.extend(text.as_bytes());
        assert_eq!(ask(&outputs, CLIENT), expected);
    }
    to.write_all(b"last words").unwrap();
    expected.extend(b"last words");
    drop((output, to));
    assert_eq!(ask(&outputs, CLIENT), expected);
}

#[test]
fn only_the_client_of_a_lease_reads_its_output_until_it_is_gone_or_has_another() {
    let outputs = Outputs::default();
    outputs.keep(CLIENT, 7);
    let (output, ends) = outputs.follow(Some(7)).unwrap();
    File::from(ends.stdout).write_all(b"of 7").unwrap();
    drop(output);
    assert!(!outputs.ask(Instant::now(), OTHER, 0), "it has no lease");
    outputs.keep(OTHER, 8);
    assert_eq!(ask(&outputs, OTHER), b"");
    assert_eq!(ask(&outputs, CLIENT), b"of 7");
    outputs.keep(CLIENT, 7);
    assert_eq!(ask(&outputs, CLIENT), b"of 7", "an executor later");
    outputs.keep(CLIENT, 9);
    assert_eq!(ask(&outputs, CLIENT), b"", "another lease");
    outputs.forget(CLIENT);
    assert!(!outputs.ask(Instant::now(), CLIENT, 0));
}

#[test]
fn a_client_has_one_question_at_a_time() {
    let outputs = Outputs::default();
    outputs.keep(CLIENT, 7);
    for from in 0..1000 {
        outputs.ask(Instant::now(), CLIENT, from);
    }
    let answers = outputs.answers(Instant::now());
    assert!(matches!(&answers[..], [(CLIENT, part)] if part.from.get() == 999), "{answers:?}");
}

#[test]
fn a_lease_has_a_bounded_number_of_readers_and_others_have_theirs() {
    let outputs = Outputs::default();
    let hung: Vec<_> = (0..MOST_OF_A_LEASE).map(|_| stuck(&outputs, 7)).collect();
    let (output, ends) = outputs.follow(Some(7)).unwrap();
    File::from(ends.stdout).write_all(&[b'x'; 1 << 20]).unwrap(); // to nowhere, without waiting
    assert!(output.reader.is_none());
    assert!(outputs.follow(Some(8)).unwrap().0.reader.is_some());
    drop(hung);
    wait_until("the end of the readers", || readers(&outputs) == 0);
    assert!(outputs.follow(Some(7)).unwrap().0.reader.is_some(), "there is room again");
}

#[test]
fn an_executor_that_cannot_be_read_writes_to_nowhere_and_is_started() {
    let (output, ends) = to_nowhere(Some(7), &io::Error::from(io::ErrorKind::OutOfMemory)).unwrap();
    File::from(ends.stdout).write_all(&[b'x'; 1 << 20]).unwrap(); // without waiting
    File::from(ends.stderr).write_all(&[b'x'; 1 << 20]).unwrap();
    assert!(output.reader.is_none());
}
