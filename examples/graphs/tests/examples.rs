//! The program, run against a cluster on this machine: each example finds what a plain computation does, both ways.

#![allow(clippy::unwrap_used)] // a test's way to fail, in functions that are no tests too

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::{LocalCluster, Options};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What the program prints.
fn printed(cluster: &LocalCluster, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graph_examples"));
    command.arg("--config").arg(cluster.benchmark());
    command.arg("--device-database").arg(cluster.devices()).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_example_finds_the_same_by_graph_and_through_the_client() {
    let options = Options { cores: 12, memory: 8192, ..Options::default() };
    let cluster = LocalCluster::start(options).unwrap();
    let compared = |printed: &str| {
        let line = printed.lines().last().unwrap();
        assert!(line.starts_with("graph ") && line.contains("through the client"), "{printed}");
    };

    // The program itself compares each result with a plain computation.
    let rod = printed(&cluster, &["rod", "--points", "8", "--compare", "2"]);
    assert!(rod.starts_with("8 points, ") && rod.contains(" steps, hottest "), "{rod}");
    compared(&rod);

    let text = source("docs/errors.md");
    let words = printed(&cluster, &["words", text.to_str().unwrap(), "--compare", "2"]);
    assert!(words.contains(" the\n") && words.contains("different words"), "{words}");
    compared(&words);

    let files = tempfile::tempdir().unwrap();
    let (photo, small) = (files.path().join("photo.jpg"), files.path().join("small.jpg"));
    std::fs::write(&photo, thumbnailer::sample::photograph(320, 240).unwrap()).unwrap();
    let arguments = [photo.to_str().unwrap(), "--out-file", small.to_str().unwrap()];
    let image = printed(&cluster, &[&["image"], &arguments[..], &["--compare", "2"]].concat());
    assert!(image.starts_with("320 x 240, "), "{image}");
    compared(&image);
    assert_eq!(image::image_dimensions(&small).unwrap(), (200, 150));
    cluster.stop().unwrap();
}

#[test]
fn what_cannot_be_done_is_one_line() {
    for arguments in [["words", "/nowhere/text"], ["image", "/nowhere/image"]] {
        let program = env!("CARGO_BIN_EXE_graph_examples");
        let output = Command::new(program).args(arguments).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        let line = format!("error: {}: cannot be read", arguments[1]);
        assert!(complaint.starts_with(&line) && complaint.lines().count() == 1, "{complaint}");
    }
}
