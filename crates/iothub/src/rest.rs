//! The hub's REST interface (`api-version` 2021-04-12): twin queries, counts, statistics, single
//! twins.

mod error;
mod query;
mod retry;
#[cfg(test)]
mod tests;
pub(crate) mod transport;
mod twin;

pub use error::{ApiError, RestError};
pub use query::{MAX_PAGE_ITEMS, MAX_QUERY_CHARS, Page, QueryPages};
pub use retry::{RetryHook, RetryNotice, RetryReason};
pub use twin::{DeviceStatistics, ServiceStatistics, Twin, TwinProperties};
