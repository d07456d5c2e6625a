//! seccomp(2): system calls that no function needs fail with EPERM, as they do for a user without rights. None ends the
//! process.
//!
//! * A list of what is denied, and not of what is allowed: functions are any code, with any C library.
//! * clone3(2) fails with ENOSYS, since a filter cannot read its flags: C libraries use clone(2) then, whose flags are
//!   looked at. So do calls of another architecture (32 bit, x32), whose numbers mean other calls.
//! * A file stays readable for who has it: executors that have one user own the file of a library together, and none
//!   can take it from others. So chmod(2) fails without that bit, and access control lists fail with ENOSYS.
//!
//! Elsewhere: what the kernel denies anyway to a process without capabilities (`rights`).

use std::io;

use libc::c_long;
use rfaas_protocol::isolation::{Layer, NetworkPolicy};
use seccompiler::{BpfProgram, apply_filter, apply_filter_all_threads};

use crate::error::{Error, failed};
use crate::filter::{Step, To, filter};

/// Calls that fail whatever their arguments are, from the start: neither executors nor who makes them need these.
const NEVER: &[c_long] = &[
    // Files past their names, and quotas.
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Mounts, roots, namespaces: what makes executors needs no more of these than is in `MAKING`.
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Large parts of the kernel that have had many faults.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Calls that make executors, and fail in them; clone3(2) does too. Few, since each executor gets a filter of them.
const MAKING: &[c_long] = &[libc::SYS_mount, libc::SYS_mount_setattr, libc::SYS_unshare];

/// Namespaces that clone(2) could make.
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Calls that are younger than the numbers that libc knows; the same for all architectures.
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;

/// The mode bit with which its owner reads a file.
const OWNER_READS: u32 = 0o400;

/// The argument of personality(2) that asks for it and changes nothing.
const ASK_PERSONALITY: u32 = 0xffff_ffff;
/// The one that a program has anyway.
const USUAL_PERSONALITY: u32 = 0;

/// No socket is made, and none that is there is connected or waits for connections. Pairs are made (`pairs`).
const SOCKETS: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];
/// The same where netlink sockets are made.
const WAITING: &[c_long] = &[libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4];

/// Netlink protocols with which RDMA libraries ask the kernel (linux/netlink.h).
const NETLINK_ROUTE: u32 = 0;
const NETLINK_RDMA: u32 = 20;

/// The filters, ready to be put on.
#[derive(Debug)]
pub struct Filters {
    never: BpfProgram,
    making: BpfProgram,
    /// `None`: all sockets are allowed.
    sockets: Option<BpfProgram>,
}

impl Filters {
    /// Makes them.
    pub fn new(network: NetworkPolicy) -> Filters {
        Filters {
            never: filter(NEVER, &by_arguments()),
            making: filter(MAKING, &[Step::is_call(libc::SYS_clone3, To::NoCall, To::Allow)]),
            sockets: match network {
                NetworkPolicy::None => Some(filter(SOCKETS, &pairs())),
                NetworkPolicy::Rdma => Some(filter(WAITING, &[rdma_sockets(), pairs()].concat())),
                NetworkPolicy::Host => None,
            },
        }
    }

    /// Denies what neither executors nor who makes them need, to this process and its children: once, since the kernel
    /// looks at every call that there is when it gets a filter, and the longest one takes it longest.
    pub fn deny_always(&self) -> Result<(), Error> {
        apply_filter(&self.never).map_err(not_applied)
    }

    /// Denies what makes executors too.
    pub fn deny_making(&self) -> Result<(), Error> {
        apply_filter(&self.making).map_err(not_applied)
    }

    /// Denies sockets by the policy, to all threads of this process.
    pub fn deny_sockets(&self) -> Result<(), Error> {
        let Some(sockets) = &self.sockets else { return Ok(()) };
        apply_filter_all_threads(sockets).map_err(not_applied)
    }
}

fn not_applied(error: seccompiler::Error) -> Error {
    failed(Layer::Seccomp, "seccomp")(io::Error::other(error.to_string()))
}

/// Calls that fail with some arguments, from the start too.
fn by_arguments() -> Vec<Step> {
    #[cfg(target_arch = "x86_64")]
    const CHMOD: c_long = libc::SYS_chmod;
    #[cfg(not(target_arch = "x86_64"))]
    const CHMOD: c_long = libc::SYS_fchmod; // there is no other
    vec![
        Step::is_call(libc::SYS_clone, To::Skip(0), To::Skip(2)),
        Step::LoadArgument(0),
        Step::HasAny(NEW_NAMESPACES as u32, To::Deny, To::Allow), // bits of an int
        Step::is_call(libc::SYS_setxattr, To::NoCall, To::Skip(0)),
        Step::is_call(libc::SYS_lsetxattr, To::NoCall, To::Skip(0)),
        Step::is_call(libc::SYS_fsetxattr, To::NoCall, To::Skip(0)),
        Step::is_call(SYS_SETXATTRAT, To::NoCall, To::Skip(0)),
        Step::is_call(CHMOD, To::Skip(1), To::Skip(0)),
        Step::is_call(libc::SYS_fchmod, To::Skip(0), To::Skip(2)),
        Step::LoadArgument(1),
        Step::HasAny(OWNER_READS, To::Allow, To::Deny),
        Step::is_call(libc::SYS_fchmodat, To::Skip(1), To::Skip(0)),
        Step::is_call(SYS_FCHMODAT2, To::Skip(0), To::Skip(2)),
        Step::LoadArgument(2),
        Step::HasAny(OWNER_READS, To::Allow, To::Deny),
        Step::is_call(libc::SYS_personality, To::Skip(0), To::Allow),
        Step::LoadArgument(0),
        Step::Is(ASK_PERSONALITY, To::Allow, To::Skip(0)),
        Step::Is(USUAL_PERSONALITY, To::Allow, To::Deny),
    ]
}

/// Pairs of Unix sockets that are connected for good. One of datagrams is not: it can send to any
/// abstract name of the node.
fn pairs() -> Vec<Step> {
    // In the kind of a socket, of datagrams and raw ones only: they are 2 and 3, streams 1,
    // sequences of packets 5, and the flags are higher bits.
    const DATAGRAMS: u32 = 2;
    vec![
        Step::is_call(libc::SYS_socketpair, To::Skip(0), To::Allow),
        Step::LoadArgument(0),
        Step::Is(libc::AF_UNIX as u32, To::Skip(0), To::Deny),
        Step::LoadArgument(1),
        Step::HasAny(DATAGRAMS, To::Deny, To::Allow),
    ]
}

/// What is no call for a socket goes on to the steps behind these.
fn rdma_sockets() -> Vec<Step> {
    vec![
        Step::is_call(libc::SYS_socket, To::Skip(0), To::Skip(5)),
        Step::LoadArgument(0),
        Step::Is(libc::AF_NETLINK as u32, To::Skip(0), To::Deny),
        Step::LoadArgument(2),
        Step::Is(NETLINK_ROUTE, To::Allow, To::Skip(0)),
        Step::Is(NETLINK_RDMA, To::Allow, To::Deny),
    ]
}
