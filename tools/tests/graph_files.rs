//! Graphs in files, by the command `rfaas graph`: what is checked, what is run, and what is told of bad input.

#![allow(clippy::unwrap_used)] // in what tests share: a failed test is what it is for

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::functions::graph as graph_library;
use testkit::run::{Finished, command, run};
use testkit::service::{all_is_free, cluster};
use testkit::wait::one_at_a_time;
use testkit::{LocalCluster, Options};

/// Adds one to each byte, then doubles that; the first is an output, too.
const GRAPH: &str = r#"{
    "functions": [
        {"name": "first", "library": "libgraph.so", "function": "add_one"},
        {"name": "second", "library": "libgraph.so", "function": "twice"}
    ],
    "inputs": [{"to": "first", "bytes": 64}],
    "edges": [{"from": "first", "to": "second", "bytes": 64}],
    "outputs": [{"from": "second", "bytes": 64}]
}"#;

fn written(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("graph.json");
    fs::write(&path, text).unwrap();
    path
}

fn check(file: &Path) -> Finished {
    let mut command = command("rfaas", ["graph", "check"]);
    command.arg(file);
    run(command)
}

fn run_command(cluster: &LocalCluster, file: &Path) -> Command {
    let mut command = command("rfaas", ["graph", "run"]);
    command.arg(file).arg("--config").arg(cluster.benchmark());
    command.arg("--device-database").arg(cluster.devices());
    command
}

#[test]
fn a_graph_is_checked_without_a_cluster_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    let library = graph_library(directory.path());
    let shown = check(&written(directory.path(), GRAPH)).success().stdout;
    let library = library.display();
    assert_eq!(
        shown,
        format!(
            "input ──▶ add_one  64 bytes\nadd_one ──▶ twice  64 bytes\ntwice ──▶ output 0  64 bytes\n\n\
             add_one  {library}\ntwice  {library}\n"
        )
    );
}

#[test]
fn what_is_wrong_is_one_line_with_the_file_and_what_in_it() {
    let directory = tempfile::tempdir().unwrap();
    graph_library(directory.path());
    for (from, to, words) in [
        ("{", "", "graph.json: line"),
        ("\"edges\"", "\"edgs\"", "unknown field \"edgs\""),
        ("\"to\": \"second\"", "\"to\": \"third\"", "edges[0].to: no function \"third\""),
        ("\"bytes\": 64", "\"bytes\": \"64\"", "inputs[0].bytes"),
        ("twice", "thrice", "thrice"),
        ("libgraph.so", "libgarph.so", "libgarph.so"),
        ("libgraph.so", "graph.json", "graph.json"),
        ("\"to\": \"second\"", "\"to\": \"first\"", "its edges lead back"),
        ("\"bytes\": 64", "\"bytes\": 4294967296", "4 GiB are too many"),
        (
            "\"outputs\"",
            "\"constraints\": {\"nodes\": [\"n\"]}, \"outputs\"",
            "nodes names 1 nodes for 2 leases",
        ),
    ] {
        assert!(GRAPH.contains(from), "{from}");
        let file = written(directory.path(), &GRAPH.replacen(from, to, 1));
        check(&file).is_bad_input(&[file.to_str().unwrap(), words]);
    }
    check(Path::new("/nowhere/graph.json")).is_bad_input(&["/nowhere/graph.json: cannot be read"]);
}

#[test]
fn a_graph_is_run_from_files_and_pipes() {
    let _guard = one_at_a_time();
    let cluster = cluster(Options { cores: 4, memory: 4096, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    graph_library(directory.path());
    let at = |name: &str| directory.path().join(name);
    let file = written(directory.path(), GRAPH);
    fs::write(at("input"), [1, 2, 200]).unwrap();

    let mut command = run_command(&cluster, &file);
    command.arg("--input").arg(at("input")).arg("--output").arg(at("output"));
    assert_eq!(run(command).success().stdout, "");
    assert_eq!(fs::read(at("output")).unwrap(), [4, 6, 146]);

    // Binary, from a pipe to a pipe.
    let mut command = run_command(&cluster, &file);
    command.args(["--input", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[0, 255, 9]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, [2, 0, 20]);

    // Several outputs.
    let outputs = "\"outputs\": [{\"from\": \"first\", \"bytes\": 64}, ";
    let file = written(directory.path(), &GRAPH.replace("\"outputs\": [", outputs));
    fs::write(at("input"), "0 ").unwrap();
    let mut command = run_command(&cluster, &file);
    command.arg("--input").arg(at("input"));
    assert_eq!(run(command).success().stdout, "output 0: 2 bytes\n1!\noutput 1: 2 bytes\nbB\n");
    let mut command = run_command(&cluster, &file);
    command.arg("--input").arg(at("input")).arg("--output").arg(at("of"));
    run(command).success();
    assert_eq!(fs::read(at("of.0")).unwrap(), b"1!");
    assert_eq!(fs::read(at("of.1")).unwrap(), b"bB");

    fs::write(at("input"), [0; 65]).unwrap();
    let mut command = run_command(&cluster, &file);
    command.arg("--input").arg(at("input"));
    run(command).is_bad_input(&["input: the graph takes at most 64 bytes"]);
    let mut command = run_command(&cluster, &file);
    command.arg("--input").arg(at("missing"));
    run(command).is_bad_input(&["missing: cannot be read"]);
    all_is_free(&cluster);
    cluster.stop().unwrap();
}
