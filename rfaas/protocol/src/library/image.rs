//! A shared object as the dynamic loader sees it: what its segments map and its dynamic section names.
//! Section headers, which the loader does not need and some files do not have, are not looked at.
//!
//! * The file may be anything. Every table is found through the segments that hold it and cut where
//!   they end; every loop is over a part of the file, and none is inside another.

use object::Endianness;
use object::elf;
use object::pod;
use object::read::elf::{Dyn, FileHeader, GnuHashTable, HashTable, ProgramHeader, Sym};

use super::LibraryError;
use crate::session::MAX_FUNCTION_NAME_BYTES;

type Header = elf::FileHeader64<Endianness>;
type Symbol = elf::Sym64<Endianness>;

/// The tables that `dlsym` looks into.
pub(super) struct Image<'a> {
    endian: Endianness,
    symbols: &'a [Symbol],
    strings: &'a [u8],
    /// One for each symbol, if the library has versions.
    versions: &'a [elf::Versym<Endianness>],
    /// Flags of the library ([`elf::DT_FLAGS_1`]).
    flags: u64,
    code: Ranges,
}

/// The name of a symbol, or that there is no end to it within what a name may have.
pub(super) enum Name<'a> {
    Bytes(&'a [u8]),
    TooLong,
}

impl<'a> Image<'a> {
    /// Of a file with `header`. An error if the file ends before its segments do, or there is nothing for the
    /// loader to go by.
    pub(super) fn of(
        header: &'a Header,
        endian: Endianness,
        file: &'a [u8],
    ) -> Result<Self, LibraryError> {
        let segments = Segments { all: header.program_headers(endian, file)?, endian, file };
        segments.check_whole()?;
        let dynamic = segments
            .dynamic()
            .ok_or(LibraryError::NotSharedObject { found: "a file without a dynamic section" })?;
        let table = |address: Option<u64>, what: &str| match address {
            None => Ok(&[][..]),
            Some(address) => segments.at(address).ok_or_else(|| outside(what)),
        };
        let strings = table(dynamic.strings, "string table")?;
        let count = dynamic.symbol_count(&segments)?;
        let versions = table(dynamic.versions, "version table")?;
        Ok(Image {
            endian,
            symbols: entries(table(dynamic.symbols, "symbol table")?, count, "symbol table")?,
            strings: &strings[..strings.len().min(dynamic.strings_bytes)],
            versions: match dynamic.versions {
                None => &[],
                Some(_) => entries(versions, count, "version table")?,
            },
            flags: dynamic.flags,
            code: segments.code(),
        })
    }

    /// Returns whether it is a program that happens to be position-independent, which the loader
    /// does not take.
    pub(super) fn is_program(&self) -> bool {
        self.flags & elf::DF_1_PIE.0 != 0
    }

    /// Returns the names of the code that `dlsym` finds, in the order of the table.
    pub(super) fn functions(&self) -> impl Iterator<Item = Result<Name<'a>, LibraryError>> {
        let found = |(index, symbol): &(usize, &'a Symbol)| self.is_found(*index, symbol);
        self.symbols.iter().enumerate().filter(found).map(|(_, symbol)| self.name(symbol))
    }

    fn is_found(&self, index: usize, symbol: &Symbol) -> bool {
        !symbol.is_undefined(self.endian)
            && matches!(symbol.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE)
            && matches!(symbol.st_visibility(), elf::STV_DEFAULT | elf::STV_PROTECTED)
            && self.is_default_version(index)
            && self.is_code(symbol)
    }

    /// Returns whether it is a function, or one of which the assembler was not told that it is one.
    /// The linker's own marks (`_end`) have no type either, but lie elsewhere.
    fn is_code(&self, symbol: &Symbol) -> bool {
        match symbol.st_type() {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => true,
            elf::STT_NOTYPE => {
                symbol.st_shndx(self.endian) != elf::SHN_ABS
                    && self.code.contain(symbol.st_value(self.endian))
            }
            _ => false,
        }
    }

    /// A version that is kept for programs that were linked to it long ago is hidden from `dlsym`.
    fn is_default_version(&self, index: usize) -> bool {
        self.versions.get(index).is_none_or(|version| {
            let version = version.0.get(self.endian);
            !version.is_hidden() || version.index().is_special()
        })
    }

    fn name(&self, symbol: &Symbol) -> Result<Name<'a>, LibraryError> {
        let start = symbol.st_name(self.endian) as usize;
        let rest = self.strings.get(start..).ok_or_else(|| outside("name of a symbol"))?;
        let most = &rest[..rest.len().min(MAX_FUNCTION_NAME_BYTES + 1)];
        match most.iter().position(|byte| *byte == 0) {
            Some(end) => Ok(Name::Bytes(&most[..end])),
            None if most.len() > MAX_FUNCTION_NAME_BYTES => Ok(Name::TooLong),
            None => Err(outside("name of a symbol")),
        }
    }
}

/// What the dynamic section names. Of an entry that is there twice the loader takes the last.
#[derive(Default)]
struct Dynamic {
    symbols: Option<u64>,
    strings: Option<u64>,
    strings_bytes: usize,
    versions: Option<u64>,
    hash: Option<u64>,
    gnu_hash: Option<u64>,
    flags: u64,
}

impl Dynamic {
    /// The table of symbols does not say how long it is: the one that finds names in it does. Without
    /// such a table no name is found.
    fn symbol_count(&self, segments: &Segments<'_>) -> Result<usize, LibraryError> {
        let what = "hash table";
        let at = |address| segments.at(address).ok_or_else(|| outside(what));
        let count = match (self.gnu_hash, self.hash) {
            (Some(address), _) => GnuHashTable::<Header>::parse(segments.endian, at(address)?)?
                .symbol_table_length(segments.endian)
                .unwrap_or(0), // it holds no symbol
            (None, Some(address)) => {
                HashTable::<Header>::parse(segments.endian, at(address)?)?.symbol_table_length()
            }
            (None, None) => 0,
        };
        usize::try_from(count).map_err(|_| outside(what))
    }
}

/// The program headers, and what they are of.
struct Segments<'a> {
    all: &'a [elf::ProgramHeader64<Endianness>],
    endian: Endianness,
    file: &'a [u8],
}

impl<'a> Segments<'a> {
    fn loaded(&self) -> impl Iterator<Item = &'a elf::ProgramHeader64<Endianness>> {
        let endian = self.endian;
        self.all.iter().filter(move |segment| segment.p_type(endian) == elf::PT_LOAD)
    }

    /// Returns what is mapped at `address`, as far as its segment comes from the file.
    fn at(&self, address: u64) -> Option<&'a [u8]> {
        self.loaded().find_map(|segment| {
            let offset = address.checked_sub(segment.p_vaddr(self.endian))?;
            let bytes = segment.data(self.endian, self.file).ok()?;
            bytes.get(usize::try_from(offset).ok()?..).filter(|bytes| !bytes.is_empty())
        })
    }

    /// An error if the file was cut off: a process that uses the part that is missing dies of it.
    fn check_whole(&self) -> Result<(), LibraryError> {
        match self.loaded().find(|segment| segment.data(self.endian, self.file).is_err()) {
            None => Ok(()),
            Some(segment) => {
                let (start, bytes) = segment.file_range(self.endian);
                let reason = format!(
                    "it ends after {} bytes, within a segment of {bytes} bytes from byte {start} on",
                    self.file.len()
                );
                Err(LibraryError::Damaged { reason })
            }
        }
    }

    fn dynamic(&self) -> Option<Dynamic> {
        let is_dynamic = |segment: &&elf::ProgramHeader64<Endianness>| {
            segment.p_type(self.endian) == elf::PT_DYNAMIC
        };
        let segment = self.all.iter().rfind(is_dynamic)?;
        let bytes = self.at(segment.p_vaddr(self.endian))?;
        let whole = bytes.len() / size_of::<elf::Dyn64<Endianness>>();
        let (table, _) = pod::slice_from_bytes::<elf::Dyn64<Endianness>>(bytes, whole).ok()?;
        let mut found = Dynamic::default();
        for entry in table {
            let value = entry.d_val(self.endian);
            match entry.d_tag(self.endian) {
                elf::DT_NULL => break,
                elf::DT_SYMTAB => found.symbols = Some(value),
                elf::DT_STRTAB => found.strings = Some(value),
                elf::DT_STRSZ => found.strings_bytes = usize::try_from(value).unwrap_or(usize::MAX),
                elf::DT_VERSYM => found.versions = Some(value),
                elf::DT_HASH => found.hash = Some(value),
                elf::DT_GNU_HASH => found.gnu_hash = Some(value),
                elf::DT_FLAGS_1 => found.flags = value,
                _ => {}
            }
        }
        Some(found)
    }

    /// Returns where code is mapped.
    fn code(&self) -> Ranges {
        let executable = self
            .loaded()
            .filter(|segment| segment.p_flags(self.endian).contains(elf::PF_X))
            .map(|segment| {
                let start = segment.p_vaddr(self.endian);
                (start, start.saturating_add(segment.p_memsz(self.endian)))
            });
        Ranges::new(executable.collect())
    }
}

/// Ranges of addresses, found in logarithmic time: a file may have as many segments as it likes.
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn new(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.sort_unstable(); // as they are in any file that the loader takes
        Ranges(ranges)
    }

    fn contain(&self, address: u64) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        self.0[..after].last().is_some_and(|(_, end)| address < *end)
    }
}

/// Returns the first `count` entries of a table that begins at `bytes`.
fn entries<'a, T: pod::Pod>(
    bytes: &'a [u8],
    count: usize,
    what: &str,
) -> Result<&'a [T], LibraryError> {
    let (table, _) = pod::slice_from_bytes(bytes, count).map_err(|()| outside(what))?;
    Ok(table)
}

fn outside(what: &str) -> LibraryError {
    LibraryError::Damaged { reason: format!("its {what} reaches beyond its segments") }
}
