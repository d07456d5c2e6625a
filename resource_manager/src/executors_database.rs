//! The executors database as a file: nodes to start with, and nodes for others to read, written after each
//! change of nodes. What the resource manager itself goes on with is its `state`.
//!
//! Written atomically: a new file beside it, flushed to the disk, then renamed over it. So a reader,
//! or the next start after a crash, finds the old nodes or the new ones, never half of them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rfaas_config::{ExecutorEntry, ExecutorsDatabase};

use crate::pool::{Capacity, NodeSpec, NodeState, NodeView};

/// Reads the nodes at `path`.
pub fn load(path: &Path) -> anyhow::Result<Vec<NodeSpec>> {
    let database = ExecutorsDatabase::load(path)?;
    let spec = |(i, entry): (usize, &ExecutorEntry)| {
        let capacity = Capacity { cores: entry.cores, memory: entry.memory };
        NodeSpec::new(&entry.node, &entry.address, entry.port, capacity)
            .and_then(|spec| spec.with_labels(&entry.labels))
            .map_err(|wrong| anyhow::anyhow!("{}: executors[{i}]: {wrong}", path.display()))
    };
    database.executors.iter().enumerate().map(spec).collect()
}

/// The file that a name means, which need not be there: links are followed, so that what replaces
/// the file replaces what they lead to and not them.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    /// As many as the kernel follows (path_resolution(7)).
    const MOST: usize = 40;
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its name is empty"));
    }
    let mut place = path.to_owned();
    for _ in 0..MOST {
        match std::fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(place), // no link; perhaps nothing yet
        }
    }
    Err(nix::errno::Errno::ELOOP.into())
}

/// A file that the nodes are written to.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    directory: PathBuf,
}

impl Export {
    /// The file at `path`, which need not exist. Fails if it could not be written there.
    pub fn open(path: &Path) -> anyhow::Result<Export> {
        let shown = path.display();
        let failed = || format!("{shown}: cannot be written");
        let path = &place(path).with_context(failed)?;
        match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                return Err(io::Error::from(io::ErrorKind::IsADirectory)).with_context(failed);
            }
            // It would be replaced by a file: what it is, somebody depends on.
            Ok(there) if !there.is_file() => {
                let what =
                    "it is a device, a pipe or a socket, and must be a file that can be replaced";
                return Err(anyhow::anyhow!(what)).with_context(failed);
            }
            _ => {}
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let export = Export { path: path.to_owned(), directory };
        export.new_file().with_context(failed)?; // a rehearsal: deleted again at once
        Ok(export)
    }

    /// Replaces the file by one with these nodes, except those that are being withdrawn.
    pub fn write(&self, nodes: &[NodeView]) -> io::Result<()> {
        let kept = nodes.iter().filter(|node| node.state != NodeState::Draining);
        let entry = |spec: &NodeSpec| ExecutorEntry {
            node: spec.name().to_string(),
            address: spec.address().to_string(),
            port: spec.port(),
            cores: spec.capacity().cores,
            memory: spec.capacity().memory,
            labels: spec.labels().to_vec(),
        };
        let executors = kept.map(|node| entry(&node.spec)).collect();
        let mut file = self.new_file()?;
        serde_json::to_writer_pretty(&mut file, &ExecutorsDatabase { executors })?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// A file in the same directory, so that it can be renamed, that is deleted unless it was.
    fn new_file(&self) -> io::Result<tempfile::NamedTempFile> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)); // umask applies
        builder.prefix(&format!(".{name}.")).tempfile_in(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: NodeState) -> NodeView {
        let capacity = Capacity { cores: 4, memory: 512 };
        let spec = NodeSpec::new(name, "node.example", 10_005, capacity).unwrap();
        let spec = spec.with_labels(&["gpu".into()]).unwrap();
        NodeView {
            spec,
            free: capacity,
            state,
            leaves_at: None,
            clock_ahead_s: None,
            isolation: None,
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.json");
        let export = Export::open(&path).unwrap();
        let nodes = [node("a", NodeState::Ready), node("b", NodeState::Lost)];
        export.write(&nodes).unwrap();
        export.write(&nodes).unwrap();
        let read = load(&path).unwrap();
        assert_eq!(read, nodes.map(|node| node.spec));
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(files.len(), 1);
    }

    #[test]
    fn a_node_that_is_being_withdrawn_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.json");
        let export = Export::open(&path).unwrap();
        export.write(&[node("a", NodeState::Draining), node("b", NodeState::Registered)]).unwrap();
        let names: Vec<_> = load(&path).unwrap().iter().map(|s| s.name().to_string()).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn a_reader_never_finds_half_a_database() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.json");
        let export = Export::open(&path).unwrap();
        let many: Vec<_> = (0..500).map(|i| node(&format!("node-{i}"), NodeState::Ready)).collect();
        export.write(&many).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            let mut turn = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                turn += 1;
                export.write(&many[..if turn % 2 == 0 { 500 } else { 250 }]).unwrap();
            }
        });
        for _ in 0..200 {
            let nodes = load(&path).unwrap().len();
            assert!(nodes == 250 || nodes == 500, "{nodes}");
        }
        drop(stop);
        writer.join().unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().join("none/db.json"), directory.path().to_owned()] {
            let error = format!("{:#}", Export::open(&path).unwrap_err());
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_stays_what_it_is_and_a_link_leads_to_what_is_written() {
        use std::os::unix::fs::{FileTypeExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for name in ["fifo", "null", "socket"] {
            let error = format!("{:#}", Export::open(&at(name)).unwrap_err());
            assert!(error.contains(name) && error.contains("device"), "{error}");
        }
        drop(socket);
        assert!(std::fs::metadata(at("fifo")).unwrap().file_type().is_fifo());
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        std::fs::create_dir(at("far")).unwrap();
        symlink("far/file", at("near")).unwrap();
        symlink("near", at("nearer")).unwrap();
        for _ in 0..2 {
            Export::open(&at("nearer")).unwrap().write(&[node("a", NodeState::Ready)]).unwrap();
            assert_eq!(load(&at("far/file")).unwrap().len(), 1);
        }
        for link in ["near", "nearer"] {
            assert!(std::fs::symlink_metadata(at(link)).unwrap().is_symlink());
        }
        assert_eq!(std::fs::read_dir(at("far")).unwrap().count(), 1);
        symlink("round", at("round")).unwrap();
        for path in [at("round"), "".into(), "..".into()] {
            Export::open(&path).unwrap_err();
        }
    }

    #[test]
    fn an_input_that_cannot_be_used_is_one_line_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.json");
        for text in [
            "{",
            r#"{"executors":[{"node":"a"}]}"#,
            r#"{"executors":[{"node":"a","address":"h","port":1,"cores":-1,"memory":1}]}"#,
            r#"{"executors":[{"node":"a","address":"h","port":1,"cores":70000,"memory":1}]}"#,
            r#"{"executors":[{"node":"a","address":"0.0.0.0","port":1,"cores":1,"memory":1}]}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", load(&path).unwrap_err());
            assert!(error.contains("db.json"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
