//! A server that answers questions about numbers, as gates ask them.

use async_trait::async_trait;

/// Answers queries in PromQL, as of now.
#[async_trait]
pub trait MetricSource: Send + Sync + 'static {
    /// The samples of a query's result: one of a scalar, each of a vector's. May be none, and may hold any float.
    /// The implementation bounds how long it takes and how much it reads, and does not try again.
    ///
    /// Cancel safety: may be dropped at any time.
    ///
    /// # Errors
    /// [`MetricSourceError`]: it is not known what the query gives.
    async fn ask(&self, query: &str) -> Result<Vec<f64>, MetricSourceError>;
}

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask {server}")]
pub struct MetricSourceError {
    /// Whom, without any secret.
    pub server: String,
    /// Why not.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
