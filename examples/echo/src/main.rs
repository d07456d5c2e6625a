//! The smallest whole client: leases a core, calls a function there, gives everything back.

use std::io::{Write, stderr, stdout};

use anyhow::Context;
use clap::Parser;
use rfaas::{Client, Devices, LeaseRequest};

/// Sends TEXT to the function `empty` on a leased core and prints what comes back.
#[derive(Parser)]
#[command(version)]
struct Cli {
    text: String,
    /// Database of this machine's RDMA devices, of which the only one is used.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: String,
    /// Where the resource manager is.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10000")]
    manager: String,
    /// Library with the function.
    #[arg(long, value_name = "FILE", default_value = "target/release/libfunctions.so")]
    functions: String,
}

fn echo(Cli { text, device_database, manager, functions }: Cli) -> anyhow::Result<()> {
    let devices = Devices::load(device_database).context("--device-database")?;
    let client = Client::connect(devices.open_only()?, manager).context("--manager")?;
    let lease = client.lease(LeaseRequest::new(1, 128))?; // 1 core, 128 MB
    let mut executor = lease.deploy(functions).context("--functions")?;
    let empty = executor.function("empty")?;
    let (mut input, mut output) = (executor.input(text.len())?, executor.output(text.len())?);
    input.write(0, text.as_bytes())?;
    let bytes = executor.invoke(&empty, &input, &mut output)?;
    let echoed = String::from_utf8(output.to_vec(..bytes)?)?;
    let billed = executor.release()?.execution_ns;
    Ok(writeln!(stdout(), "{echoed}\nbilled {billed} ns of a core at work")?)
}

fn main() {
    echo(Cli::parse()).unwrap_or_else(|error| {
        let _ = writeln!(stderr(), "error: {error:#}"); // eprintln! panics on a full disk
        std::process::exit(2)
    })
}
