//! `twincast worker`: sends to the devices of batches that orchestrators release.

use std::sync::Arc;
use std::time::Duration;

use twincast_core::ids::HubName;
use twincast_core::ports::{Hub, Store};
use twincast_worker::{HubState, Worker, WorkerConfig, WorkerHub, WorkerStatus};

use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::otlp;
use crate::output::Output;
use crate::process::Process;

/// For how long a hub is out of reach before the log says so.
const WORTH_TELLING: Duration = Duration::from_secs(5);

pub(crate) async fn worker(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    let hubs = engine::all_hubs(settings, None)?;
    engine::note_guesses(&hubs, settings, output);
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
    let ways: Vec<_> = hubs
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
    let watch = tell_of_hubs(&status, &ways);
    let worked = tokio::select! {
        worked = process.until_stopped(worker.run(stop)) => worked,
        () = watch => unreachable!("it watches for ever"),
    };
    process.end().await;
    traces.close(otlp::LAST).await;
    worked.map_err(engine::worker_failure)?;
    Ok(ExitCode::Success)
}

/// Says in the log when a hub cannot be sent through, and when it can again.
async fn tell_of_hubs(status: &WorkerStatus, hubs: &[(HubName, Arc<dyn Hub>)]) {
    let mut told: Vec<Option<String>> = vec![None; hubs.len()];
    loop {
        for ((name, hub), told) in hubs.iter().zip(&mut told) {
            let shut = status.hubs().find(|(of, _)| *of == name);
            let shut = shut.and_then(|(_, status)| match status.state() {
                HubState::Shut { reason, .. } => Some(reason),
                HubState::Serving => None,
            });
            // A link that is replaced within moments is no news.
            let hindrance = hub.hindrance().filter(|is| is.lasting >= WORTH_TELLING);
            let now = shut.or(hindrance.map(|is| is.reason));
            match (told.is_some(), now.is_some()) {
                (false, true) => {
                    tracing::warn!(hub = %name, reason = now, "nothing can be sent through this hub, its batches wait");
                }
                (true, false) => tracing::info!(hub = %name, "the hub takes messages again"),
                _ => {}
            }
            *told = now;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
