//! A function library that waits, at a call of `wait` or while it is loaded, until a test lets it go on. So a test can
//! put a fault at exactly that moment.
//!
//! Its executors may be in a sandbox: they see the directory of its files ([`Waiting::view`]), and cannot write there.
//! That it waits is told by the name of its thread.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::functions::c_library;
use crate::procfs;
use crate::wait::eventually;

/// The library, and the files that it looks for.
///
/// Function `echo` returns its input; `wait` returns its input once there is a file `return`. If there is a file
/// `hold`, loading the library takes as long.
pub struct Waiting {
    directory: tempfile::TempDir,
    library: PathBuf,
    /// Name of a thread that waits.
    name: String,
}

impl Waiting {
    /// Builds the library.
    pub fn build() -> Self {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        let number = BUILT.fetch_add(1, Ordering::Relaxed);
        let name = format!("w{}-{number}", std::process::id()); // at most 15 bytes are kept
        let directory = tempfile::tempdir().expect("a directory for the library");
        // Executors may have another user.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let source = directory.path().join("waiting.c");
        let text = format!(
            "#include <stdint.h>\n#include <string.h>\n#include <sys/prctl.h>\n#include <unistd.h>\n\
             static void until_told(void) {{\n\
                 char before[16];\n\
                 prctl(PR_GET_NAME, before);\n\
                 prctl(PR_SET_NAME, \"{name}\");\n\
                 while (access(\"{0}/return\", F_OK) != 0) usleep(1000);\n\
                 prctl(PR_SET_NAME, before);\n\
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
        fs::write(&source, text).expect("the directory can be written");
        let library = c_library(directory.path(), "waiting", &source, &[]);
        Waiting { directory, library, name }
    }

    /// What its executors have to see: [`Options::view`](crate::Options::view).
    pub fn view(&self) -> Vec<PathBuf> {
        vec![self.directory().to_owned()]
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
        let waits = |id| procfs::thread_names(id).contains(&self.name);
        eventually("the function runs", || procfs::all().any(waits));
    }

    /// Lets what waits go on. Later calls do not wait.
    pub fn let_return(&self) {
        self.make("return");
    }

    /// Removes all its files, as at the beginning.
    pub fn reset(&self) {
        for file in ["hold", "return"] {
            // Not there: then that is how it shall be.
            let _ = fs::remove_file(self.directory().join(file));
        }
    }

    fn make(&self, file: &str) {
        fs::write(self.directory().join(file), "").expect("the directory can be written");
    }
}
