//! The other process of floors and peers: this program again, with the hidden flag `--serve`.
//!
//! ```text
//!   client ── compare: a measuring thread on the first CPU
//!     └── starts ──▶ compare --serve NAME: on the last CPU, its end of the connection is its standard input
//! ```
//! The end that it inherits is a shared page, an eventfd, a connected socket or a listening one: nobody has to
//! wait until it is ready, and nothing is left in the file system.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use rfaas_program::Failure;

use crate::{floors, peers};
use benchmarks::machine::{End, settle_down};
use benchmarks::peer::{PeerProcess, die_with_the_starter};

/// What the other process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Answers on a shared cache line.
    Bounce,
    /// Answers on eventfds: standard input and output.
    Eventfd,
    /// Length-prefixed messages on a connected Unix socket.
    Unix,
    /// gRPC on a listening TCP socket.
    GrpcTcp,
    /// gRPC on a connected Unix socket.
    GrpcUnix,
    /// HTTP on a listening TCP socket.
    Http,
}

impl Role {
    /// Starts a process that has it, with `end` as its standard input.
    pub fn start(self, end: OwnedFd) -> Result<PeerProcess, Failure> {
        self.start_with(end, Stdio::null())
    }

    /// The same with `out` as its standard output.
    pub fn start_with(self, end: OwnedFd, out: Stdio) -> Result<PeerProcess, Failure> {
        let program = std::env::current_exe().map_err(os("this program's file"))?;
        let name = self.to_possible_value().expect("no role is hidden from the command line");
        let mut command = Command::new(program);
        command.arg("--serve").arg(name.get_name()).stdin(Stdio::from(end)).stdout(out);
        PeerProcess::start(command)
    }

    /// Has it, in this process, until it is killed or its connection ends.
    pub fn serve(self) -> Result<(), Failure> {
        die_with_the_starter()?;
        settle_down(End::Last);
        let end = io::stdin().as_fd().try_clone_to_owned().map_err(os("standard input"))?;
        match self {
            Role::Bounce => floors::bounce::serve(end),
            Role::Eventfd => {
                let out =
                    io::stdout().as_fd().try_clone_to_owned().map_err(os("standard output"))?;
                floors::eventfd::serve(end, out)
            }
            Role::Unix => peers::unix::serve(end),
            Role::GrpcTcp => peers::grpc::serve_tcp(end),
            Role::GrpcUnix => peers::grpc::serve_unix(end),
            Role::Http => peers::http::serve(end),
        }
    }
}

/// What failed, by name.
pub fn os<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::later(format!("{what}: {error}"))
}
