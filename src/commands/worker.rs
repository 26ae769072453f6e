//! `twincast worker`: sends to the devices of released batches.

use std::sync::Arc;
use std::time::Duration;

use twincast_core::ids::HubName;
use twincast_core::ports::{Hub, Store};
use twincast_worker::{HubState, Worker, WorkerConfig, WorkerHub, WorkerStatus};

use crate::config::Settings;
use crate::engine;
use crate::failure::{ExitCode, Failure};
use crate::otlp;
use crate::output::Output;
use crate::process::Process;

/// The minimum duration of a hub's outage to be logged.
const LOG_AFTER: Duration = Duration::from_secs(5);

pub(crate) async fn worker(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    let hubs = engine::all_hubs(settings, None)?;
    engine::note_assumed_limits(&hubs, settings, output);
    let traces = otlp::start(settings, "worker")?;
    let Some(process) = Process::start("worker", settings, output).await? else {
        return Ok(ExitCode::Success);
    };
    let services = &process.services;
    let config = WorkerConfig {
        slots: settings.worker.slots,
        window: settings.worker.window,
        ..WorkerConfig::default()
    };
    let store = services.store() as Arc<dyn Store>;
    let hubs = engine::all_hubs(settings, Some(&store))?;
    engine::bind_hubs(&*store, &hubs).await?;
    let links: Vec<_> = hubs
        .iter()
        .map(|(name, handle)| (name.clone(), Arc::clone(&handle.hub)))
        .collect();
    let hubs = hubs
        .into_iter()
        .map(|(name, handle)| WorkerHub {
            name,
            host: handle.host,
            hub: handle.hub,
            limits: handle.limits,
        })
        .collect();
    let queue = Arc::new(services.amqp.queue());
    let worker = Worker::new(config, store, queue, hubs, engine::clock());
    let worker = worker.traced_by(traces.tracer());
    let status = worker.status();
    process.export(|registry| status.register(registry))?;
    process.export(|registry| traces.register(registry))?;
    let stop = process.stop.clone();
    let watch = log_hub_outages(&status, &links);
    let worked = tokio::select! {
        worked = process.until_stopped(worker.run(stop)) => worked,
        () = watch => unreachable!("it watches for ever"),
    };
    process.end().await;
    traces.close(otlp::FINAL_EXPORT_TIMEOUT).await;
    worked.map_err(engine::worker_failure)?;
    Ok(ExitCode::Success)
}

/// Logs when a hub becomes unusable for sending, and when the hub recovers.
async fn log_hub_outages(status: &WorkerStatus, hubs: &[(HubName, Arc<dyn Hub>)]) {
    let mut logged: Vec<Option<String>> = vec![None; hubs.len()];
    loop {
        for ((name, hub), logged) in hubs.iter().zip(&mut logged) {
            let unavailable = status.hubs().find(|(of, _)| *of == name);
            let unavailable = unavailable.and_then(|(_, status)| match status.state() {
                HubState::Unavailable { reason, .. } => Some(reason),
                HubState::Serving => None,
            });
            // A link replaced within moments is not worth a log line.
            let obstacle = hub.obstacle().filter(|it| it.lasting >= LOG_AFTER);
            let now = unavailable.or(obstacle.map(|it| it.reason));
            match (logged.is_some(), now.is_some()) {
                (false, true) => {
                    tracing::warn!(hub = %name, reason = now, "nothing can be sent through this hub, its batches wait");
                }
                (true, false) => tracing::info!(hub = %name, "the hub accepts messages again"),
                _ => {}
            }
            *logged = now;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
