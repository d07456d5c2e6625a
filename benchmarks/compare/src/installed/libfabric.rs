//! libfabric over shared memory: what MPICH and others use on one node.

use super::{Tool, is_positive, round_trip_ns};
use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::effort::Effort;

const TOOL: Tool = Tool { program: "fi_pingpong", package: "libfabric-bin", environment: &[] };

/// Messages of `fi_pingpong` between two processes.
#[derive(Clone, Copy, Debug)]
pub struct Libfabric;

impl Contender for Libfabric {
    fn id(&self) -> Id {
        Id::Libfabric
    }

    fn settings(&self) -> String {
        "fi_pingpong -p shm -e rdm; its figure is a mean of one way and is doubled; nothing is called".into()
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let repetitions = effort.planned(payload);
        let end = |flag: &str, port: u16| -> Vec<String> {
            let (port, repetitions) = (port.to_string(), repetitions.to_string());
            let size = payload.to_string();
            ["-p", "shm", "-e", "rdm", flag, &port, "-I", &repetitions, "-S", &size]
                .map(str::to_owned)
                .to_vec()
        };
        let client = |port| {
            let mut arguments = end("-P", port);
            arguments.push("127.0.0.1".into());
            arguments
        };
        let printed = TOOL.run(|port| end("-B", port), client)?;
        let one_way = parse(&printed).ok_or_else(|| TOOL.not_understood(&printed))?;
        Ok(Round {
            repetitions: repetitions.into(),
            p50: round_trip_ns(one_way),
            is_mean: true,
            p99: None,
            p999: None,
            each: vec![],
        })
    }
}

/// The mean of one way, in µs: what stands in the last line below `usec/xfer`.
fn parse(printed: &str) -> Option<f64> {
    let mut lines = printed.lines().filter(|line| !line.trim().is_empty());
    let header = lines.find(|line| line.starts_with("bytes"))?;
    let line = lines.next_back()?;
    let column = header.split_whitespace().position(|name| name == "usec/xfer")?;
    let mean: f64 = line.split_whitespace().nth(column)?.parse().ok()?;
    is_positive(mean).then_some(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of libfabric-bin 1.17.0.
    const CAPTURED: &str = "\
bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec
64      1k      =1k      125k        0.01s     13.19       4.85       0.21
";

    #[test]
    fn the_mean_is_read_from_what_it_prints() {
        assert_eq!(parse(CAPTURED), Some(4.85));
        let large = CAPTURED.replace("4.85 ", "5898.48 ");
        assert_eq!(parse(&large), Some(5898.48));
    }

    #[test]
    fn what_is_no_result_is_none() {
        let header = CAPTURED.lines().next().unwrap();
        for printed in [
            "",
            header,
            &format!("{header}\n64 1k =1k 125k 0.01s 13.19"),
            &format!("{header}\n64 1k =1k 125k 0.01s 13.19 ? 0.21"),
            &format!("{header}\n64 1k =1k 125k 0.01s 13.19 0.00 0.21"),
            &format!("{header}\n64 1k =1k 125k 0.01s 13.19 NaN 0.21"),
            "fi_getinfo: -61\nNo data available",
            &CAPTURED.replace("usec/xfer", "ns/xfer"),
        ] {
            assert_eq!(parse(printed), None, "{printed:?}");
        }
    }
}
