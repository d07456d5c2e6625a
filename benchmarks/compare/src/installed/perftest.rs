//! The floor of RDMA devices: bare writes, with the verbs library's own measuring programs.

use std::net::IpAddr;

use rfaas_config::DeviceEntry;

use super::{Tool, is_positive, round_trip_ns};
use crate::PAYLOADS;
use crate::contender::{Contender, Id, NotMeasured, Round};
use crate::effort::Effort;

const LATENCY: Tool = Tool { program: "ib_write_lat", package: "perftest", environment: &[] };
const BANDWIDTH: Tool = Tool { program: "ib_write_bw", package: "perftest", environment: &[] };
/// The fewest repetitions that they take.
const FEWEST: u32 = 5;
/// Decimal megabytes would be `--report_gbits`; without it they count in 2²⁰ bytes.
const MB: f64 = 1_048_576.0;

/// Writes there and back on one device.
#[derive(Debug)]
pub struct WriteLat<'a> {
    /// The device of both ends.
    pub device: &'a DeviceEntry,
}

impl Contender for WriteLat<'_> {
    fn id(&self) -> Id {
        Id::WriteLat
    }

    fn device(&self) -> Option<&str> {
        Some(&self.device.name)
    }

    fn settings(&self) -> String {
        "ib_write_lat, reliable connection, both ends on the device and polling memory; its typical time is one way \
         and is doubled; nothing is called"
            .into()
    }

    fn payloads(&self) -> Vec<u32> {
        PAYLOADS.to_vec()
    }

    fn measure(&self, payload: u32, effort: Effort) -> Result<Round, NotMeasured> {
        let repetitions = effort.planned(payload).max(FEWEST);
        let printed = run(LATENCY, self.device, payload, repetitions)?;
        let told = latencies(&printed).ok_or_else(|| LATENCY.not_understood(&printed))?;
        Ok(Round {
            repetitions: told.repetitions,
            p50: round_trip_ns(told.typical_us),
            is_mean: false,
            p99: Some(round_trip_ns(told.p99_us)),
            p999: Some(round_trip_ns(told.p999_us)),
            each: vec![],
        })
    }
}

/// Bytes per second that writes of `payload` bytes reach on `device`.
pub fn write_bandwidth(
    device: &DeviceEntry,
    payload: u32,
    effort: Effort,
) -> Result<f64, NotMeasured> {
    let repetitions = effort.planned(payload).max(FEWEST);
    let printed = run(BANDWIDTH, device, payload, repetitions)?;
    bandwidth(&printed).ok_or_else(|| BANDWIDTH.not_understood(&printed))
}

fn run(
    tool: Tool,
    device: &DeviceEntry,
    payload: u32,
    repetitions: u32,
) -> Result<String, NotMeasured> {
    let end = |port: u16, at: Option<IpAddr>| {
        let mut arguments = vec!["-F".to_owned()]; // a processor whose clock changes is no reason to refuse
        for (flag, value) in [
            ("-d", device.name.clone()),
            ("-p", port.to_string()),
            ("-s", payload.to_string()),
            ("-n", repetitions.to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend(at.map(|at| at.to_string()));
        arguments
    };
    tool.run(|port| end(port, None), |port| end(port, Some(device.ip_address)))
}

/// Its figures of one way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Latencies {
    repetitions: u64,
    typical_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// The line below the header: bytes, iterations, min, max, typical (the median), average, deviation, 99 %, 99.9 %.
fn latencies(printed: &str) -> Option<Latencies> {
    let line = line_below(printed, "t_typical[usec]")?;
    let field = |at: usize| line.get(at)?.parse().ok().filter(|us| is_positive(*us));
    Some(Latencies {
        repetitions: line.get(1)?.parse().ok()?,
        typical_us: field(4)?,
        p99_us: field(7)?,
        p999_us: field(8)?,
    })
}

/// The line below the header: bytes, iterations, peak, average, in MB/s.
fn bandwidth(printed: &str) -> Option<f64> {
    let line = line_below(printed, "BW average[MB/sec]")?;
    let average: f64 = line.get(3)?.parse().ok()?;
    is_positive(average).then_some(average * MB)
}

fn line_below<'a>(printed: &'a str, header: &str) -> Option<Vec<&'a str>> {
    let mut lines = printed.lines().skip_while(|line| !line.contains(header));
    Some(lines.nth(1)?.split_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of perftest 4.5, on a SoftRoCE device.
    const LATENCY: &str = "\
---------------------------------------------------------------------------------------
                    RDMA_Write Latency Test
 Dual-port       : OFF\t\tDevice         : rxe0
 TX depth        : 1
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec] 
 8       200          7.90           1294.36      8.11     \t       10.76       \t24.20  \t\t341.97  \t\t1294.36
---------------------------------------------------------------------------------------
";

    /// Likewise.
    const BANDWIDTH: &str = "\
 Data ex. method : Ethernet
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 8          200              0.57               0.38   \t\t   0.049807
---------------------------------------------------------------------------------------
";

    #[test]
    fn the_average_bandwidth_is_read_in_bytes() {
        assert_eq!(bandwidth(BANDWIDTH), Some(0.38 * 1_048_576.0));
        assert_eq!(bandwidth(&BANDWIDTH.replace("0.38", "0.00")), None);
        assert_eq!(bandwidth(&BANDWIDTH.replace("0.38", "inf")), None);
        assert_eq!(bandwidth(LATENCY), None);
        assert_eq!(latencies(BANDWIDTH), None);
    }

    #[test]
    fn the_typical_time_and_the_tail_are_read_from_what_it_prints() {
        let expected =
            Latencies { repetitions: 200, typical_us: 8.11, p99_us: 341.97, p999_us: 1294.36 };
        assert_eq!(latencies(LATENCY), Some(expected));
    }

    #[test]
    fn what_is_no_result_is_none() {
        let header = " #bytes #iterations t_min[usec] t_max[usec] t_typical[usec]";
        for printed in [
            "",
            " Unable to find the Infiniband/RoCE device\n",
            header,
            &format!("{header}\n"),
            &format!("{header}\n 8 200 7.90 1294.36"),
            &format!("{header}\n 8 200 7.90 1294.36 x 10.76 24.20 341.97 1294.36"),
            &format!("{header}\n 8 200 7.90 1294.36 -8.11 10.76 24.20 341.97 1294.36"),
            &LATENCY.replace("t_typical", "t_other"),
        ] {
            assert_eq!(latencies(printed), None, "{printed:?}");
            assert_eq!(bandwidth(printed), None, "{printed:?}");
        }
    }
}
