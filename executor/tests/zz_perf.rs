#![allow(clippy::unwrap_used)]
mod common;
use common::*;
use std::time::Instant;
#[test]
fn perf() {
    for hot in [-1, 0] {
        for n in [8usize, 64, 4096] {
            let setup = Setup { hot_timeout_ms: hot, ..Setup::default() };
            let mut session = Session::start(&setup, &faulty());
            let echo = session.function("echo");
            let w = &mut session.workers[0];
            let input = vec![1u8; n];
            let mut t = vec![];
            for _ in 0..30000 {
                let s = Instant::now();
                w.submit(0, echo, &input);
                loop {
                    if let Some(d) = w.queue.poll_one() {
                        if d.id == 0 {
                            w.pair.post_receive(0, None).unwrap();
                            break;
                        }
                    }
                    std::hint::spin_loop();
                }
                t.push(s.elapsed().as_nanos() as u64);
            }
            t.sort();
            println!(
                "hot {hot} {n} B: min {} p50 {} p99 {} p999 {}",
                t[0],
                t[t.len() / 2],
                t[t.len() * 99 / 100],
                t[t.len() * 999 / 1000]
            );
        }
    }
}
#[test]
fn par() {
    for n in [1usize, 2, 4, 8] {
    let setup = Setup { hot_timeout_ms: -1, workers: n as u16, ..Setup::default() };
    let mut session = Session::start(&setup, &faulty());
    let echo = session.function("echo");
    let mut t = vec![];
    let begin = Instant::now();
    while begin.elapsed().as_secs() < 4 {
        let s = Instant::now();
        for w in &mut session.workers { w.submit(0, echo, b"12345678"); }
        for w in &mut session.workers { let mut polls = 0; loop { if let Some(d) = w.queue.poll_one() { if d.id == 0 { w.pair.post_receive(0, None).unwrap(); break; } } std::hint::spin_loop(); polls += 1; if polls > 1000 { std::thread::yield_now(); } } }
        t.push(s.elapsed().as_nanos() as u64);
    }
    t.sort();
    println!("{n} workers: {} inv/s, round min {} p50 {} p99 {} p999 {}", t.len() * n / 4, t[0], t[t.len()/2], t[t.len()*99/100], t[t.len()*999/1000]);
    }
}
