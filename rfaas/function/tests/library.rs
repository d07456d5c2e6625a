//! A library of functions in Rust, loaded and called as an executor does, with a table that is made up.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails
#![allow(unsafe_code)] // the function interface

use std::ffi::c_void;
use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rfaas_function::{Item, items};

mod table;

type Function = unsafe extern "C" fn(*const u8, u32, *mut u8) -> u32;

struct Roots(Library);

impl Roots {
    /// Loads the example, which was built with this test; each time anew.
    fn load() -> (Self, tempfile::TempDir) {
        let test = std::env::current_exe().unwrap();
        let built: PathBuf = test.parent().unwrap().with_file_name("examples/libroots.so");
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("libroots.so");
        std::fs::copy(built, &copy).expect("cargo builds examples with tests");
        // SAFETY: it has no constructors.
        (Roots(unsafe { Library::open(Some(copy), RTLD_NOW | RTLD_LOCAL) }.unwrap()), directory)
    }

    fn init(&self, table: *const c_void) -> i32 {
        // SAFETY: that is its type.
        unsafe { self.0.get::<extern "C" fn(*const c_void) -> i32>("rfaas_init") }.unwrap()(table)
    }

    /// Returns what the function returns, and its output.
    fn call(&self, name: &str, input: &[u8]) -> (u32, Vec<u8>) {
        // SAFETY: all functions of this library have this type.
        let function = *unsafe { self.0.get::<Function>(name) }.unwrap();
        let mut output = [0; table::ROOM as usize];
        // SAFETY: as the function interface says.
        let returned = unsafe { function(input.as_ptr(), input.len() as u32, output.as_mut_ptr()) };
        (returned, output.get(..returned as usize).unwrap_or_default().to_vec())
    }

    fn ready() -> (Self, tempfile::TempDir) {
        let (roots, directory) = Roots::load();
        assert_eq!(roots.init((&raw const table::TABLE).cast()), 0);
        (roots, directory)
    }
}

#[test]
fn without_a_table_each_output_is_full_and_with_one_it_has_its_room() {
    let (roots, _directory) = Roots::load();
    assert_eq!(roots.call("reversed", b"abc").0, -3_i32 as u32);
    for (version, bytes) in [(2, size_of_val(&table::TABLE) as u32), (1, 8)] {
        assert_eq!(roots.init([version, bytes].as_ptr().cast()), -1, "a table of another kind");
    }
    assert_eq!(roots.init((&raw const table::TABLE).cast()), 0);
    assert_eq!(roots.call("reversed", b"abc"), (3, b"cba".to_vec()));
    let room = table::ROOM as usize;
    assert_eq!(roots.call("reversed", &vec![1; room]), (table::ROOM, vec![1; room]));
    assert_eq!(roots.call("reversed", &vec![1; room + 1]).0, table::FAILED);
    assert_eq!(table::failures(), [-4]);
    assert_eq!(roots.call("reversed", b"").0, table::NONE);
}

#[test]
fn a_function_is_called_again_with_what_it_wrote() {
    let (roots, _directory) = Roots::ready();
    let mut state = [1.0_f64, 2.0].map(f64::to_le_bytes).concat();
    let result = loop {
        match roots.call("root", &state) {
            (table::AGAIN, _) => state = table::states().pop().unwrap(),
            (8, result) => break f64::from_le_bytes(result.try_into().unwrap()),
            other => panic!("{other:?}"),
        }
    };
    assert!((result - 2.0_f64.sqrt()).abs() < 1e-12, "{result}");
    assert_eq!(roots.call("root", b"no numbers").0, table::FAILED);
    assert_eq!(table::failures(), [1]);
}

#[test]
fn a_function_has_its_other_inputs_sends_before_it_returns_and_calls() {
    let (roots, _directory) = Roots::ready();
    let (_, output) = roots.call("ask", table::INPUTS[0].unwrap());
    let answers: Vec<_> = items(&output).map(|item| item.unwrap()).collect();
    let answer = |key| Item { key, data: b"answer" };
    assert_eq!(answers, [answer(5), answer(7)]);
    let count = 2_u32.to_le_bytes().to_vec();
    assert_eq!(table::sent(), [(0, count), (1, b"zero".to_vec()), (1, b"two".to_vec())]);
}

#[test]
fn a_function_that_takes_batches_ends_each_run_or_all() {
    let (roots, _directory) = Roots::ready();
    // SAFETY: that is its type.
    let function = *unsafe { roots.0.get::<table::Batch>("rfaas_batch_square_roots") }.unwrap();
    // SAFETY: nothing is called.
    let for_one = unsafe { roots.0.get::<Function>("square_roots") };
    assert!(for_one.is_err(), "for one run there is none");
    let number = |number: f64| number.to_le_bytes();
    let (four, nine, negative) = (number(4.0), number(9.0), number(-1.0));
    let two = (8, 0, 0, number(2.0).to_vec());
    let three = (8, 0, 0, number(3.0).to_vec());
    let ends = vec![two.clone(), (0, 2, 0, vec![]), (0, 1, 1, vec![]), three];
    assert_eq!(table::batch(function, &[&four, &negative, b"abc", &nine]), (0, ends));
    let (returned, ends) = table::batch(function, &[&four, &number(f64::NAN), &nine]);
    assert_eq!((returned, &ends[0]), (2, &two), "all have failed");
    assert_eq!(table::batch(function, &[]), (0, vec![]));
}

mod units {
    use std::time::Duration;

    use super::table;
    use rfaas_function::interface::enter;
    use rfaas_function::{Call, Denied, Failure, Output, leaving, note};

    unsafe extern "C" {
        /// Of the crate, which is linked to this test.
        safe fn rfaas_init(table: *const std::ffi::c_void) -> i32;
    }

    /// Calls `what` as an exported function is.
    fn call(what: impl FnOnce(&[u8], &mut Output<'_>, &mut Call<'_>)) -> Vec<u8> {
        assert_eq!(rfaas_init((&raw const table::TABLE).cast()), 0);
        let mut output = [0; table::ROOM as usize];
        // SAFETY: as the function interface says.
        let returned = unsafe { enter(b"in".as_ptr(), 2, output.as_mut_ptr(), what) };
        output[..returned as usize].to_vec()
    }

    #[test]
    fn a_call_gives_what_the_table_says() {
        let output = call(|input, output, call| {
            assert_eq!(input, b"in");
            let about = call.about().unwrap();
            assert_eq!((about.function, about.member, about.members), (1, 2, 3));
            assert_eq!((about.slot, about.inputs, about.edges), (4, 3, 2));
            assert_eq!(leaving(), Some(Duration::from_secs(7)));
            assert_eq!(note("residual", -3), Ok(()));
            assert_eq!(note("x", i64::MAX), Ok(()));
            for wrong in ["seventeen bytes..", "a\0b"] {
                assert_eq!(note(wrong, 1), Err(Denied::Bounds));
            }
            assert_eq!(call.input(0).ok(), table::INPUTS[0]);
            assert_eq!(call.input(1), Err(Denied::Absent));
            assert_eq!(call.input(3), Err(Denied::NoSuch));
            assert!(matches!(call.output(2), Err(Denied::NoSuch)));
            let mut sending = call.output(0).unwrap();
            assert_eq!(sending.left(), 16);
            sending.extend(b"now").unwrap();
            sending.emit().unwrap();
            let answer = call.output(1).unwrap().call(Duration::MAX).unwrap();
            output.extend(answer).unwrap();
        });
        assert_eq!(output, b"answer");
        assert_eq!(table::sent(), [(0, b"now".to_vec()), (1, vec![])]);
        assert_eq!(table::notes(), [("residual".to_owned(), -3), ("x".to_owned(), i64::MAX)]);
    }

    fn empty_run(slot: u32) -> rfaas_function::interface::BatchRun {
        rfaas_function::interface::BatchRun {
            bytes: size_of::<rfaas_function::interface::BatchRun>() as u32,
            slot,
            input: std::ptr::null(),
            input_bytes: 0,
            room: 0,
            output: std::ptr::null_mut(),
            output_bytes: u32::MAX,
            ended: 0,
            code: 0,
        }
    }

    #[test]
    fn what_becomes_of_a_run_is_its_own_wherever_the_function_has_moved_it() {
        use rfaas_function::Run;
        use rfaas_function::interface::enter_batch;
        let mut all = [7, 8, 9].map(empty_run);
        let runs = all.each_mut().map(|run| &raw mut *run);
        let what = |runs: &mut [Run<'_>]| {
            runs.reverse();
            runs[0].end(rfaas_function::End::Failed(9));
            runs[1] = Run::new(b"", &mut []);
        };
        // SAFETY: as the function interface says.
        let returned = unsafe { enter_batch(runs.as_ptr(), 3, what) };
        let told = all.map(|run| (run.output_bytes, run.ended, run.code));
        assert_eq!((returned, told), (0, [(0, 0, 0), (u32::MAX, 0, 0), (0, 1, 9)]));
    }

    #[test]
    fn a_batch_cannot_be_called_again_and_fails_with_a_code_that_is_none() {
        use rfaas_function::interface::enter_batch;
        use rfaas_function::{End, Run};
        let batch = |what: fn(&mut [Run<'_>]) -> End| {
            let mut run = empty_run(7);
            let runs = [&raw mut run];
            // SAFETY: as the function interface says.
            let returned = unsafe { enter_batch(runs.as_ptr(), 1, what) };
            (returned, run.output_bytes, run.ended, run.code)
        };
        let again = |runs: &mut [Run<'_>]| {
            assert_eq!((runs[0].slot(), runs[0].output().left()), (7, 0));
            runs[0].end(End::Again);
            End::Value
        };
        assert_eq!(batch(again), (0, 0, 1, -3));
        assert_eq!(batch(|_| End::Again), (-3, 0, 0, 0));
        assert_eq!(batch(|_| End::Failed(0)), (-1, 0, 0, 0));
        assert_eq!(batch(|_| End::Failed(9)), (9, 0, 0, 0));
    }

    #[test]
    fn a_call_outside_of_a_graph_has_no_rights_whatever_the_table_says() {
        call(|_, _, _| {
            let mut call = Call::outside();
            assert_eq!(call.about(), None);
            assert_eq!(call.input(0), Err(Denied::Rights));
            assert!(matches!(call.output(0), Err(Denied::Rights)));
        });
    }

    #[test]
    fn an_input_that_is_its_output_is_copied_and_an_edge_that_is_has_no_second_place() {
        assert_eq!(rfaas_init((&raw const table::TABLE).cast()), 0);
        let mut memory = *b"abcd....................................................................................................................................";
        let at = memory.as_mut_ptr();
        let what = |input: &[u8], output: &mut Output<'_>, _: &mut Call<'_>| {
            output.extend(b"1234")?;
            output.extend(input)?;
            Ok::<_, Failure>(())
        };
        // SAFETY: as the function interface says, but that both are the same.
        let returned = unsafe { enter(at, 4, at, what) };
        assert_eq!(&memory[..returned as usize], b"1234abcd");
    }
}
