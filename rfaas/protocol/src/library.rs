//! Function libraries: what they export. What a function is, and how it is called, the front page of
//! `rfaas` says.
//!
//! Libraries are read, not loaded, here: constructors of foreign code run in executors only.
//! Elsewhere: loading and calling them; finding what they export (`image`); what one is known by (`hash`); its file
//! (`file`).

use object::Endianness;
use object::elf;
use object::read::elf::FileHeader;

use crate::session::{MAX_FUNCTION_NAME_BYTES, MAX_FUNCTIONS};
use image::{Image, Name};

pub mod file;
mod hash;
mod image;

pub use hash::{LibraryHash, LibraryHasher};

/// Largest library, in bytes: its size has 32 bits on the wire.
pub const MAX_LIBRARY_BYTES: u64 = u32::MAX as u64;

/// Name of the function by which a library is given what it may ask for. It is none that can be called.
pub const INIT: &str = "rfaas_init";

/// What the symbol of a function begins with that is called with several runs of a graph at once; its name follows. Such
/// a function takes other arguments than all others: so it has another name, and is called as what it is or not at all.
pub const BATCH_PREFIX: &str = "rfaas_batch_";

type Header = elf::FileHeader64<Endianness>;

/// Why bytes cannot be used as a function library. It names no file: the program that has read one does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// It is some other kind of file.
    #[error("is not an ELF file: a function library is a shared object, linked with -shared")]
    NotElf,
    /// It was made for another processor.
    #[error(
        "is for {found}, this machine is {}: compile it for this machine",
        std::env::consts::ARCH
    )]
    OtherArchitecture {
        /// What it is for.
        found: String,
    },
    /// It is an executable, an object file, a core dump.
    #[error("is {found}, not a shared object: link it with -shared")]
    NotSharedObject {
        /// What it is.
        found: &'static str,
    },
    /// Its tables are inconsistent: cut off or overwritten.
    #[error("is damaged: {reason}")]
    Damaged {
        /// Which table, and how.
        reason: String,
    },
    /// It has nothing to call.
    #[error(
        "exports no functions: a function is extern \"C\" and visible (Rust: #[unsafe(no_mangle)])"
    )]
    NoFunctions,
    /// All that it exports has longer names than a message can hold.
    #[error(
        "exports only functions with names of more than {MAX_FUNCTION_NAME_BYTES} bytes: export them under shorter ones"
    )]
    NamesTooLong,
    /// It exports more than can be numbered.
    #[error(
        "exports more than {MAX_FUNCTIONS} functions: export only those that are called (-fvisibility=hidden, or a version script)"
    )]
    TooManyFunctions,
    /// It is larger than can be sent.
    #[error("has {bytes} bytes, a function library has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// Most that there may be, 2³² − 1.
        max: u64,
    },
    /// It is no file that could be read to its end.
    #[error("is {found}, not a file")]
    NotFile {
        /// What it is.
        found: &'static str,
    },
    /// It is just being written.
    #[error("changed while it was read: it is being written, try again")]
    Changing,
}

impl From<object::read::Error> for LibraryError {
    fn from(error: object::read::Error) -> Self {
        LibraryError::Damaged { reason: error.to_string() }
    }
}

/// What a library exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exports {
    /// Its callable functions, by name, sorted.
    pub functions: Vec<String>,
    /// Those that take batches, by name without [`BATCH_PREFIX`], sorted.
    pub batches: Vec<String>,
    /// Whether it has a function [`INIT`].
    pub init: bool,
}

/// Returns the callable functions of a library, by name, sorted.
pub fn exported_functions(library: &[u8]) -> Result<Vec<String>, LibraryError> {
    Ok(exports(library)?.functions)
}

/// Returns what a library exports. Callable functions are those that `dlsym` finds, however they came there, without
/// `_init` and `_fini`, which are the linker's, without [`INIT`], which is for executors to call, and without those that
/// take batches. A symbol of more than [`MAX_FUNCTION_NAME_BYTES`] bytes, or whose name is not UTF-8, cannot be called; neither can an old version of
/// one (`name@VERSION`).
pub fn exports(library: &[u8]) -> Result<Exports, LibraryError> {
    if !library.starts_with(&elf::ELFMAG) {
        return Err(LibraryError::NotElf);
    }
    check_class(library)?;
    let header = Header::parse(library)?;
    let endian = header.endian()?;
    check_machine(header, endian)?;
    check_type(header, endian)?;
    let image = Image::of(header, endian, library)?;
    if image.is_program() {
        return Err(LibraryError::NotSharedObject { found: "an executable" });
    }

    let (mut names, mut batches) = (Vec::new(), Vec::new());
    let mut init = false;
    let mut too_long = false;
    for name in image.functions() {
        let Name::Bytes(name) = name? else {
            too_long = true;
            continue;
        };
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name.is_empty() || matches!(name, "_init" | "_fini") {
            continue;
        }
        if name == INIT {
            init = true;
            continue;
        }
        if names.len() + batches.len() == MAX_FUNCTIONS {
            return Err(LibraryError::TooManyFunctions);
        }
        match name.strip_prefix(BATCH_PREFIX) {
            Some("") => {}
            Some(name) => batches.push(name.to_owned()),
            None => names.push(name.to_owned()),
        }
    }
    for names in [&mut names, &mut batches] {
        names.sort_unstable();
        names.dedup(); // one name may be there in several versions
    }
    match (names.is_empty() && batches.is_empty(), too_long) {
        (false, _) => Ok(Exports { functions: names, batches, init }),
        (true, true) => Err(LibraryError::NamesTooLong),
        (true, false) => Err(LibraryError::NoFunctions),
    }
}

/// Checks word size and byte order, which decide how the rest is read.
fn check_class(library: &[u8]) -> Result<(), LibraryError> {
    let other = |found: &str| Err(LibraryError::OtherArchitecture { found: found.into() });
    match library {
        [_, _, _, _, 1, ..] => other("a 32-bit processor"),
        [_, _, _, _, 2, 2, ..] if cfg!(target_endian = "little") => other("a big-endian processor"),
        [_, _, _, _, 2, 1, ..] if cfg!(target_endian = "big") => other("a little-endian processor"),
        _ => Ok(()), // the rest is checked when the header is read
    }
}

fn check_machine(header: &Header, endian: Endianness) -> Result<(), LibraryError> {
    let machine = header.e_machine(endian);
    let name = match machine {
        elf::EM_X86_64 => "x86_64",
        elf::EM_AARCH64 => "aarch64",
        elf::EM_RISCV => "riscv64",
        elf::EM_PPC64 => "powerpc64",
        elf::EM_S390 => "s390x",
        elf::EM_LOONGARCH => "loongarch64",
        _ => "",
    };
    if name == std::env::consts::ARCH {
        return Ok(());
    }
    let found = if name.is_empty() { format!("ELF machine {}", machine.0) } else { name.into() };
    Err(LibraryError::OtherArchitecture { found })
}

fn check_type(header: &Header, endian: Endianness) -> Result<(), LibraryError> {
    let found = match header.e_type(endian) {
        elf::ET_DYN => return Ok(()), // or a position-independent executable, which is looked at later
        elf::ET_EXEC => "an executable",
        elf::ET_REL => "an object file",
        elf::ET_CORE => "a core dump",
        _ => "another kind of ELF file",
    };
    Err(LibraryError::NotSharedObject { found })
}
