//! Making processes: a sibling of this one, and a child that knows its thread id.
//!
//! glibc keeps the id of each thread, and fork(3) corrects it in the child. clone3(2) by itself
//! does not, so the kernel is asked to write it there, as fork(3) does (PR_GET_TID_ADDRESS(2const),
//! Linux with CONFIG_CHECKPOINT_RESTORE).

use std::ffi::{c_int, c_long};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, Pid, fork};

/// Where a call of [`clone_sibling`] returns.
pub enum Cloned {
    /// In the process that called.
    Parent {
        /// The new process.
        pid: Pid,
        /// A descriptor of it.
        pidfd: OwnedFd,
    },
    /// In the new one.
    Child,
}

/// Clones this process, which has one thread: the new one is a child of its parent, in new
/// `namespaces`.
pub fn clone_sibling(namespaces: CloneFlags) -> nix::Result<Cloned> {
    let mut flags = namespaces.bits() | libc::CLONE_PARENT | libc::CLONE_PIDFD;
    let thread_id = thread_id_place();
    if thread_id != 0 {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let mut pidfd: RawFd = -1;
    let arguments = libc::clone_args {
        flags: u64::from(flags.cast_unsigned()),
        pidfd: (&raw mut pidfd) as u64,
        child_tid: thread_id,
        parent_tid: 0,
        exit_signal: 0, // that of this process, which CLONE_PARENT means
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child has a copy of all memory.
    // This process has one thread (the caller's promise), so no lock in the copy is held by anybody
    // else. `pidfd` is ours, and the thread's id is where the kernel itself has been told that it
    // is.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    match Errno::result(pid)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has opened it for this call (CLONE_PIDFD), and nobody else knows
            // it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(c_int::try_from(pid).map_err(|_| Errno::EOVERFLOW)?);
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Whether a process of [`clone_sibling`] knows its thread id.
pub fn knows_thread_ids() -> bool {
    thread_id_place() != 0
}

/// Forks this process, which has one thread; the child is its own.
pub fn fork_child() -> nix::Result<ForkResult> {
    // SAFETY: this process has one thread (the caller's promise), so no lock in the child's copy of
    // its memory is held by anybody else, and the child may do everything that this process may.
    unsafe { fork() }
}

/// Where glibc keeps the id of this thread; 0 if the kernel does not say.
fn thread_id_place() -> u64 {
    let mut place: *mut c_int = std::ptr::null_mut();
    // SAFETY: the call writes one pointer to `place`, or nothing.
    let returned = unsafe {
        libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut place, 0 as c_long, 0 as c_long, 0 as c_long)
    };
    if returned == 0 { place as u64 } else { 0 }
}
