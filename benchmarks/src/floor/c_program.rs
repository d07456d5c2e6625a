//! A C program that measures: compiled when it is needed, asked with a line, answering with one.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rfaas_program::Failure;

/// Compiles the program `$1`, which needs headers `$2`, with the flags `$3`, and runs it with the arguments that
/// follow. A shell does this, since it removes what was compiled also when this process is killed: that ends the
/// program's input.
const SCRIPT: &str = r#"
command -v cc >/dev/null || { echo none; exit; }
for header in $2; do
    printf '#include <%s>\n' "$header" | cc -E -x c - >/dev/null 2>&1 || { echo none; exit; }
done
directory=$(mktemp -d) || exit
trap 'rm -rf "$directory"' EXIT
trap exit HUP INT TERM
printf %s "$1" | cc -O2 -x c -o "$directory/floor" - $3 || exit
shift 3
echo ready
"$directory/floor" "$@"
"#;

/// Its source, and what compiling that takes.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The text.
    pub text: &'static str,
    /// Headers that not every C compiler comes with, separated by spaces.
    pub headers: &'static str,
    /// Flags for the linker, separated by spaces.
    pub libraries: &'static str,
}

/// The program, running. It ends with this value.
#[derive(Debug)]
pub struct CProgram {
    shell: Child,
    ask: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

impl CProgram {
    /// Compiles and starts it. `None`: there is no C compiler here, or a header is missing.
    pub fn start<A: AsRef<OsStr>>(
        source: Source,
        arguments: &[A],
    ) -> Result<Option<CProgram>, Failure> {
        let Source { text, headers, libraries } = source;
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "floor", text, headers, libraries])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| not_measured(&error))?;
        let ask = shell.stdin.take();
        let told = BufReader::new(shell.stdout.take().expect("it is piped"));
        let mut program = CProgram { shell, ask, told };
        match program.line()?.as_str() {
            "ready\n" => Ok(Some(program)),
            "none\n" => Ok(None),
            _ => Err(not_measured(&"it was not compiled")),
        }
    }

    /// Has it do what `line` says; returns the nanoseconds that it answers.
    pub fn ask(&mut self, line: &str) -> Result<Vec<u64>, Failure> {
        let ask = self.ask.as_mut().expect("taken when this is dropped");
        writeln!(ask, "{line}").map_err(|error| not_measured(&error))?;
        let line = self.line()?;
        let times: Result<Vec<_>, _> = line.split_whitespace().map(str::parse).collect();
        match times {
            Ok(times) if !times.is_empty() => Ok(times),
            _ => Err(not_measured(&"what it does has failed")),
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.told.read_line(&mut line).map_err(|error| not_measured(&error))?;
        Ok(line)
    }
}

impl Drop for CProgram {
    fn drop(&mut self) {
        drop(self.ask.take()); // it ends at the end of its input
        let _ = self.shell.wait();
    }
}

fn not_measured(why: &dyn Display) -> Failure {
    Failure::later(format!("the floor was not measured: {why}"))
}
