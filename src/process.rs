//! A process of the distributed engine, from its start to its end.

use std::future::Future;

use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::exit::{ExitCode, Failure};
use crate::health::Health;
use crate::output::Output;
use crate::services::Services;
use crate::signal::asked_to_stop;

/// A running process: its services, its probes, and the wish that it stop.
pub(crate) struct Process {
    pub(crate) services: Services,
    /// Cancelled when the process is asked to stop.
    pub(crate) stop: CancellationToken,
    registry: Registry,
    health: Option<JoinHandle<()>>,
    probes_stop: CancellationToken,
}

impl Process {
    /// Listens for probes, and connects to the services; waits for them if they are away. `None`
    /// when it was asked to stop before they were there.
    pub(crate) async fn start(
        role: &'static str,
        settings: &Settings,
        output: &Output,
    ) -> Result<Option<Self>, Failure> {
        let stop = CancellationToken::new();
        let signalled = stop.clone();
        let told = output.clone();
        tokio::spawn(async move {
            asked_to_stop().await;
            told.note(&format!("twincast {role} is stopping."));
            signalled.cancel();
        });
        let mut services = Services::start(settings, role).await?;
        let mut checks = services.checks();
        let stopping = stop.clone();
        checks.push((
            "this process",
            Box::new(move || stopping.is_cancelled().then(|| "it is stopping".to_owned())),
        ));
        let registry = Registry::new();
        let probes_stop = CancellationToken::new();
        let health = match settings.http.listen {
            Some(address) => Some(serve(
                Health::bind(address, checks, registry.clone()).await?,
                &probes_stop,
                output,
            )?),
            None => None,
        };
        output.note(&format!(
            "twincast {role} is starting; Ctrl-C or SIGTERM stops it."
        ));
        if !services.connect(settings, &stop).await? {
            return Ok(None);
        }
        output.note(&format!("twincast {role} is at work."));
        Ok(Some(Self {
            services,
            stop,
            registry,
            health,
            probes_stop,
        }))
    }

    /// Exports the metrics of what the process does, where it listens for those who ask.
    pub(crate) fn export(
        &self,
        register: impl FnOnce(&Registry) -> Result<(), prometheus::Error>,
    ) -> Result<(), Failure> {
        register(&self.registry).map_err(|error| {
            let error = anyhow::Error::new(error).context("cannot export metrics");
            Failure::new(ExitCode::Unexpected, error)
        })
    }

    /// Does the process's work until it is done, watching over the services.
    pub(crate) async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.services.watch_store() => unreachable!("it watches for ever"),
        }
    }

    /// Closes what is open.
    pub(crate) async fn end(self) {
        self.services.amqp.close().await;
        self.probes_stop.cancel();
        if let Some(health) = self.health {
            // Nobody is left to be told that the probes ended badly.
            _ = health.await;
        }
    }
}

fn serve(
    health: Health,
    stop: &CancellationToken,
    output: &Output,
) -> Result<JoinHandle<()>, Failure> {
    let address = health
        .address()
        .map_err(|error| Failure::new(ExitCode::Unexpected, error))?;
    output.note(&format!(
        "Probes: http://{address}/livez, /readyz and /metrics"
    ));
    Ok(tokio::spawn(health.serve(stop.clone())))
}
