//! The hostile libraries, built from C++ source.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::run::{run, source, system_tool};

/// Where their source is.
const SOURCE: &str = "tools/tests/hostile_functions/library";
/// What a hostile constructor does: the macro that chooses it.
pub const CONSTRUCTORS: [&str; 4] = ["CRASHES", "HANGS", "EXITS", "PRINTS"];

/// The built libraries, in a directory that is removed with this.
pub struct Libraries {
    directory: tempfile::TempDir,
}

impl Libraries {
    pub fn build() -> Self {
        system_tool("g++");
        let libraries = Libraries { directory: tempfile::tempdir().unwrap() };
        let functions = ["ends.cpp", "takes.cpp", "reaches.cpp"];
        compile(&libraries.functions(), &functions, None);
        for macro_name in CONSTRUCTORS {
            compile(&libraries.constructor(macro_name), &["constructor.cpp"], Some(macro_name));
        }
        libraries
    }

    /// The one with all functions.
    pub fn functions(&self) -> PathBuf {
        self.directory.path().join("libhostile.so")
    }

    /// The one whose constructor does what `macro_name` chooses.
    pub fn constructor(&self, macro_name: &str) -> PathBuf {
        self.directory.path().join(format!("lib{macro_name}.so"))
    }
}

fn compile(library: &Path, files: &[&str], macro_name: Option<&str>) {
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(library);
    compiler.args(files.iter().map(|file| source(SOURCE).join(file)));
    compiler.args(macro_name.map(|name| format!("-D{name}")));
    run(compiler).success();
}
