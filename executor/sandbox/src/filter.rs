//! Programs of seccomp filters (seccomp(2), struct sock_filter). Pure.
//!
//! ```text
//!   another architecture, x32 ──▶ ENOSYS      a call of the list ──▶ EPERM
//!   steps, which see the number of the call   their end ──▶ allowed
//! ```
//! They are short, with one instruction for each call: an executor waits while the kernel runs a new filter for each
//! call that there is, to find out which are always allowed. Those cost nothing from then on.

use libc::c_long;
use seccompiler::{BpfProgram, sock_filter};

/// What is looked at, and where to go then.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Looks at the lower half of an argument from now on.
    LoadArgument(u32),
    /// Whether it is this number.
    Is(u32, To, To),
    /// Whether it has any of these bits.
    HasAny(u32, To, To),
}

/// Where to go.
#[derive(Clone, Copy, Debug)]
pub enum To {
    /// Past so many of the next steps.
    Skip(u8),
    /// The call is made.
    Allow,
    /// It fails with EPERM.
    Deny,
    /// It fails with ENOSYS, as if the kernel did not have it.
    NoCall,
}

impl Step {
    /// Whether it is this call, while no argument has been looked at.
    pub const fn is_call(call: c_long, yes: To, no: To) -> Step {
        Step::Is(call as u32, yes, no) // numbers of calls are small
    }
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const IF_ANY: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K

/// Offsets in struct seccomp_data, little-endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Bit of the numbers of x32 calls (asm/unistd.h); beyond all numbers elsewhere.
const X32: u32 = 0x4000_0000;

/// AUDIT_ARCH_* of this program (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const NATIVE: u32 = 0xc000_00f3;

/// Makes a program that denies the calls of `denied`, and decides about others by `steps`.
pub fn filter(denied: &[c_long], steps: &[Step]) -> BpfProgram {
    let mut program = vec![
        (LOAD, ARCH, To::Skip(0), To::Skip(0)),
        (IF_EQUAL, NATIVE, To::Skip(0), To::NoCall),
        (LOAD, NUMBER, To::Skip(0), To::Skip(0)),
        (IF_AT_LEAST, X32, To::NoCall, To::Skip(0)),
    ];
    program.extend(denied.iter().map(|&call| (IF_EQUAL, call as u32, To::Deny, To::Skip(0))));
    program.extend(steps.iter().map(|&step| match step {
        Step::LoadArgument(index) => (LOAD, ARGUMENTS + 8 * index, To::Skip(0), To::Skip(0)),
        Step::Is(value, yes, no) => (IF_EQUAL, value, yes, no),
        Step::HasAny(bits, yes, no) => (IF_ANY, bits, yes, no),
    }));
    let end = program.len();
    let place = |index: usize, to: To| {
        let target = match to {
            To::Skip(steps) => return steps,
            To::Allow => end,
            To::Deny => end + 1,
            To::NoCall => end + 2,
        };
        u8::try_from(target - index - 1).expect("filters are shorter than 256 steps")
    };
    let jumps = program.iter().enumerate();
    let mut filter: BpfProgram = jumps
        .map(|(index, &(code, k, yes, no))| sock_filter {
            code,
            jt: place(index, yes),
            jf: place(index, no),
            k,
        })
        .collect();
    for answer in [
        libc::SECCOMP_RET_ALLOW,
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
    ] {
        filter.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: answer });
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `filter` as the kernel does.
    fn answer(filter: &BpfProgram, arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = &filter[at];
            let holds = match step.code {
                LOAD => {
                    loaded = match step.k {
                        NUMBER => number,
                        ARCH => arch,
                        _ => argument,
                    };
                    true
                }
                RETURN => return step.k,
                IF_EQUAL => loaded == step.k,
                IF_AT_LEAST => loaded >= step.k,
                _ => loaded & step.k != 0,
            };
            let skipped = if step.code == LOAD {
                0
            } else if holds {
                step.jt
            } else {
                step.jf
            };
            at += 1 + usize::from(skipped);
        }
    }

    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;
    const ALLOWED: u32 = 0x7fff_0000;

    #[test]
    fn a_call_of_the_list_is_denied_and_no_other() {
        let filter = filter(&[7, 9], &[]);
        let answers = [6, 7, 8, 9].map(|number| answer(&filter, NATIVE, number, 0));
        assert_eq!(answers, [ALLOWED, EPERM, ALLOWED, EPERM]);
    }

    #[test]
    fn a_call_of_another_architecture_is_none() {
        let filter = filter(&[7], &[]);
        assert_eq!(answer(&filter, 0x4000_0003, 7, 0), ENOSYS); // i386
        assert_eq!(answer(&filter, NATIVE, 7 | X32, 0), ENOSYS);
        assert_eq!(answer(&filter, NATIVE, u32::MAX, 0), ENOSYS);
    }

    #[test]
    fn steps_look_at_arguments() {
        let steps = [
            Step::is_call(5, To::Skip(0), To::Skip(2)),
            Step::LoadArgument(0),
            Step::HasAny(6, To::Deny, To::Allow),
            Step::is_call(3, To::NoCall, To::Allow),
        ];
        let filter = filter(&[1], &steps);
        assert_eq!(answer(&filter, NATIVE, 5, 2), EPERM);
        assert_eq!(answer(&filter, NATIVE, 5, 9), ALLOWED);
        assert_eq!(answer(&filter, NATIVE, 3, 9), ENOSYS);
        assert_eq!(answer(&filter, NATIVE, 1, 0), EPERM);
        assert_eq!(answer(&filter, NATIVE, 4, 6), ALLOWED);
    }
}
