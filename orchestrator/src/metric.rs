//! Asks for the metrics of a gate, beside all else that a driver does.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use twincast_core::error::in_words;
use twincast_core::gate::metric;
use twincast_core::ids::{MetricName, StageIndex};
use twincast_core::ports::{Clock, MetricSource};
use twincast_core::rollout::{Event, Rollout};
use twincast_core::spec::Metric;
use twincast_core::time::Timestamp;

/// The interval between two looks at the clock.
const DUE: Duration = Duration::from_secs(1);

/// What a query has given, or why nothing.
type Answer = Result<Vec<f64>, String>;

/// What a driver remembers of the metrics that it asks for. Losing it costs a question that is asked early.
#[derive(Default)]
pub(crate) struct Asking {
    stage: StageIndex,
    asked: HashMap<MetricName, Timestamp>,
    under_way: Option<BoxFuture<'static, (Metric, Answer)>>,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asking")
            .field("stage", &self.stage)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Asking {
    /// Asks for the metrics of a rollout's current stage that are due, one after the other, until something is found
    /// that is to be remembered. Waits for ever when none is due.
    ///
    /// Cancel safety: a question that is under way is gone on with by the next call.
    pub(crate) async fn measured(
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
                    let asked = |name: &MetricName| self.asked.get(name).copied();
                    let Some(metric) = metric::due(gate, progress, asked, now) else {
                        tokio::time::sleep(DUE).await;
                        continue;
                    };
                    self.asked.insert(metric.name.clone(), now);
                    self.under_way = Some(ask(metric.clone(), server.cloned()));
                    continue;
                }
            };
            self.under_way = None;
            let (metric, answer) = answered;
            let weighed = metric::weigh(&metric, answer.as_deref().map_err(Clone::clone));
            let (name, result) = (&metric.name, weighed.result);
            let rollout = &rollout.spec.name;
            tracing::debug!(%rollout, metric = %name, ?result, found = weighed.found, "metric measured");
            if metric::is_worth_noting(&metric, progress, result) {
                return Event::MetricMeasured {
                    stage: progress.name.clone(),
                    metric: metric.name,
                    result,
                    found: weighed.found,
                };
            }
        }
    }
}

fn ask(
    metric: Metric,
    server: Option<Arc<dyn MetricSource>>,
) -> BoxFuture<'static, (Metric, Answer)> {
    async move {
        let answer = match &server {
            Some(server) => {
                let answered = server.ask(&metric.query).await;
                answered.map_err(|error| in_words(&error))
            }
            None => Err("no Prometheus server is configured".to_owned()),
        };
        (metric, answer)
    }
    .boxed()
}
