//! `twincast worker`: sends to the devices of batches that orchestrators release.

use std::sync::Arc;

use twincast_core::ports::Store;
use twincast_worker::{HubState, Worker, WorkerConfig, WorkerHub, WorkerStatus};

use crate::config::Settings;
use crate::engine;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::process::Process;

pub(crate) async fn worker(settings: &Settings, output: &Output) -> Result<ExitCode, Failure> {
    let hubs = engine::all_hubs(settings, None)?;
    engine::note_guesses(&hubs, settings, output);
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
    let hubs = engine::all_hubs(settings, Some(&store))?
        .into_iter()
        .map(|(name, handle)| WorkerHub {
            name,
            hub: handle.hub,
            limits: handle.limits,
        })
        .collect();
    let worker = Worker::new(config, store, Arc::new(services.amqp.queue()), hubs);
    let status = worker.status();
    let stop = process.stop.clone();
    let watch = tell_of_shut_hubs(&status);
    let worked = tokio::select! {
        worked = process.until_stopped(worker.run(stop)) => worked,
        () = watch => unreachable!("it watches for ever"),
    };
    process.end().await;
    worked.map_err(engine::worker_failure)?;
    Ok(ExitCode::Success)
}

/// Says in the log when a hub can be sent through again.
async fn tell_of_shut_hubs(status: &WorkerStatus) {
    let mut shut: Vec<_> = status.hubs().map(|_| false).collect();
    loop {
        for ((name, hub), was) in status.hubs().zip(&mut shut) {
            let is = matches!(hub.state(), HubState::Shut { .. });
            if *was && !is {
                tracing::info!(hub = %name, "hub takes messages again");
            }
            *was = is;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
