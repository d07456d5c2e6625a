//! Executors that flood, and streams that never answer.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::*;

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reader that does not run by itself, and the end of its stream that an executor has.
fn reader(outputs: &Outputs, now: Instant) -> (Reader, UnixStream) {
    let (from, to) = stream("stdout").unwrap();
    let limit = outputs.limits.lock().unwrap().of(7, now);
    let ended = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let (pace, _counted) = (Pace::new(now), Counted::new(&outputs.readers));
    (Reader { streams: vec![from], limit, ended, pace, _counted }, to)
}

#[test]
fn an_executor_that_floods_is_read_in_measure_and_what_it_left_is_bounded() {
    let (outputs, start) = (Outputs::default(), Instant::now());
    let (mut reader, mut to) = reader(&outputs, start);
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    while reader.may_read() {
        to.write_all(&[b'\n'; CHUNK]).unwrap();
        written += CHUNK;
        reader.read(start, &mut buffer);
    }
    assert_eq!(written, READ_BYTES);
    assert_eq!(reader.deadline(), Some(start + PERIOD));
    reader.read(start + PERIOD, &mut buffer);
    assert!(reader.may_read());
    // A daemon holds the stream and writes on and on: the end comes all the same.
    let daemon = thread::spawn(move || while to.write_all(&[b'x'; CHUNK]).is_ok() {});
    reader.finish(&mut buffer);
    daemon.join().unwrap(); // the stream is closed under it
    assert_eq!(*outputs.readers.lock(), 0);
}

#[test]
fn an_executor_that_writes_byte_after_byte_is_read_in_measure_too() {
    let (outputs, start) = (Outputs::default(), Instant::now());
    let (mut reader, mut to) = reader(&outputs, start);
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
    let (outputs, start) = (Outputs::default(), Instant::now());
    let (mut reader, to) = reader(&outputs, start);
    let (held, mut other) = UnixStream::pair().unwrap();
    let (fds, bytes) = ([held.as_raw_fd()], [IoSlice::new(b"\n")]);
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None);
    drop(held);
    let kernel_can = rdmalib::refuse_descriptors(&UnixStream::pair().unwrap().0);
    assert_eq!(sent, if kernel_can { Err(Errno::EPERM) } else { Ok(1) });
    reader.read(start, &mut [0; CHUNK]);
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
    let limit = outputs.limits.lock().unwrap().of(lease, Instant::now());
    let streams = vec![Stream::new("stdout", Stuck { ready, begun, held })];
    let output = outputs.read(streams, limit).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    (output, let_go)
}

/// Waits until `to` is closed at the other end, which is when everything in it was read.
fn read_to_its_end(mut to: UnixStream) {
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other end never writes; it closes with what was not read in it as an error.
    assert_eq!(to.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stream_that_never_answers_keeps_neither_other_leases_nor_the_end_waiting() {
    let outputs = Outputs::default();
    let (hung, let_go) = stuck(&outputs, 7);
    let (output, ends) = outputs.follow(8).unwrap();
    let mut to = UnixStream::from(ends.stdout);
    to.write_all(b"of another lease\n").unwrap();
    drop(output);
    read_to_its_end(to);
    drop(hung); // it was reaped, as far as that goes
    let readers = outputs.readers.clone();
    let before = Instant::now();
    drop(outputs);
    assert!(before.elapsed() >= LAST_WORDS, "it had its time");
    assert_eq!(*readers.lock(), 1, "it was left");
    drop(let_go);
    let left = readers.fewer.wait_timeout_while(readers.lock(), PATIENCE, |count| *count > 0);
    assert_eq!(*left.unwrap().0, 0, "and ends when it can");
}

#[test]
fn a_lease_has_a_bounded_number_of_readers_and_others_have_theirs() {
    let outputs = Outputs::default();
    let hung: Vec<_> = (0..MOST_OF_A_LEASE).map(|_| stuck(&outputs, 7)).collect();
    let (output, ends) = outputs.follow(7).unwrap();
    File::from(ends.stdout).write_all(&[b'x'; 1 << 20]).unwrap(); // to nowhere, without waiting
    assert!(output.ended.is_none());
    assert!(outputs.follow(8).unwrap().0.ended.is_some());
    drop(hung);
    let (readers, patience) = (&outputs.readers, PATIENCE);
    drop(readers.fewer.wait_timeout_while(readers.lock(), patience, |count| *count > 0).unwrap());
    assert!(outputs.follow(7).unwrap().0.ended.is_some(), "there is room again");
}

#[test]
fn an_executor_that_cannot_be_read_writes_to_nowhere_and_is_started() {
    let (output, ends) = to_nowhere(7, &io::Error::from(io::ErrorKind::OutOfMemory)).unwrap();
    File::from(ends.stdout).write_all(&[b'x'; 1 << 20]).unwrap(); // without waiting
    File::from(ends.stderr).write_all(&[b'x'; 1 << 20]).unwrap();
    assert!(output.ended.is_none());
}
