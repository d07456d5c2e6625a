//! Files in memory, without a name, that are sealed when they are written: from then on they stay as they are for
//! everybody who has them. A function library is one.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

/// What makes a file stay as it is.
pub const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Executable: `MFD_EXEC` of memfd_create(2), which nix has no name for.
const EXECUTABLE: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// Why a file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum NotSealed {
    /// It can still change.
    #[error("it is not sealed")]
    Open,
    /// It is not as large as was announced.
    #[error("it has {bytes} bytes")]
    Size {
        /// Its size.
        bytes: u64,
    },
    /// It cannot be looked at.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Makes an empty file that can be sealed, and code of which can run. `/proc` shows it by `name`.
pub fn create(name: &CStr) -> nix::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Where vm.memfd_noexec is set, code needs the flag; kernels before 6.3 do not know it.
    memfd_create(name, flags | EXECUTABLE).or_else(|_| memfd_create(name, flags))
}

/// Seals `file`.
pub fn seal(file: &impl AsFd) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_ADD_SEALS(SEALS)).map(drop)
}

/// Checks that `file` is sealed and has `bytes` bytes: cheap, and no proof of what it is.
pub fn check(file: &impl AsFd, bytes: u64) -> Result<(), NotSealed> {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
    if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Err(NotSealed::Open);
    }
    match u64::try_from(fstat(file).map_err(io::Error::from)?.st_size) {
        Ok(size) if size == bytes => Ok(()),
        Ok(bytes) => Err(NotSealed::Size { bytes }),
        Err(_) => Err(NotSealed::Size { bytes: 0 }),
    }
}

/// Opens a file again, to be read only: whoever gets it shares neither place nor flags with others.
pub fn reopen(file: &impl AsRawFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_sealed_file_can_neither_be_changed_nor_opened_again() {
        let mut file = File::from(create(c"test").unwrap());
        file.write_all(b"library").unwrap();
        assert!(matches!(check(&file, 7), Err(NotSealed::Open)));
        seal(&file).unwrap();
        check(&file, 7).unwrap();
        assert!(matches!(check(&file, 8), Err(NotSealed::Size { bytes: 7 })));
        assert!(file.write_all(b"x").is_err() && file.set_len(1).is_err());
        let again = reopen(&file).unwrap();
        check(&again, 7).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_sealed_is_not() {
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(check(&file, 0), Err(NotSealed::Unreadable(_))));
    }
}
