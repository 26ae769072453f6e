//! Queries the metrics of a gate, concurrently with the driver's other work.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use twincast_core::error::describe;
use twincast_core::gate::metric;
use twincast_core::ids::{MetricName, StageIndex};
use twincast_core::ports::{Clock, MetricSource};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::spec::Metric;
use twincast_core::time::Timestamp;

/// The interval between two checks of the clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// The values of a query, or the reason for the failure.
type Answer = Result<Vec<f64>, String>;

/// A driver's memory of its metric queries. Losing the memory costs one early query.
#[derive(Default)]
pub(crate) struct MetricMemory {
    stage: StageIndex,
    queried_at: HashMap<MetricName, Timestamp>,
    under_way: Option<BoxFuture<'static, (Metric, Answer)>>,
}

impl std::fmt::Debug for MetricMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricMemory")
            .field("stage", &self.stage)
            .field("queried_at", &self.queried_at)
            .finish_non_exhaustive()
    }
}

impl MetricMemory {
    /// Queries the due metrics of a rollout's current stage, one after the other, and returns the
    /// first result worth recording. Waits until a metric is due, and forever for a gate without
    /// metrics.
    ///
    /// Cancel safety: the next call continues a running query.
    pub(crate) async fn next_measurement(
        &mut self,
        rollout: &Rollout,
        server: Option<&Arc<dyn MetricSource>>,
        clock: &dyn Clock,
    ) -> Event {
        if self.stage != rollout.stage() {
            *self = Self {
                stage: rollout.stage(),
                ..Self::default()
            };
        }
        let gate = rollout.spec.gate_of(self.stage);
        let gate = gate.filter(|gate| !gate.metrics.is_empty());
        let (Some(gate), Some(progress)) = (gate, rollout.stage_progress()) else {
            return pending().await;
        };
        loop {
            let answered = match self.under_way.as_mut() {
                Some(under_way) => under_way.await,
                None => {
                    let now = clock.now();
                    let queried_at = |name: &MetricName| self.queried_at.get(name).copied();
                    let Some(metric) = metric::due(gate, progress, queried_at, now) else {
                        tokio::time::sleep(CLOCK_INTERVAL).await;
                        continue;
                    };
                    self.queried_at.insert(metric.name.clone(), now);
                    self.under_way = Some(query(metric.clone(), server.cloned()));
                    continue;
                }
            };
            self.under_way = None;
            let (metric, answer) = answered;
            let measurement = metric::evaluate(&metric, answer.as_deref().map_err(Clone::clone));
            let (name, result) = (&metric.name, measurement.result);
            let rollout = &rollout.spec.name;
            tracing::debug!(%rollout, metric = %name, ?result, samples = measurement.samples, "metric measured");
            if metric::must_be_noted(&metric, progress, result) {
                return Event::MetricMeasured {
                    stage: progress.name.clone(),
                    metric: metric.name,
                    result,
                    samples: measurement.samples,
                };
            }
        }
    }
}

fn query(
    metric: Metric,
    server: Option<Arc<dyn MetricSource>>,
) -> BoxFuture<'static, (Metric, Answer)> {
    async move {
        let answer = match &server {
            Some(server) => {
                let answered = server.ask(&metric.query).await;
                answered.map_err(|error| describe(&error))
            }
            None => Err("no Prometheus server is configured".to_owned()),
        };
        (metric, answer)
    }
    .boxed()
}
