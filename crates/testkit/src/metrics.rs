//! A metric source with scripted answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use twincast_core::ports::{MetricSource, MetricSourceError};

/// The answer to a query: samples, or the reason of a failure.
pub type MetricAnswer = Result<Vec<f64>, String>;

/// A [`MetricSource`] with scripted answers. Clones share the script.
#[derive(Debug, Clone, Default)]
pub struct ScriptedMetrics(Arc<Mutex<Script>>);

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<MetricAnswer>,
    queries: Vec<String>,
}

impl ScriptedMetrics {
    /// Creates a source with these answers, in order. The last answer is repeated.
    #[must_use]
    pub fn new(answers: impl IntoIterator<Item = MetricAnswer>) -> Self {
        let script = Script {
            answers: answers.into_iter().collect(),
            queries: Vec::new(),
        };
        Self(Arc::new(Mutex::new(script)))
    }

    /// Returns the queries so far, in order.
    #[must_use]
    pub fn queries(&self) -> Vec<String> {
        self.script().queries.clone()
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetricSource for ScriptedMetrics {
    async fn ask(&self, query: &str) -> Result<Vec<f64>, MetricSourceError> {
        let mut script = self.script();
        script.queries.push(query.to_owned());
        let answer = match script.answers.len() {
            0 | 1 => script.answers.front().cloned(),
            _ => script.answers.pop_front(),
        };
        answer
            .unwrap_or_else(|| Err("the script is empty".into()))
            .map_err(|why| MetricSourceError {
                server: "the script".into(),
                source: why.into(),
            })
    }
}
