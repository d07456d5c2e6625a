//! The client program, run against a cluster on this machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::GenericImageView;
use testkit::{LocalCluster, Options};

fn thumbnailer(cluster: &LocalCluster, image: &Path, out_file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thumbnailer"));
    command.arg("--config").arg(cluster.benchmark());
    command.arg("--device-database").arg(cluster.devices());
    command.arg("--image").arg(image).arg("--out-file").arg(out_file);
    command
}

fn one_line_and_status_2(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.starts_with("error: "), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    complaint
}

#[test]
fn a_leased_core_makes_the_thumbnail_of_a_photograph() {
    let files = tempfile::tempdir().unwrap();
    let (photograph, thumbnail) = (files.path().join("photo.jpg"), files.path().join("small.jpg"));
    let sample = Command::new(env!("CARGO_BIN_EXE_sample_image")).arg(&photograph).status();
    assert!(sample.unwrap().success());
    assert!(fs::metadata(&photograph).unwrap().len() > 2_000_000);

    let cluster = LocalCluster::start(Options::default()).unwrap();
    let output = thumbnailer(&cluster, &photograph, &thumbnail).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(image::open(&thumbnail).unwrap().dimensions(), (200, 150));
    cluster.stop().unwrap();
}

#[test]
fn without_a_resource_manager_it_leases_from_a_list() {
    let files = tempfile::tempdir().unwrap();
    let (image, thumbnail) = (files.path().join("image.jpg"), files.path().join("small.jpg"));
    fs::write(&image, thumbnailer::sample::photograph(320, 240).unwrap()).unwrap();
    let options = Options { resource_manager: false, ..Options::default() };
    let cluster = LocalCluster::start(options).unwrap();
    let mut command = thumbnailer(&cluster, &image, &thumbnail);
    let output = command.arg("--executors-database").arg(cluster.executors()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(image::open(&thumbnail).unwrap().dimensions(), (200, 150));
    cluster.stop().unwrap();
}

#[test]
fn what_cannot_be_done_is_one_line_and_leaves_no_file() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (words, nothing) = (file("words.jpg", "no image"), file("nothing.jpg", ""));
    let out_file = files.path().join("small.jpg");
    let cluster = LocalCluster::start(Options::default()).unwrap();
    let complaint = |image: &Path, out_file: &Path, flags: &[&str]| {
        let mut command = thumbnailer(&cluster, image, out_file);
        one_line_and_status_2(&command.args(flags).output().unwrap())
    };

    assert!(complaint(&words, &out_file, &[]).contains("words.jpg: neither JPEG nor PNG"));
    assert!(complaint(&nothing, &out_file, &[]).contains("nothing.jpg: the file is empty"));
    let missing = files.path().join("missing");
    assert!(complaint(&missing, &out_file, &[]).contains("missing: cannot be read"));
    let nowhere = missing.join("small.jpg");
    assert!(complaint(&words, &nowhere, &[]).contains("missing: cannot be written to"));
    let unknown = complaint(&words, &out_file, &["--name", "emtpy"]);
    assert!(unknown.contains("\"emtpy\"") && unknown.contains("thumbnailer"), "{unknown}");
    assert!(complaint(&words, &out_file, &["--sise", "3"]).contains("--sise"));

    assert!(!out_file.exists());
    cluster.stop().unwrap();
}
