//! Containers that executors run in: `executor.container` of `executor_manager.json`.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::{Invalid, require};

/// Least time for a start, in milliseconds: below it, no engine starts a container.
const SHORTEST_START_MS: u32 = 1000;

/// What runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Podman.
    Podman,
    /// Docker.
    Docker,
    /// Apptainer.
    Apptainer,
}

impl Engine {
    /// Returns the name of its program.
    pub const fn program(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Docker => "docker",
            Engine::Apptainer => "apptainer",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// How executors run in containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSettings {
    /// What runs them; `None` is for [`use_docker`](super::ExecutorSettings::use_docker).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// What they run in: the name of an image, or the path of a root directory or of a file, as the engine takes it.
    pub image: String,
    /// Program of the engine, and what each of its commands begins with; empty: the engine's name.
    #[serde(default)]
    pub command: Vec<String>,
    /// What the command that starts a container gets besides.
    #[serde(default)]
    pub options: Vec<String>,
    /// How long a container may take until its executor has connected, in milliseconds.
    #[serde(default = "usual_start_ms")]
    pub start_ms: u32,
}

/// Returns a time in which an engine starts a container on a busy node. When it is over the client is told why, before
/// it gives up if it waits as long as usual (`Deployment::start_timeout`, 30 s).
fn usual_start_ms() -> u32 {
    20_000
}

impl ContainerSettings {
    /// Returns the words that each command of `engine` begins with.
    pub fn words(&self, engine: Engine) -> Vec<String> {
        match self.command.is_empty() {
            true => vec![engine.program().into()],
            false => self.command.clone(),
        }
    }

    pub(super) fn validate(&self, engine: Engine) -> Result<(), Invalid> {
        let key = |name| format!("executor.container.{name}");
        let image = &self.image;
        let named = !image.is_empty() && !image.starts_with('-');
        require(named, &key("image"), "must be the name of an image, or a path")?;
        let docker_takes = engine != Engine::Docker || !image.starts_with('/');
        require(docker_takes, &key("image"), "is a path: docker takes the name of an image")?;
        let long = self.start_ms >= SHORTEST_START_MS;
        require(long, &key("start_ms"), &format!("must be at least {SHORTEST_START_MS} (ms)"))?;
        let mut words = [image].into_iter().chain(&self.command).chain(&self.options);
        let whole = !words.any(|word| word.contains('\0'));
        require(whole, "executor.container", "has a word with a NUL byte")?;
        let program = self.command.first().map_or(engine.program(), String::as_str);
        let names = !program.is_empty() && !program.contains('/');
        let begin = "must begin with the name of a program in PATH, or with its absolute path";
        require(names || Path::new(program).is_absolute(), &key("command"), begin)
    }
}
