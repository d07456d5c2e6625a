//! Function libraries: what they export, and how a function is called.
//!
//! A function library is a shared object for Linux. Each function that it exports can be called by
//! its symbol's name:
//!
//! ```c
//! // -> bytes of output, written to `output`; input and output are at least 64-byte aligned
//! uint32_t name(void *input, uint32_t input_bytes, void *output);
//! ```
//! The same in Rust, in a crate of type `cdylib`:
//!
//! ```
//! #[unsafe(no_mangle)]
//! pub extern "C" fn name(input: *mut u8, input_bytes: u32, output: *mut u8) -> u32 {
//!     0 // no output
//! }
//! ```
//! A function may be called by several threads at once, one a worker. How many bytes fit at `output`
//! is the caller's and the function's to agree on: returning more is an error of that invocation,
//! writing more destroys the executor.
//!
//! Libraries are read, not loaded, here: constructors of foreign code run in executors only.
//! Elsewhere: loading and calling them.

use object::Endianness;
use object::elf;
use object::read::elf::{FileHeader, SectionTable, Sym};

use crate::protocol::session::MAX_FUNCTION_NAME_BYTES;

type Header = elf::FileHeader64<Endianness>;

/// Why bytes cannot be used as a function library. Names no file: whoever read one does.
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
}

impl From<object::read::Error> for LibraryError {
    fn from(error: object::read::Error) -> Self {
        LibraryError::Damaged { reason: error.to_string() }
    }
}

/// The callable functions of a library, by name, sorted: the defined and visible function symbols of
/// its dynamic symbol table, without `_init` and `_fini`, which are the linker's. A symbol of more
/// than [`MAX_FUNCTION_NAME_BYTES`] bytes, or whose name is not UTF-8, cannot be called.
pub fn exported_functions(library: &[u8]) -> Result<Vec<String>, LibraryError> {
    if !library.starts_with(&elf::ELFMAG) {
        return Err(LibraryError::NotElf);
    }
    check_class(library)?;
    let header = Header::parse(library)?;
    let endian = header.endian()?;
    check_machine(header, endian)?;
    let sections = header.sections(endian, library)?;
    check_type(header, endian, library, &sections)?;

    let symbols = sections.symbols(endian, library, elf::SHT_DYNSYM)?;
    let mut names = Vec::new();
    for symbol in symbols.iter().filter(|symbol| callable(*symbol, endian)) {
        let name = symbols.symbol_name(endian, symbol)?;
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let listed = !name.is_empty()
            && name.len() <= MAX_FUNCTION_NAME_BYTES
            && !matches!(name, "_init" | "_fini");
        if listed {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    names.dedup(); // one name may be there in several versions
    if names.is_empty() { Err(LibraryError::NoFunctions) } else { Ok(names) }
}

/// Whether `dlsym` would find it and it is code.
fn callable(symbol: &impl Sym<Endian = Endianness>, endian: Endianness) -> bool {
    symbol.st_type() == elf::STT_FUNC
        && !symbol.is_undefined(endian)
        && matches!(symbol.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK)
        && matches!(symbol.st_visibility(), elf::STV_DEFAULT | elf::STV_PROTECTED)
}

/// Word size and byte order, which decide how the rest is read.
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

fn check_type(
    header: &Header,
    endian: Endianness,
    library: &[u8],
    sections: &SectionTable<'_, Header>,
) -> Result<(), LibraryError> {
    let found = match header.e_type(endian) {
        elf::ET_DYN => {
            // A position-independent executable has the type of a library, and a flag.
            let executable = sections
                .dynamic_table(endian, library)?
                .iter()
                .any(|entry| entry.tag == elf::DT_FLAGS_1 && entry.val & elf::DF_1_PIE.0 != 0);
            if !executable {
                return Ok(());
            }
            "an executable"
        }
        elf::ET_EXEC => "an executable",
        elf::ET_REL => "an object file",
        elf::ET_CORE => "a core dump",
        _ => "another kind of ELF file",
    };
    Err(LibraryError::NotSharedObject { found })
}
