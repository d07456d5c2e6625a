//! The C header: it compiles in C and C++ without a warning, says what the types of this crate say, and its items are
//! those of this crate.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails
#![allow(unsafe_code)] // the function interface

use std::ffi::c_void;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rfaas_function::interface::{Api, BatchRun, This};
use rfaas_function::{Denied, Output};

mod table;

fn compile(compiler: &[&str], source: &str, to: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cc = Command::new(compiler[0]);
    cc.args(&compiler[1..]).args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]);
    cc.arg("-I").arg(here.join("include")).arg("-o").arg(to).arg(here.join("tests/c").join(source));
    let status = cc.status().expect("the system has a C and a C++ compiler");
    assert!(status.success(), "{compiler:?} {source}");
    to.to_owned()
}

#[test]
fn its_structures_and_numbers_are_those_of_this_crate() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(&["cc", "-std=c99"], "layout.c", &directory.path().join("layout"));
    let said = Command::new(program).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let mut expected = vec![("rfaas_api".to_owned(), size_of::<Api>() as i64)];
    macro_rules! fields {
        ($name:literal, $type:ty: $($field:ident $as:literal)*) => {
            $(expected.push((format!("{}.{}", $name, $as), offset_of!($type, $field) as i64));)*
        };
    }
    fields!("rfaas_api", Api: version "version" bytes "bytes" this "self" room "room" input "input" output "output"
        emit "emit" call "call" again "again" fail "fail" none "none" leaving "leaving" note "note");
    expected.push(("rfaas_self".to_owned(), size_of::<This>() as i64));
    fields!("rfaas_self", This: bytes "bytes" function "function" member "member" members "members" slot "slot"
        inputs "inputs" edges "edges");
    expected.push(("rfaas_run".to_owned(), size_of::<BatchRun>() as i64));
    fields!("rfaas_run", BatchRun: bytes "bytes" slot "slot" input "input" input_bytes "input_bytes" room "room"
        output "output" output_bytes "output_bytes" ended "ended" code "code");
    let denied = [
        ("NO_SUCH", Denied::NoSuch),
        ("ABSENT", Denied::Absent),
        ("RIGHTS", Denied::Rights),
        ("BOUNDS", Denied::Bounds),
        ("BUSY", Denied::Busy),
        ("TIME", Denied::Time),
        ("LOST", Denied::Lost),
    ];
    expected.extend(denied.map(|(name, denied)| (format!("RFAAS_{name}"), denied.code().into())));
    for (name, number) in [("VALUE", 0), ("FAILED", 1), ("NO_VALUE", 2)] {
        expected.push((format!("RFAAS_{name}"), number)); // as `enter_batch` has them
    }
    let said: Vec<_> = said.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let said: Vec<_> =
        said.iter().map(|(name, n)| (name.to_string(), n.parse().unwrap())).collect();
    assert_eq!(said, expected);
}

#[test]
fn the_library_of_the_guide_compiles() {
    let directory = tempfile::tempdir().unwrap();
    let guide = include_str!("../../../docs/functions.md");
    let (_, code) = guide.split_once("```c\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    let source = directory.path().join("guide.c");
    std::fs::write(&source, code).unwrap();
    let compiler = ["cc", "-std=c99", "-shared", "-fPIC"];
    compile(&compiler, source.to_str().unwrap(), &directory.path().join("guide.so"));
}

type Function = unsafe extern "C" fn(*const u8, u32, *mut u8) -> u32;

#[test]
fn in_c_and_cpp_its_items_are_those_of_this_crate_and_its_entries_are_those_of_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let compilers: [&[&str]; 5] = [
        &["cc", "-std=c99"],
        &["cc", "-std=c17", "-O2"],
        &["c++", "-x", "c++", "-std=c++11"],
        &["c++", "-x", "c++", "-std=c++17", "-O2"],
        &["c++", "-x", "c++", "-std=c++20"],
    ];
    for (number, compiler) in compilers.iter().enumerate() {
        let compiler = [*compiler, &["-shared", "-fPIC"]].concat();
        let file = directory.path().join(format!("{number}.so"));
        let file = compile(&compiler, "every.c", &file);
        // SAFETY: it has no constructors.
        let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_LOCAL) }.unwrap();
        // SAFETY: that is its type.
        let init = unsafe { library.get::<extern "C" fn(*const c_void) -> i32>("rfaas_init") };
        // SAFETY: both functions have this type.
        let [copy, every] =
            ["copy", "every"].map(|name| *unsafe { library.get::<Function>(name) }.unwrap());
        let call = |function: Function, input: &[u8]| {
            let mut output = [0xaa; table::ROOM as usize];
            // SAFETY: as the function interface says.
            let returned =
                unsafe { function(input.as_ptr(), input.len() as u32, output.as_mut_ptr()) };
            (returned, output)
        };
        assert_eq!(call(every, b"").0, -3_i32 as u32, "without a table");
        assert_eq!(init.unwrap()((&raw const table::TABLE).cast()), 0);

        let mut place = [0; table::ROOM as usize];
        let mut payload = Output::new(&mut place);
        for item in [&b""[..], b"1", b"12345678", b"123456789"] {
            payload.push_item(item.len() as u32 * 0x0102_0304, item).unwrap();
        }
        let payload = payload.written();
        let (returned, output) = call(copy, payload);
        assert_eq!(&output[..returned as usize], payload);
        // Behind the last item, nothing needs to stand; and there is no item that is longer than the rest.
        assert_eq!(call(copy, &payload[..payload.len() - 7]).0, returned);
        for cut in [8, 16, payload.len() - 4] {
            assert_eq!(call(copy, &payload[..payload.len() - cut]).0, table::FAILED, "{cut}");
        }
        assert_eq!(table::failures(), [-4; 3]);
        let full = [payload, payload, payload].concat();
        assert_eq!(call(copy, &full).0, table::FAILED);
        assert_eq!(table::failures(), [-4]);

        // SAFETY: that is its type.
        let lengths = unsafe { library.get::<table::Batch>("rfaas_batch_lengths") }.unwrap();
        let ends = [(4, 0, 0, vec![3, 0, 0, 0]), (0, 2, 0, vec![]), (u32::MAX, 1, 9, vec![])];
        assert_eq!(table::batch(*lengths, &[b"abc", b"", b"f........"]), (0, ends.into()));
        assert_eq!(table::batch(*lengths, &[]).0, 1);

        assert_eq!(call(every, b"abc").0, table::AGAIN);
        assert_eq!(table::states(), [b"answer".to_vec()]);
        assert_eq!(table::notes(), [("bytes".to_owned(), 3)]);
    }
}
