//! A metric source that answers what it is told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use twincast_core::ports::{MetricSource, MetricSourceError};

/// What one question is answered: samples, or why not.
pub type MetricAnswer = Result<Vec<f64>, String>;

/// A [`MetricSource`] with its answers written down. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct ScriptedMetrics(Arc<Mutex<Script>>);

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<MetricAnswer>,
    asked: Vec<String>,
}

impl ScriptedMetrics {
    /// Answers these, in order; the last one again and again.
    #[must_use]
    pub fn new(answers: impl IntoIterator<Item = MetricAnswer>) -> Self {
        let script = Script {
            answers: answers.into_iter().collect(),
            asked: Vec::new(),
        };
        Self(Arc::new(Mutex::new(script)))
    }

    /// The queries that were asked, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.script().asked.clone()
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetricSource for ScriptedMetrics {
    async fn ask(&self, query: &str) -> Result<Vec<f64>, MetricSourceError> {
        let mut script = self.script();
        script.asked.push(query.to_owned());
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
