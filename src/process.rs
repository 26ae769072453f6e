//! A process of the distributed engine, from start to end.

use std::future::Future;

use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::failure::{ExitCode, Failure};
use crate::health::Health;
use crate::output::Output;
use crate::services::Services;
use crate::signal::stop_signal;

/// A running process: the services, the probes, and the signal to stop.
pub(crate) struct Process {
    pub(crate) services: Services,
    /// Cancelled when the process is asked to stop.
    pub(crate) stop: CancellationToken,
    registry: Registry,
    health: Option<JoinHandle<()>>,
    probes_stop: CancellationToken,
}

impl Process {
    /// Starts the probes and connects to the services; waits for unavailable services. Returns
    /// `None` if the process is asked to stop first.
    pub(crate) async fn start(
        role: &'static str,
        settings: &Settings,
        output: &Output,
    ) -> Result<Option<Self>, Failure> {
        let stop = CancellationToken::new();
        let signalled = stop.clone();
        let stop_output = output.clone();
        tokio::spawn(async move {
            stop_signal().await;
            stop_output.note(&format!("twincast {role} is stopping."));
            signalled.cancel();
        });
        let mut services = Services::start(settings, role).await?;
        let mut checks = services.checks();
        let stopping = stop.clone();
        checks.push((
            "this process",
            Box::new(move || {
                stopping
                    .is_cancelled()
                    .then(|| "the process is stopping".to_owned())
            }),
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
        output.note(&format!("twincast {role} is running."));
        Ok(Some(Self {
            services,
            stop,
            registry,
            health,
            probes_stop,
        }))
    }

    /// Adds the metrics of the process's work to the exported metrics.
    pub(crate) fn export(
        &self,
        register: impl FnOnce(&Registry) -> Result<(), prometheus::Error>,
    ) -> Result<(), Failure> {
        register(&self.registry).map_err(|error| {
            let error = anyhow::Error::new(error).context("cannot export metrics");
            Failure::new(ExitCode::Unexpected, error)
        })
    }

    /// Runs `work` to the end, while checking the store periodically.
    pub(crate) async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.services.watch_store() => unreachable!("it watches for ever"),
        }
    }

    /// Closes all connections and the probes.
    pub(crate) async fn end(self) {
        self.services.amqp.close().await;
        self.probes_stop.cancel();
        if let Some(health) = self.health {
            // No caller is left for an error of the probes.
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
