//! The program `executor` as containers see it: with the dynamic loader and the libraries that it runs with on the
//! node, whatever the image has.
//!
//! A process has one C library. So that of the node serves the functions too, as it does without a container; what
//! else they need is the image's.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::Mounted;
use super::engine::Engine;
use crate::launch::exec::Exec;

/// Directory of it all in a container.
const DIRECTORY: &str = "/rfaas";
/// How long the dynamic loader may take to say what it would load. It takes a millisecond.
const TRACE_WITHIN: Duration = Duration::from_secs(10);
/// Libraries of one release with `libc.so.6`, which functions may need: none works with another's.
const OF_THE_C_LIBRARY: [&str; 7] = [
    "libm.so.6",
    "libmvec.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
];

/// What containers see of the program.
#[derive(Debug)]
pub struct Program {
    pub mounted: Vec<Mounted>,
    /// What runs it.
    pub words: Vec<String>,
}

impl Program {
    /// Finds out what `executor` needs.
    pub fn find(exec: &Exec, executor: &Path) -> io::Result<Program> {
        let executor = executor.canonicalize()?;
        let mut program = Program { mounted: Vec::new(), words: Vec::new() };
        let seen = program.mount("executor", executor.clone())?;
        if let Some(loaded) = loaded(exec, &executor)? {
            let loader = program.mount(&format!("lib/{}", name(&loaded.loader)?), loaded.loader)?;
            for (name, file) in loaded.libraries {
                program.mount(&format!("lib/{name}"), file)?;
            }
            let lib = format!("{DIRECTORY}/lib");
            program.words.extend([loader, "--library-path".into(), lib]);
        }
        program.words.push(seen);
        Ok(program)
    }

    fn mount(&mut self, at: &str, file: PathBuf) -> io::Result<String> {
        let file = file.canonicalize()?;
        let at = format!("{DIRECTORY}/{at}");
        // What separates the parts of an option has no escape.
        if file.to_str().is_none_or(|path| path.contains([':', ','])) {
            let wrong = format!("{file:?} has a character in its path that no engine takes");
            return Err(io::Error::other(wrong));
        }
        self.mounted.push(Mounted { file, at: at.clone() });
        Ok(at)
    }
}

/// What the dynamic loader maps for a program.
#[derive(Debug, PartialEq, Eq)]
struct Loaded {
    loader: PathBuf,
    /// By the names that they are loaded by.
    libraries: Vec<(String, PathBuf)>,
}

/// Asks the dynamic loader, as ldd(1) does; `None`: the program needs none.
fn loaded(exec: &Exec, program: &Path) -> io::Result<Option<Loaded>> {
    let mut magic = [0; 4];
    File::open(program)?.read_exact(&mut magic)?;
    if magic != *b"\x7fELF" {
        return Ok(None);
    }
    let mut environment: Vec<CString> = exec.environment().to_vec();
    environment.push(c"LD_TRACE_LOADED_OBJECTS=1".into());
    let asked = Engine::at(program, environment);
    let printed = asked.run(exec, &["executor".into()], TRACE_WITHIN, None)?;
    let Some(mut loaded) = parse(&printed.stdout) else { return Ok(None) };
    let c_library = loaded.libraries.iter().find(|(name, _)| name == "libc.so.6");
    if let Some(directory) = c_library.and_then(|(_, file)| Some(file.parent()?.to_owned())) {
        for name in OF_THE_C_LIBRARY {
            let file = directory.join(name);
            if file.exists() && !loaded.libraries.iter().any(|(known, _)| known == name) {
                loaded.libraries.push((name.into(), file));
            }
        }
    }
    Ok(Some(loaded))
}

fn parse(text: &str) -> Option<Loaded> {
    let mut libraries = Vec::new();
    let mut loader = None;
    for line in text.lines() {
        let what = line.trim().rsplit_once(" (0x").map_or(line.trim(), |(what, _)| what);
        match what.split_once(" => ") {
            Some((name, file)) if name.starts_with('/') => loader = Some(PathBuf::from(file)),
            Some((name, file)) => libraries.push((name.to_owned(), PathBuf::from(file))),
            None if what.starts_with('/') => loader = Some(PathBuf::from(what)),
            None => {} // what the kernel has (linux-vdso.so.1)
        }
    }
    Some(Loaded { loader: loader?, libraries })
}

fn name(file: &Path) -> io::Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| io::Error::other(format!("{file:?} has no name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_says_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007f28463e0000)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f28463af000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2845c1e000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f28463e2000)\n";
        let lib = |name: &str| (name.to_owned(), Path::new("/lib/x86_64-linux-gnu").join(name));
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.loader, Path::new("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(loaded.libraries, [lib("libgcc_s.so.1"), lib("libc.so.6")]);
        assert_eq!(parse("\tstatically linked\n"), None);
    }

    #[test]
    fn a_program_of_this_machine_is_seen_with_its_libraries() {
        let exec = Exec::new("".into(), None, Vec::new());
        let own = std::env::current_exe().unwrap();
        let program = Program::find(&exec, &own).unwrap();
        let at: Vec<_> = program.mounted.iter().map(|mounted| mounted.at.as_str()).collect();
        assert_eq!(at[0], "/rfaas/executor");
        assert!(at.contains(&"/rfaas/lib/libc.so.6"), "{at:?}");
        assert_eq!(program.words[1..], ["--library-path", "/rfaas/lib", "/rfaas/executor"]);
    }

    #[test]
    fn a_script_runs_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("executor");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let exec = Exec::new("".into(), None, Vec::new());
        let program = Program::find(&exec, &script).unwrap();
        assert_eq!((program.words, program.mounted.len()), (vec!["/rfaas/executor".into()], 1));
    }
}
