//! Standard errors of all kinds, as the thread sees them.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may be written, and what was.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Option<usize>)>>);

impl Disk {
    /// Makes one that takes `bytes` more and is full then.
    fn with_room(bytes: usize) -> Self {
        Disk(Arc::new(Mutex::new((Vec::new(), Some(bytes)))))
    }

    fn is_emptied(&self) {
        self.0.lock().unwrap().1 = None;
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.lock().unwrap();
        let room = disk.1.unwrap_or(usize::MAX).min(bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.0.extend_from_slice(&bytes[..room]);
        disk.1 = disk.1.map(|left| left - room);
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that nobody reads until it is told to.
struct Stalled {
    begun: Sender<()>,
    read: Receiver<()>,
    disk: Disk,
}

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.send(()).unwrap();
        let _ = self.read.recv(); // the other end is gone: somebody reads
        self.disk.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_are_written_in_order_with_the_time_in_front() {
    let disk = Disk::default();
    let queue = Queue::start(disk.clone()).unwrap();
    for number in 0..3000 {
        queue.push(None, &format!(" INFO line {number}"));
    }
    queue.push_bare("error: the end");
    queue.flush(PATIENCE);
    let text = disk.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3001);
    for (number, line) in lines[..3000].iter().enumerate() {
        assert!(
            line.starts_with("20") && line.ends_with(&format!("Z  INFO line {number}")),
            "{line}"
        );
    }
    assert_eq!(lines[3000], "error: the end");
}

#[test]
fn a_line_is_written_although_nobody_waits_for_it_and_none_comes_behind_it() {
    let disk = Disk::default();
    let queue = Queue::start(disk.clone()).unwrap();
    for number in 0..20 {
        let line = format!("line {number}\n");
        queue.push_bare(line.trim_end());
        let deadline = Instant::now() + PATIENCE;
        while !disk.text().ends_with(&line) {
            assert!(Instant::now() < deadline, "{line:?} is not written: {}", disk.text());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn many_lines_or_long_ones_are_written_before_there_is_no_room_for_more() {
    let long = "x".repeat(LINE_BYTES);
    // The last of each makes it half full; one behind that may come too late for this time. Ends of lines count.
    for (line, count) in [("x", MOST_LINES / 2), (&*long, MOST_BYTES / LINE_BYTES / 2 - 1)] {
        let disk = Disk::default();
        let queue = Queue::gathering(2 * PATIENCE, disk.clone()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        queue.push_bare(line);
        while !queue.lock().gathers {
            assert!(Instant::now() < deadline, "the thread does not wait for more");
            thread::sleep(Duration::from_millis(1));
        }
        (0..count).for_each(|_| queue.push_bare(line));
        while disk.text().lines().count() <= count {
            assert!(Instant::now() < deadline, "lines of {} bytes are not written", line.len());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_thread_that_wakes_the_log_later_has_its_lines_written_then_or_when_they_are_many() {
    let disk = Disk::default();
    let queue = Queue::start(disk.clone()).unwrap();
    let written = |lines: usize| {
        let deadline = Instant::now() + PATIENCE;
        while disk.text().lines().count() < lines {
            assert!(Instant::now() < deadline, "{lines} lines are not written");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let asleep = || {
        let deadline = Instant::now() + PATIENCE;
        while !queue.lock().asleep {
            assert!(Instant::now() < deadline, "the thread does not wait for lines");
            thread::sleep(Duration::from_millis(1));
        }
    };
    asleep();
    wakes_later(true);
    queue.push_bare("one");
    assert!(queue.lock().asleep, "it is not woken");
    queue.wake();
    written(1);
    asleep();
    (0..MOST_LINES / 2 + 1).for_each(|_| queue.push_bare("x"));
    written(MOST_LINES / 2 + 2);
    asleep();
    wakes_later(false);
    queue.push_bare("last");
    written(MOST_LINES / 2 + 3);
}

#[test]
fn what_a_full_disk_does_not_take_is_counted_and_the_count_is_told_when_there_is_room() {
    let disk = Disk::with_room(10); // a part of the first line
    let queue = Queue::start(disk.clone()).unwrap();
    for number in 0..7 {
        queue.push_bare(&format!("lost line {number}"));
        queue.flush(PATIENCE);
    }
    disk.is_emptied();
    queue.push_bare("first");
    queue.push_bare("second");
    queue.flush(PATIENCE);
    let text = disk.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "lost line ", "what is torn ends there");
    assert!(lines[1].contains(" WARN 7 lines of the log were dropped"), "{text}");
    assert_eq!(lines[2..], ["first", "second"]);
}

#[test]
fn nobody_waits_for_a_reader_that_does_not_read_and_what_waits_is_bounded() {
    let (disk, (begun, writing), (read, reading)) = (Disk::default(), channel(), channel());
    let queue = Queue::start(Stalled { begun, read: reading, disk: disk.clone() }).unwrap();
    queue.push_bare("0");
    writing.recv_timeout(PATIENCE).unwrap(); // the thread is stuck with it
    for number in 1..=2 * MOST_LINES {
        queue.push_bare(&number.to_string());
    }
    assert_eq!(queue.lock().lines, MOST_LINES);
    queue.flush(Duration::from_millis(1)); // ends, although nothing is written
    drop(read);
    queue.flush(PATIENCE);
    let text = disk.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2 + MOST_LINES);
    assert!(
        lines[1].contains(&format!("{MOST_LINES} lines of the log were dropped")),
        "{}",
        lines[1]
    );
    assert_eq!(lines.last().unwrap(), &MOST_LINES.to_string());
}

#[test]
fn long_lines_are_cut_and_their_bytes_are_bounded_too() {
    let (disk, (begun, writing), (read, reading)) = (Disk::default(), channel(), channel());
    let queue = Queue::start(Stalled { begun, read: reading, disk: disk.clone() }).unwrap();
    queue.push_bare("0");
    writing.recv_timeout(PATIENCE).unwrap();
    for _ in 0..2 * MOST_BYTES / LINE_BYTES {
        queue.push_bare(&"ü".repeat(MOST_BYTES));
    }
    assert!(queue.lock().waiting.len() <= MOST_BYTES);
    drop(read);
    queue.flush(PATIENCE);
    let text = disk.text();
    assert!(text.lines().all(|line| line.len() <= LINE_BYTES + "…".len()));
    assert!(text.lines().any(|line| line.ends_with("ü…")));
}

#[test]
fn lines_that_share_a_pipe_are_written_whole() {
    let lines: Vec<u8> = (0..1000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let mut rest = &lines[..];
    while !rest.is_empty() {
        let piece = next_piece(rest);
        assert!(piece <= AT_ONCE && rest[piece - 1] == b'\n');
        rest = &rest[piece..];
    }
    let long = [vec![b'x'; 2 * AT_ONCE], b"\nnext\n".to_vec()].concat();
    assert_eq!(next_piece(&long), 2 * AT_ONCE + 1);
}
