//! A metrics server, as queried by gates.

use async_trait::async_trait;

/// Evaluates PromQL queries at the current time.
#[async_trait]
pub trait MetricSource: Send + Sync + 'static {
    /// Returns the samples of a query's result: one sample for a scalar, all samples for a vector.
    /// There may be no samples, and a sample may be any float. The implementation bounds the time
    /// and the size of the answer, and does not retry.
    ///
    /// # Cancel safety
    /// The call may be dropped at any time.
    ///
    /// # Errors
    /// [`MetricSourceError`] when the result of the query is unknown.
    async fn ask(&self, query: &str) -> Result<Vec<f64>, MetricSourceError>;
}

/// A query without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot query {server}")]
pub struct MetricSourceError {
    /// The server, without any secret.
    pub server: String,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
