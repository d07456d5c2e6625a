//! Function libraries, and a program, that tests build from C source.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Running, run, source, start, system_tool};

/// Builds a function library from C source in `directory`.
pub fn c_library(directory: &Path, name: &str, source: &Path, flags: &[&str]) -> PathBuf {
    system_tool("cc");
    let library = directory.join(format!("lib{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).args(flags);
    run(cc).success();
    library
}

/// Another process that traces all threads of process `id`, until it is killed.
pub fn tracer(directory: &Path, id: u32) -> Running {
    system_tool("cc");
    let program = directory.join("tracer");
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg(source("tools/testkit/programs/tracer.c"));
    run(cc).success();
    let mut tracer = Command::new(program);
    tracer.arg(id.to_string());
    let mut running = start(tracer);
    running.says("traces");
    running
}

/// The functions that misbehave, of `functions/faulty.c`.
pub fn faulty(directory: &Path) -> PathBuf {
    c_library(directory, "faulty", &source("tools/testkit/functions/faulty.c"), &[])
}

/// The functions that print and that end their process, of `functions/ends.cpp`.
pub fn ends(directory: &Path) -> PathBuf {
    let source = source("tools/testkit/functions/ends.cpp");
    c_library(directory, "ends", &source, &["-lstdc++"])
}

/// The functions for graphs, of `functions/graph.c`.
pub fn graph(directory: &Path) -> PathBuf {
    c_library(directory, "graph", &source("tools/testkit/functions/graph.c"), &[])
}

/// The functions that ask for more than their input, of `functions/compose.c`.
pub fn compose(directory: &Path) -> PathBuf {
    let include = format!("-I{}", source("rfaas/function/include").display());
    c_library(directory, "compose", &source("tools/testkit/functions/compose.c"), &[&include])
}

/// The functions of the vectors of other systems, of `functions/vectors.c`.
pub fn vectors(directory: &Path) -> PathBuf {
    let include = format!("-I{}", source("rfaas/function/include").display());
    c_library(directory, "vectors", &source("tools/testkit/functions/vectors.c"), &[&include])
}

/// A library whose only function `name` returns its input with `add` added to each byte.
pub fn adder(directory: &Path, name: &str, add: u8) -> PathBuf {
    let text = format!(
        "#include <stdint.h>\n\
         uint32_t {name}(unsigned char *in, uint32_t bytes, unsigned char *out) {{\n\
             for (uint32_t i = 0; i < bytes; i++) out[i] = in[i] + {add};\n\
             return bytes;\n\
         }}\n"
    );
    let source = directory.join(format!("{name}.c"));
    std::fs::write(&source, text).expect("the directory can be written");
    c_library(directory, name, &source, &[])
}
