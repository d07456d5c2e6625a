//! The command lines of the engines, word for word. Pure.
//!
//! What is denied, and why:
//! * An image is never fetched for a lease (`--pull=never`), which would take minutes and ask strangers.
//! * The engine keeps no log of its own (`--log-driver=none`), which would grow without a bound.
//! * Nothing is writable but `/tmp`, whose size is the memory of the lease, and `/dev/shm`, which counts for the
//!   memory.

use std::path::{Path, PathBuf};

use rfaas_config::{ContainerSettings, Engine};
use rfaas_protocol::isolation::MAX_TASKS;
use rfaas_protocol::library::LibraryHash;

/// Label of the containers of a node: those of its last manager are found by it.
const LABEL: &str = "rfaas.node";

/// Digits of a hash that tell managers apart: none has it by chance.
const HASH_DIGITS: usize = 16;

/// Directory of the device files of RDMA devices.
pub const RDMA_DEVICES: &str = "/dev/infiniband";

/// Ends the options of a resource that is not limited.
const UNLIMITED: &str = "-1";

/// The words that run an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineCommand {
    pub engine: Engine,
    /// What each command begins with; the first is its program.
    pub begin: Vec<String>,
    /// What the command that starts a container gets besides.
    pub options: Vec<String>,
    pub image: String,
    /// The image is a root directory.
    pub is_directory: bool,
    /// Name of the node, in that of a container.
    node: String,
    /// Whose containers they are: the label that they have.
    label: String,
}

/// A file of the node that is seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub file: PathBuf,
    /// Where it is seen.
    pub at: String,
}

/// A soft and a hard limit; `None`: there is none.
pub type Limit = (Option<u64>, Option<u64>);

/// What one container is started with.
#[derive(Clone, Debug)]
pub struct Contained<'a> {
    pub name: &'a str,
    /// Most memory of all its processes, in bytes.
    pub memory: u64,
    /// Size of its `/tmp`, in bytes.
    pub tmp: u64,
    /// CPUs that it may use; `None`: all.
    pub cpus: Option<&'a [usize]>,
    pub open_files: Limit,
    pub locked_memory: Limit,
    /// User and group id of its processes.
    pub user: Option<u32>,
    pub rdma: bool,
    pub mounted: &'a [Mounted],
    /// Names of environment variables that it gets of the engine's own.
    pub environment: &'a [String],
    /// The program, where it is seen, and its arguments.
    pub program: &'a [String],
}

impl EngineCommand {
    /// Those of `settings`, for the node of this name, whose manager is known from all others by `manager`.
    pub fn new(
        engine: Engine,
        settings: &ContainerSettings,
        (node, manager): (&str, &str),
    ) -> Self {
        let node = words_of(node);
        let hash = LibraryHash::of(manager.as_bytes()).to_string();
        let image = settings.image.clone();
        let is_directory = engine == Engine::Podman && Path::new(&image).is_absolute();
        EngineCommand {
            engine,
            begin: settings.words(engine),
            options: settings.options.clone(),
            image,
            is_directory,
            label: format!("{LABEL}={node}-{}", &hash[..HASH_DIGITS]),
            node,
        }
    }

    /// Name of a container of `lease`; `random`: no other has had it.
    pub fn name(&self, lease: u64, random: u32) -> String {
        format!("rfaas-{}-{lease}-{random:08x}", self.node)
    }

    /// Starts a container in the foreground, with the standard streams of the engine's process.
    pub fn run(&self, contained: &Contained<'_>) -> Vec<String> {
        match self.engine {
            Engine::Podman | Engine::Docker => self.run_named(contained),
            Engine::Apptainer => self.run_apptainer(contained),
        }
    }

    fn run_named(&self, contained: &Contained<'_>) -> Vec<String> {
        let Contained { name, tmp, user, rdma, mounted, environment, .. } = contained;
        let mut words = self.begin.clone();
        let mut add = |word: String| words.push(word);
        add("run".into());
        add(format!("--name={name}"));
        add(format!("--label={}", self.label));
        for word in ["--rm", "--interactive", "--init", "--pull=never", "--log-driver=none"] {
            add(word.into());
        }
        for word in ["--network=host", "--ipc=private", "--no-healthcheck", "--workdir=/"] {
            add(word.into());
        }
        if self.engine == Engine::Podman {
            // It would pass proxies of its environment on, and mount further file systems without a bound.
            add("--http-proxy=false".into());
            add("--read-only-tmpfs=false".into());
        }
        add("--read-only".into());
        add(format!("--tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size={tmp}"));
        add("--cap-drop=all".into());
        add("--security-opt=no-new-privileges".into());
        limits(contained).for_each(&mut add);
        add(format!("--ulimit=nofile={}", limit(contained.open_files)));
        add(format!("--ulimit=memlock={}", limit(contained.locked_memory)));
        add("--ulimit=core=0:0".into());
        let user = user.unwrap_or(0);
        add(format!("--user={user}:{user}"));
        if *rdma {
            add(format!("--device={RDMA_DEVICES}"));
        }
        for Mounted { file, at } in *mounted {
            add(format!("--volume={}:{at}:ro", file.display()));
        }
        for name in *environment {
            add(format!("--env={name}")); // its value would be seen by every user of the node
        }
        let (program, arguments) = contained.program.split_first().expect("it has a program");
        add(format!("--entrypoint={program}"));
        words.extend(self.options.iter().cloned());
        if self.is_directory {
            words.push("--rootfs".into());
        }
        words.push(self.image.clone());
        words.extend(arguments.iter().cloned());
        words
    }

    /// Names are not known to it, and limits of resources pass on as they are.
    fn run_apptainer(&self, contained: &Contained<'_>) -> Vec<String> {
        let Contained { rdma, mounted, .. } = contained;
        let mut words = self.begin.clone();
        let mut add = |word: String| words.push(word);
        add("exec".into());
        for word in ["--containall", "--no-home", "--no-privs", "--no-umask", "--pwd=/"] {
            add(word.into());
        }
        limits(contained).for_each(&mut add);
        for Mounted { file, at } in *mounted {
            add(format!("--bind={}:{at}:ro", file.display()));
        }
        if *rdma {
            add(format!("--bind={RDMA_DEVICES}"));
        }
        words.extend(self.options.iter().cloned());
        words.push(self.image.clone());
        words.extend(contained.program.iter().cloned());
        words
    }

    /// Has the container of this name end at once; `None`: its processes are those of the engine's.
    pub fn kill(&self, name: &str) -> Option<Vec<String>> {
        self.named(&["kill", name])
    }

    /// Removes containers, also those that run; likewise.
    pub fn remove(&self, names: &[&str]) -> Option<Vec<String>> {
        self.named(&[&["rm", "--force"], names].concat())
    }

    /// Prints the ids of all containers of this node; likewise.
    pub fn list(&self) -> Option<Vec<String>> {
        let label = format!("--filter=label={}", self.label);
        self.named(&["ps", "--all", "--quiet", "--no-trunc", &label])
    }

    fn named(&self, more: &[&str]) -> Option<Vec<String>> {
        let begin = self.begin.iter().cloned();
        let words = begin.chain(more.iter().map(|word| (*word).to_owned()));
        (self.engine != Engine::Apptainer).then(|| words.collect())
    }
}

/// The name of a node as a part of that of a container: with what all engines take there.
fn words_of(node: &str) -> String {
    let taken = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    node.chars().map(|c| if taken(c) { c } else { '_' }).collect()
}

/// What all engines limit in the same words.
fn limits(contained: &Contained<'_>) -> impl Iterator<Item = String> {
    let memory = contained.memory;
    let cpus = contained.cpus.map(|cpus| format!("--cpuset-cpus={}", list(cpus)));
    let words = [
        format!("--memory={memory}"),
        format!("--memory-swap={memory}"), // both together: it does not swap
        format!("--pids-limit={MAX_TASKS}"),
    ];
    words.into_iter().chain(cpus)
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn limit((soft, hard): Limit) -> String {
    let text = |limit: Option<u64>| limit.map_or(UNLIMITED.into(), |limit| limit.to_string());
    format!("{}:{}", text(soft), text(hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(engine: Engine, image: &str) -> EngineCommand {
        let settings = ContainerSettings {
            engine: Some(engine),
            image: image.into(),
            command: match engine {
                Engine::Podman => ["/opt/podman", "--root=/x"].map(String::from).into(),
                _ => vec![],
            },
            options: vec!["--security-opt=label=disable".into()],
            start_ms: 20_000,
        };
        EngineCommand::new(engine, &settings, ("node 1/ä", "a"))
    }

    fn run(command: &EngineCommand) -> String {
        let mounted = [
            Mounted { file: "/opt/rfaas/executor".into(), at: "/rfaas/executor".into() },
            Mounted { file: "/usr/lib/libc.so.6".into(), at: "/rfaas/lib/libc.so.6".into() },
        ];
        let contained = Contained {
            name: &command.name(7, 0xab),
            memory: 700 << 20,
            tmp: 512 << 20,
            cpus: Some(&[2, 5]),
            open_files: (Some(1024), Some(65536)),
            locked_memory: (None, None),
            user: Some(2_100_000_003),
            rdma: true,
            mounted: &mounted,
            environment: &["LANG".into(), "OMP_NUM_THREADS".into()],
            program: &["/rfaas/executor", "probe", "{}"].map(String::from),
        };
        command.run(&contained).join(" ")
    }

    #[test]
    fn podman_runs_an_image_with_these_words() {
        let command = command(Engine::Podman, "localhost/functions:1");
        assert_eq!(
            run(&command),
            "/opt/podman --root=/x run --name=rfaas-node_1__-7-000000ab \
             --label=rfaas.node=node_1__-ca978112ca1bbdca --rm --interactive --init --pull=never \
             --log-driver=none --network=host --ipc=private --no-healthcheck --workdir=/ \
             --http-proxy=false --read-only-tmpfs=false --read-only \
             --tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size=536870912 --cap-drop=all \
             --security-opt=no-new-privileges --memory=734003200 --memory-swap=734003200 \
             --pids-limit=1024 --cpuset-cpus=2,5 --ulimit=nofile=1024:65536 \
             --ulimit=memlock=-1:-1 --ulimit=core=0:0 --user=2100000003:2100000003 \
             --device=/dev/infiniband --volume=/opt/rfaas/executor:/rfaas/executor:ro \
             --volume=/usr/lib/libc.so.6:/rfaas/lib/libc.so.6:ro --env=LANG \
             --env=OMP_NUM_THREADS --entrypoint=/rfaas/executor --security-opt=label=disable \
             localhost/functions:1 probe {}"
        );
        let words = |words: Option<Vec<String>>| words.unwrap().join(" ");
        assert_eq!(words(command.kill("a")), "/opt/podman --root=/x kill a");
        assert_eq!(words(command.remove(&["a", "b"])), "/opt/podman --root=/x rm --force a b");
        assert_eq!(
            words(command.list()),
            "/opt/podman --root=/x ps --all --quiet --no-trunc \
             --filter=label=rfaas.node=node_1__-ca978112ca1bbdca"
        );
    }

    #[test]
    fn managers_list_no_containers_of_each_other() {
        let settings: ContainerSettings = serde_json::from_str(r#"{"image": "image"}"#).unwrap();
        let list = |node| EngineCommand::new(Engine::Podman, &settings, node).list();
        assert_ne!(list(("a b", "cluster a b")), list(("a_b", "cluster a_b")));
        assert_ne!(list(("a", "cluster a")), list(("a", "another a")));
    }

    #[test]
    fn podman_runs_in_a_root_directory() {
        let words = run(&command(Engine::Podman, "/srv/root"));
        let end = " --security-opt=label=disable --rootfs /srv/root probe {}";
        assert!(words.ends_with(end), "{words}");
    }

    #[test]
    fn docker_runs_an_image_with_these_words() {
        let command = command(Engine::Docker, "functions:1");
        assert_eq!(
            run(&command),
            "docker run --name=rfaas-node_1__-7-000000ab --label=rfaas.node=node_1__-ca978112ca1bbdca --rm \
             --interactive --init --pull=never --log-driver=none --network=host --ipc=private \
             --no-healthcheck --workdir=/ --read-only \
             --tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size=536870912 --cap-drop=all \
             --security-opt=no-new-privileges --memory=734003200 --memory-swap=734003200 \
             --pids-limit=1024 --cpuset-cpus=2,5 --ulimit=nofile=1024:65536 \
             --ulimit=memlock=-1:-1 --ulimit=core=0:0 --user=2100000003:2100000003 \
             --device=/dev/infiniband --volume=/opt/rfaas/executor:/rfaas/executor:ro \
             --volume=/usr/lib/libc.so.6:/rfaas/lib/libc.so.6:ro --env=LANG \
             --env=OMP_NUM_THREADS --entrypoint=/rfaas/executor --security-opt=label=disable \
             functions:1 probe {}"
        );
        assert_eq!(command.kill("a").unwrap().join(" "), "docker kill a");
        assert_eq!(command.remove(&["a"]).unwrap().join(" "), "docker rm --force a");
    }

    #[test]
    fn apptainer_runs_an_image_with_these_words() {
        let command = command(Engine::Apptainer, "/srv/functions.sif");
        assert_eq!(
            run(&command),
            "apptainer exec --containall --no-home --no-privs --no-umask --pwd=/ \
             --memory=734003200 --memory-swap=734003200 --pids-limit=1024 --cpuset-cpus=2,5 \
             --bind=/opt/rfaas/executor:/rfaas/executor:ro \
             --bind=/usr/lib/libc.so.6:/rfaas/lib/libc.so.6:ro --bind=/dev/infiniband \
             --security-opt=label=disable /srv/functions.sif /rfaas/executor probe {}"
        );
        assert_eq!((command.kill("a"), command.remove(&["a"]), command.list()), (None, None, None));
    }

    #[test]
    fn what_is_not_wanted_is_not_said() {
        let mut command = command(Engine::Podman, "image");
        command.options.clear();
        let contained = Contained {
            name: "a",
            memory: 1,
            tmp: 1,
            cpus: None,
            open_files: (Some(1), None),
            locked_memory: (Some(8), Some(9)),
            user: None,
            rdma: false,
            mounted: &[],
            environment: &[],
            program: &["/x".into()],
        };
        let words = command.run(&contained);
        for absent in ["--cpuset-cpus", "--device", "--volume", "--env=", "--rootfs"] {
            assert!(!words.iter().any(|word| word.starts_with(absent)), "{words:?}");
        }
        for word in ["--user=0:0", "--ulimit=nofile=1:-1", "--ulimit=memlock=8:9"] {
            assert!(words.iter().any(|said| said == word), "{words:?}");
        }
        assert_eq!(words.last().unwrap(), "image");
    }
}
