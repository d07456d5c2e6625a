//! What keeps functions from the rest of this node: settled once, at the start.
//!
//! Executors that are cloned have the layers that the zygote has found. One that is started by itself has those that
//! the program finds: all but a process namespace. Where it would lack one, all are cloned.
//!
//! Executors in containers have those that were found in a container.
//!
//! Elsewhere: the layers (`rfaas_sandbox`), putting them on (the program `executor`), control groups (`groups`).

use rdmalib::Provider;
use rfaas_config::ExecutorSettings;
use rfaas_protocol::isolation::{
    IsolationReport, Layer, Layers, MissingLayer, NetworkPolicy, SandboxSettings,
};

use crate::Error;
use crate::groups::Groups;
use crate::launch::Launcher;
use crate::launch::container::{ContainerError, Containers, own_layers};
use crate::signals::Signals;

/// What executors are isolated by.
#[derive(Debug)]
pub struct Isolation {
    /// The layers of those that are started as configured.
    pub active: Layers,
    /// How those are confined that are started by themselves; `None`: nobody is confined.
    pub alone: Option<SandboxSettings>,
}

/// Returns what `settings` want for executors that use a device of `provider`.
pub fn wanted(settings: &ExecutorSettings, provider: Provider) -> Result<SandboxSettings, Error> {
    for path in &settings.view {
        path.metadata().map_err(|error| Error::named("executor.view", path, error))?;
    }
    let rdma = provider == Provider::Verbs;
    let usual = if rdma { NetworkPolicy::Rdma } else { NetworkPolicy::None };
    let mut layers = settings.isolation.wanted();
    if provider == Provider::Tcp {
        // It is put on before executors connect. Then seccomp takes their sockets away, as everywhere.
        layers.remove(Layer::LandlockNetwork);
        if settings.isolation.required().contains(&Layer::LandlockNetwork) {
            return Err(Error::Start(
                "executor.isolation requires landlock_network, which there is not on a device of provider tcp: it \
                 forbids connections that executors need"
                    .into(),
            ));
        }
    }
    Ok(SandboxSettings {
        layers,
        view: settings.view.clone(),
        users: settings.users,
        network: settings.network.unwrap_or(usual),
        rdma,
    })
}

/// Returns what makes control groups of executors, or why there is none, and takes the layer out of the `wanted` ones
/// of the program. To be called before there is another process, as this one may move to another group itself.
pub fn groups(wanted: &mut SandboxSettings, pinned: bool) -> Option<Result<Groups, MissingLayer>> {
    let layer = Layer::ControlGroup;
    let is_wanted = wanted.layers.has(layer);
    wanted.layers.remove(layer);
    let missing = |reason| MissingLayer { layer, reason };
    is_wanted.then(|| Groups::start(pinned).map_err(missing))
}

/// Returns how executors are confined: by those of the `wanted` layers that there are. It is logged.
pub fn settle(
    launcher: &mut Launcher,
    settings: &ExecutorSettings,
    wanted: SandboxSettings,
    groups: Option<Result<Groups, MissingLayer>>,
) -> Result<Isolation, Error> {
    if wanted.layers.is_empty() {
        tracing::warn!("executor.isolation is none: functions have the rights of this process");
        return Ok(Isolation { active: Layers::NONE, alone: None });
    }
    let alone = launcher.probe(&wanted).map_err(|error| Error::Start(error.to_string()))?;
    let mut report = launcher.report().unwrap_or(&alone).clone();
    let lacking = report.active.iter().any(|layer| !alone.active.has(layer));
    match groups {
        Some(Ok(groups)) => {
            report.active.add(Layer::ControlGroup);
            launcher.use_groups(groups);
        }
        Some(Err(missing)) => report.missing.push(missing),
        None => {}
    }
    check(&report, settings)?;
    if lacking {
        launcher.require_zygote();
    }
    log(&report);
    let alone = SandboxSettings { layers: alone.active, ..wanted };
    Ok(Isolation { active: report.active, alone: Some(alone) })
}

/// Returns how executors in containers are confined: by what was found in one of them, which is logged. One of
/// `signals` ends that.
pub fn settle_in_containers(
    containers: &Containers,
    settings: &ExecutorSettings,
    wanted: SandboxSettings,
    signals: &Signals,
) -> Result<Isolation, Error> {
    let start = |or_else: fn(String) -> Error| {
        move |error| match error {
            ContainerError::Stopped => Error::Stopped("a signal stopped it at its start"),
            error => or_else(error.to_string()),
        }
    };
    // The first command asks the engine alone: no setting but its name has a part in it.
    containers.sweep(signals).map_err(start(Error::Unreachable))?;
    let own = own_layers(wanted.layers);
    let wanted = SandboxSettings { layers: own, ..wanted };
    let found = containers.probe(&wanted, signals).map_err(start(Error::Start))?;
    check(&found.report, settings)?;
    tracing::info!("executors run in containers of {}", containers.engine());
    log(&found.report);
    let alone = SandboxSettings { layers: found.own, ..wanted };
    Ok(Isolation { active: found.report.active, alone: Some(alone) })
}

/// Checks that the layers are there without which the node is not to be used.
fn check(report: &IsolationReport, settings: &ExecutorSettings) -> Result<(), Error> {
    for &layer in settings.isolation.required() {
        if !report.active.has(layer) {
            let reason = reason(report, layer);
            return Err(Error::Start(format!(
                "executor.isolation requires {layer}, which is not to be had here: {reason}"
            )));
        }
    }
    Ok(())
}

fn reason(report: &IsolationReport, layer: Layer) -> &str {
    let missing = report.missing.iter().find(|missing| missing.layer == layer);
    missing.map_or("not known", |missing| &missing.reason)
}

fn log(report: &IsolationReport) {
    let missing = report.missing.iter();
    let missing: Vec<_> =
        missing.map(|missing| format!("{} ({})", missing.layer, missing.reason)).collect();
    let missing = if missing.is_empty() { "other layer".into() } else { missing.join(", ") };
    if report.active.is_empty() {
        tracing::warn!("functions have the rights of this process; there is no {missing}");
    } else {
        tracing::info!("executors are isolated by {}; there is no {missing}", report.active);
    }
}

#[cfg(test)]
mod tests {
    use rfaas_config::Isolation as IsolationSetting;

    use super::*;

    #[test]
    fn on_tcp_no_layer_forbids_the_connections_that_executors_need() {
        let settings = ExecutorSettings::default();
        for provider in [Provider::Shm, Provider::Verbs, Provider::Tcp] {
            let wanted = wanted(&settings, provider).unwrap();
            let forbids = wanted.layers.has(Layer::LandlockNetwork);
            assert_eq!(forbids, provider != Provider::Tcp, "{provider}");
            assert!(wanted.layers.has(Layer::Seccomp), "it takes sockets away later: {provider}");
        }
        let isolation = IsolationSetting::Require(vec![Layer::LandlockNetwork]);
        let settings = ExecutorSettings { isolation, ..settings };
        assert!(wanted(&settings, Provider::Shm).is_ok());
        let error = wanted(&settings, Provider::Tcp).unwrap_err().to_string();
        assert!(error.contains("landlock_network"), "{error}");
    }
}
