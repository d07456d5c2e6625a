//! A function library that waits, at a call of `wait` or while it is loaded, until a test lets it go on. So a test can
//! put a fault at exactly that moment.

use std::path::{Path, PathBuf};

use crate::functions::c_library;
use crate::wait::eventually;

/// The library, and the files that it makes and looks for.
///
/// Function `echo` returns its input; `wait` makes the file `running` and returns its input once there is a file
/// `return`. If there is a file `hold`, loading the library takes as long.
pub struct Waiting {
    directory: tempfile::TempDir,
    library: PathBuf,
}

impl Waiting {
    /// Builds the library.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the library");
        let source = directory.path().join("waiting.c");
        let text = format!(
            "#include <fcntl.h>\n#include <stdint.h>\n#include <string.h>\n#include <unistd.h>\n\
             static void until_told(void) {{\n\
                 close(open(\"{0}/running\", O_CREAT | O_WRONLY, 0600));\n\
                 while (access(\"{0}/return\", F_OK) != 0) usleep(1000);\n\
             }}\n\
             __attribute__((constructor)) static void load(void) {{\n\
                 if (access(\"{0}/hold\", F_OK) == 0) until_told();\n\
             }}\n\
             uint32_t echo(void *in, uint32_t bytes, void *out) {{\n\
                 memcpy(out, in, bytes);\n\
                 return bytes;\n\
             }}\n\
             uint32_t wait(void *in, uint32_t bytes, void *out) {{\n\
                 until_told();\n\
                 return echo(in, bytes, out);\n\
             }}\n",
            directory.path().display()
        );
        std::fs::write(&source, text).expect("the directory can be written");
        let library = c_library(directory.path(), "waiting", &source, &[]);
        Waiting { directory, library }
    }

    /// The built library.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Loading it will wait.
    pub fn hold_loading(&self) {
        self.make("hold");
    }

    /// Waits until `wait` runs or the library is being loaded.
    pub fn is_running(&self) {
        let running = self.directory().join("running");
        eventually("the function runs", || running.exists());
    }

    /// Lets what waits go on. Later calls do not wait.
    pub fn let_return(&self) {
        self.make("return");
    }

    /// Removes all its files, as at the beginning.
    pub fn reset(&self) {
        for file in ["hold", "running", "return"] {
            // Not there: then that is how it shall be.
            let _ = std::fs::remove_file(self.directory().join(file));
        }
    }

    fn make(&self, file: &str) {
        std::fs::write(self.directory().join(file), "").expect("the directory can be written");
    }
}
