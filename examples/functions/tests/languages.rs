//! The functions in Rust, C and C++, each loaded and called as an executor does, do the same.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// `libfunctions.so`, which was built with this test.
fn rust() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.with_file_name("libfunctions.so");
    assert!(beside.is_file(), "{beside:?}");
    beside
}

fn compiled(compiler: &str, source: &str, directory: &Path) -> PathBuf {
    let library = directory.join(source.replace('/', "-") + ".so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
    let status = Command::new(compiler).args(options).args([&library, &source]).status();
    assert!(status.expect("the system has a C and a C++ compiler").success(), "{compiler}");
    library
}

/// Memory that is aligned as an executor's, and as large as a small executor's.
#[repr(C, align(64))]
struct Slot([u8; 4096]);

/// One of the libraries, loaded.
struct Functions {
    library: Library,
    path: PathBuf,
}

#[allow(unsafe_code)] // the function interface
impl Functions {
    fn load(path: PathBuf) -> Self {
        // SAFETY: the libraries of this package have no constructors that rely on anything.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.unwrap();
        Functions { library, path }
    }

    fn call(&self, name: &str, input: &[u8]) -> Vec<u8> {
        type Function = extern "C" fn(*mut u8, u32, *mut u8) -> u32;
        // SAFETY: all functions of these libraries have this type.
        let function = unsafe { self.library.get::<Function>(name) }.unwrap();
        let (mut from, mut to) = (Slot([0xaa; 4096]), Slot([0xbb; 4096]));
        from.0[..input.len()].copy_from_slice(input);
        let bytes = function(from.0.as_mut_ptr(), input.len() as u32, to.0.as_mut_ptr()) as usize;
        assert!(to.0[bytes..].iter().all(|byte| *byte == 0xbb), "{name} writes what it returns");
        assert_eq!(from.0[..input.len()], *input, "{name} leaves its input alone");
        to.0[..bytes].to_vec()
    }
}

fn for_each_language(check: impl Fn(&Functions)) {
    let directory = tempfile::tempdir().unwrap();
    let c = compiled("cc", "c/functions.c", directory.path());
    let cpp = compiled("c++", "cpp/functions.cpp", directory.path());
    for path in [rust(), c, cpp] {
        println!("{}", path.display());
        check(&Functions::load(path));
    }
}

#[test]
fn empty_returns_its_whole_input() {
    for_each_language(|functions| {
        for bytes in [0, 1, 3, 4, 5, 100, 4000] {
            let input: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
            assert_eq!(functions.call("empty", &input), input);
        }
    });
}

#[test]
fn edges_copies_the_first_and_the_last_eight_bytes() {
    for_each_language(|functions| {
        for bytes in [0, 1, 7, 8, 9, 15, 16, 17, 4000] {
            let input: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
            let mut expected = input.clone();
            if bytes > 16 {
                expected[8..bytes - 8].fill(0xbb);
            }
            assert_eq!(functions.call("edges", &input), expected);
        }
    });
}

#[test]
fn sum_f64_adds_all_whole_numbers() {
    for_each_language(|functions| {
        let cases: [(&[f64], f64); 3] =
            [(&[], 0.0), (&[1.5], 1.5), (&[1.0, 2.25, -0.5, 1e9], 1e9 + 2.75)];
        for (numbers, sum) in cases {
            let mut input: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
            assert_eq!(functions.call("sum_f64", &input), sum.to_ne_bytes());
            input.extend([1; 7]); // not a whole number
            assert_eq!(functions.call("sum_f64", &input), sum.to_ne_bytes());
        }
    });
}

#[test]
fn crc32_is_that_of_gzip() {
    for_each_language(|functions| {
        // Check value of the catalogue of parametrised CRC algorithms (CRC-32/ISO-HDLC).
        for (input, crc) in
            [(&b"123456789"[..], 0xcbf4_3926_u32), (b"", 0), (&[0; 32], 0x190a_55ad)]
        {
            assert_eq!(functions.call("crc32", input), crc.to_ne_bytes());
        }
    });
}

#[test]
fn sort_u32_sorts_all_whole_numbers() {
    for_each_language(|functions| {
        let numbers = [5, u32::MAX, 0, 1 << 31, 7, 5];
        let sorted = [0, 5, 5, 7, 1 << 31, u32::MAX];
        let bytes = |numbers: &[u32]| -> Vec<u8> {
            numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
        };
        let input = [&bytes(&numbers)[..], &[1; 3]].concat();
        assert_eq!(functions.call("sort_u32", &input), bytes(&sorted));
        assert_eq!(functions.call("sort_u32", &[]), b"");
    });
}

#[test]
fn spin_us_takes_as_long_as_it_is_asked_to() {
    for_each_language(|functions| {
        let start = Instant::now();
        assert_eq!(functions.call("spin_us", &20_000_u32.to_ne_bytes()), b"");
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(functions.call("spin_us", &[1]), b"", "no number is no time");
    });
}

#[test]
fn each_library_exports_these_functions() {
    for_each_language(|functions| {
        let file = std::fs::read(&functions.path).unwrap();
        let mut names = rfaas_protocol::library::exported_functions(&file).unwrap();
        // C++ also exports what the compiler made of templates.
        names.retain(|name| !name.starts_with("_Z"));
        assert_eq!(names, ["crc32", "edges", "empty", "sort_u32", "spin_us", "sum_f64"]);
    });
}
