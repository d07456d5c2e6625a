//! Sends an image to a leased core and writes the thumbnail that comes back.
//!
//! Elsewhere: making the thumbnail (`function.rs`, which is what runs on the core).

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rfaas::{Client, Deployment, LeaseRequest, Spin};
use rfaas_config::{BenchmarkConfig, Devices, ExecutorsDatabase};
use rfaas_program::{self as program, Failure};
use thumbnailer::MAX_THUMBNAIL_BYTES;

/// Makes a thumbnail of a JPEG or PNG image on a leased core.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Image to make small.
    #[arg(short, long, value_name = "FILE")]
    image: PathBuf,
    /// Where the thumbnail goes; a file that exists is replaced.
    #[arg(short, long, value_name = "FILE", default_value = "thumbnail.jpg")]
    out_file: PathBuf,
    /// Device and resource manager to use, memory to lease; config/README.md explains every key.
    #[arg(short, long, value_name = "FILE", default_value = "config/benchmark.json")]
    config: PathBuf,
    /// Device database of this machine.
    #[arg(long, value_name = "FILE", default_value = "config/devices.json")]
    device_database: PathBuf,
    /// Executor managers to lease from, without a resource manager.
    #[arg(long, value_name = "FILE")]
    executors_database: Option<PathBuf>,
    /// Function library; by default libthumbnailer.so beside this program.
    #[arg(long, value_name = "FILE")]
    functions: Option<PathBuf>,
    /// Name of the function.
    #[arg(long, value_name = "NAME", default_value = "thumbnailer")]
    name: String,
    /// Log what happens on standard error.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    program::run(|cli: &Cli| program::level(cli.verbose), run)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let at = |file: &Path, what: &str, error: io::Error| {
        Failure::input(format!("{}: {what}: {error}", file.display()))
    };
    let image = fs::read(&cli.image).map_err(|error| at(&cli.image, "cannot be read", error))?;
    if image.is_empty() {
        return Err(Failure::input(format!("{}: the file is empty", cli.image.display())));
    }
    let directory = cli.out_file.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory {
        // Now, not when a core has done its work.
        fs::metadata(directory).map_err(|error| at(directory, "cannot be written to", error))?;
    }
    let thumbnail = make(&cli, &image)?;
    if thumbnail.is_empty() {
        let image = cli.image.display();
        return Err(Failure::input(format!(
            "{image}: neither JPEG nor PNG, damaged, or too large"
        )));
    }
    fs::write(&cli.out_file, &thumbnail)
        .map_err(|error| at(&cli.out_file, "cannot be written", error))?;
    let (from, to) = (cli.image.display(), cli.out_file.display());
    program::print(format!("{from}, {} bytes -> {to}, {} bytes\n", image.len(), thumbnail.len()))
}

/// Has a leased core make the thumbnail; empty if there is none.
fn make(cli: &Cli, image: &[u8]) -> Result<Vec<u8>, Failure> {
    let library = match &cli.functions {
        Some(file) => file.clone(),
        None => env::current_exe().map_err(Failure::later)?.with_file_name("libthumbnailer.so"),
    };
    let settings = BenchmarkConfig::load(&cli.config)?;
    let spin = Spin::from_hot_timeout_ms(settings.benchmark.hot_timeout).unwrap_or(Spin::Never);
    // One image after the other: one slot, as large as the image.
    let deployment = Deployment::default()
        .input_bytes(image.len())
        .output_bytes(MAX_THUMBNAIL_BYTES)
        .slots(1)
        .spin(spin);

    let lease = connect(cli, &settings)?.lease(LeaseRequest::new(1, settings.benchmark.memory))?;
    let mut executor = lease.deploy_with(library, &deployment)?;
    let function = executor.function(&cli.name)?;
    let mut input = executor.input(image.len())?;
    let mut output = executor.output(MAX_THUMBNAIL_BYTES)?;
    input.write(0, image)?;
    let bytes = executor.invoke(&function, &input, &mut output)?;
    let thumbnail = output.to_vec(..bytes)?;
    executor.release()?;
    Ok(thumbnail)
}

/// A client of the resource manager, or of the executor managers in the database.
fn connect(cli: &Cli, config: &BenchmarkConfig) -> Result<Client, Failure> {
    let devices = Devices::load(&cli.device_database)?;
    let device = devices.open(&config.config.rdma_device)?;
    if let Some(file) = &cli.executors_database {
        let database = ExecutorsDatabase::load(file)?;
        return Client::with_executors(device, database).map_err(Failure::from);
    }
    let Some(manager) = config.config.resource_manager()? else {
        return Err(Failure::input(format!(
            "{}: config.resource_manager_address is empty, and no --executors-database is given",
            cli.config.display()
        )));
    };
    Client::connect(device, &manager[..]).map_err(Failure::from)
}
