//! UCX over shared memory: what MPI libraries and data services use on one node.

use super::{Tool, is_positive, round_trip_ns};
use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::effort::Effort;

const TOOL: Tool = Tool {
    program: "ucx_perftest",
    package: "ucx-utils",
    environment: &[("UCX_TLS", "posix,self")],
};
/// Percentiles that are asked for, each in a measurement of its own: it reports one at a time.
const MEDIAN: &str = "50";
const TAIL: &str = "99";

/// A test of `ucx_perftest` between two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ucx {
    /// A bare active message there and one back.
    Message,
    /// A one-sided write there and one back, which are polled for in memory.
    Put,
}

impl Ucx {
    fn test(self) -> &'static str {
        match self {
            Ucx::Message => "ucp_am_lat",
            Ucx::Put => "ucp_put_lat",
        }
    }

    /// The percentile of one way, in µs, and how many there were.
    fn one_way(
        self,
        payload: u32,
        effort: Effort,
        percentile: &str,
    ) -> Result<UcxFigures, NotMeasured> {
        let repetitions = effort.planned(payload);
        let client = |port: u16| {
            let mut arguments = vec!["127.0.0.1".to_owned(), "-f".into(), "-v".into()];
            for (flag, value) in [
                ("-p", port.to_string()),
                ("-t", self.test().into()),
                ("-s", payload.to_string()),
                ("-n", repetitions.to_string()),
                ("-w", (repetitions / 10).max(1).to_string()),
                ("-R", percentile.into()),
            ] {
                arguments.extend([flag.to_owned(), value]);
            }
            arguments
        };
        let printed = TOOL.run(|port| vec!["-p".into(), port.to_string()], client)?;
        parse(&printed).ok_or_else(|| TOOL.not_understood(&printed))
    }
}

impl Contender for Ucx {
    fn id(&self) -> Id {
        match self {
            Ucx::Message => Id::UcxMessage,
            Ucx::Put => Id::UcxPut,
        }
    }

    fn settings(&self) -> String {
        format!(
            "ucx_perftest -t {}, UCX_TLS=posix,self; its figure is one way and is doubled; nothing is called",
            self.test()
        )
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let median = self.one_way(payload, effort, MEDIAN)?;
        let tail = self.one_way(payload, effort, TAIL)?;
        Ok(Round {
            repetitions: median.repetitions,
            p50: round_trip_ns(median.percentile_us),
            is_mean: false,
            p99: Some(round_trip_ns(tail.percentile_us)),
            p999: None,
            each: vec![],
        })
    }
}

/// Its figures of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct UcxFigures {
    repetitions: u64,
    percentile_us: f64,
}

/// The last line of `-f -v`: iterations, then the percentile, then means and bandwidths.
fn parse(printed: &str) -> Option<UcxFigures> {
    let (header, line) = printed.trim_end().rsplit_once('\n')?;
    header.contains("_percentile_lat").then_some(())?;
    let mut fields = line.split(',');
    let repetitions = fields.next()?.trim().parse().ok()?;
    let percentile_us: f64 = fields.next()?.trim().parse().ok()?;
    is_positive(percentile_us).then_some(UcxFigures { repetitions, percentile_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ucx-utils 1.13.1.
    const CAPTURED: &str = "\
iterations,99.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr
20000,0.500,0.335,0.335,182.35,182.35,2987556,2987556
";

    #[test]
    fn iterations_and_percentile_are_read_from_what_it_prints() {
        let expected = UcxFigures { repetitions: 20_000, percentile_us: 0.5 };
        assert_eq!(parse(CAPTURED), Some(expected));
        // Its log comes first, if it logs.
        let logged =
            format!("[1795649681.162006] [vm:5749 :0] perftest.c:129 UCX WARN x\n{CAPTURED}");
        assert_eq!(parse(&logged), Some(expected));
    }

    #[test]
    fn what_is_no_result_is_none() {
        let header = CAPTURED.lines().next().unwrap();
        for printed in [
            "",
            header,
            "20000,0.5",
            &format!("{header}\n"),
            &format!("{header}\n20000"),
            &format!("{header}\n20000,nan-ish"),
            &format!("{header}\n20000,NaN"),
            &format!("{header}\n20000,inf,0,0"),
            &format!("{header}\n20000,0.000,0,0"),
            &format!("{header}\n-1,0.5,0,0"),
            &CAPTURED.replace("_percentile_lat", ""),
        ] {
            assert_eq!(parse(printed), None, "{printed:?}");
        }
    }
}
