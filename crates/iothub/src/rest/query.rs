//! Twin queries, page by page.
//!
//! `POST /devices/query` answers one page, and the header `x-ms-continuation` leads to the next.
//! Only a missing header ends the query: short and empty pages in between are legal. Every page
//! counts as one query against the hub's throttle (20 a minute on one S1 unit), so each page is
//! requested only on demand.

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Client;
use crate::credentials::Permission;

use super::error::RestError;
use super::transport::Request;

/// The most items of a page, as documented by IoT Hub. The hub may return fewer.
pub const MAX_PAGE_ITEMS: u32 = 100;

/// The longest query in characters, as documented by IoT Hub.
pub const MAX_QUERY_CHARS: usize = 8_192;

/// Limit of empty pages in a row. A query beyond the limit fails, because such a query would never
/// end.
const MAX_EMPTY_PAGES: u32 = 1_000;

/// One page of a query's result.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T = Value> {
    /// The items; possibly fewer than requested, possibly none.
    pub items: Vec<T>,
    /// The hub's `x-ms-item-type`: `Twin`, `Raw`, `DeviceJob`, `JobResponse`.
    pub item_type: Option<String>,
    /// Whether this is the query's last page.
    pub is_last: bool,
}

/// A query under way.
///
/// # Cancel safety
///
/// Dropping an unfinished call of [`next_page`](Self::next_page) loses nothing: the next call
/// requests the same page again. The same holds after an error.
#[derive(Debug)]
#[must_use = "no request is sent before next_page() or one of the streams is polled"]
pub struct QueryPages {
    client: Client,
    body: Bytes,
    page_size: u32,
    continuation: Option<HeaderValue>,
    ended: bool,
    empty_pages: u32,
}

impl Client {
    /// Starts a query; no request is sent before the first page is polled.
    ///
    /// `sql` is IoT Hub's query language, at most [`MAX_QUERY_CHARS`] characters; `page_size` is
    /// clamped to 1 to [`MAX_PAGE_ITEMS`]. The caller must quote values from outside.
    ///
    /// # Errors
    ///
    /// [`RestError::QueryTooLong`].
    pub fn query(&self, sql: &str, page_size: u32) -> Result<QueryPages, RestError> {
        let found = sql.chars().count();
        if found > MAX_QUERY_CHARS {
            return Err(RestError::QueryTooLong {
                found,
                limit: MAX_QUERY_CHARS,
            });
        }
        Ok(QueryPages {
            client: self.clone(),
            body: serde_json::json!({ "query": sql }).to_string().into(),
            page_size: page_size.clamp(1, MAX_PAGE_ITEMS),
            continuation: None,
            ended: false,
            empty_pages: 0,
        })
    }

    /// Counts the devices satisfying `condition` (the text after `WHERE`), or all devices.
    ///
    /// # Errors
    ///
    /// The errors of a query.
    pub async fn count(&self, condition: Option<&str>) -> Result<u64, RestError> {
        #[derive(Deserialize)]
        struct Count {
            n: u64,
        }
        let condition = condition.map(|c| format!(" WHERE {c}")).unwrap_or_default();
        let mut pages = self.query(&format!("SELECT COUNT() AS n FROM devices{condition}"), 1)?;
        let mut count = 0;
        while let Some(page) = pages.next_page_as::<Count>().await? {
            count += page.items.iter().map(|item| item.n).sum::<u64>();
        }
        Ok(count)
    }
}

impl QueryPages {
    /// Returns the next page, or `None` after the last page. Retries as configured in the client's
    /// options.
    ///
    /// # Errors
    ///
    /// The errors of a request; the same page can be requested again.
    pub async fn next_page(&mut self) -> Result<Option<Page>, RestError> {
        self.next_page_as().await
    }

    /// Like [`next_page`](Self::next_page), with the items parsed as `T`.
    ///
    /// # Errors
    ///
    /// The errors of a request, and [`RestError::Answer`] when an item is not a `T`.
    pub async fn next_page_as<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Page<T>>, RestError> {
        if self.ended {
            return Ok(None);
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-max-item-count", HeaderValue::from(self.page_size));
        if let Some(continuation) = &self.continuation {
            headers.insert("x-ms-continuation", continuation.clone());
        }
        let request = Request {
            method: Method::POST,
            path: "/devices/query",
            headers,
            body: Some(self.body.clone()),
            permission: Permission::ReadTwins,
        };
        let answer = self.client.inner.request(&request).await;
        let answer = answer.map_err(|error| match error {
            RestError::Api(error) if error.status == 400 && self.continuation.is_some() => {
                RestError::Continuation(error)
            }
            error => error,
        })?;
        // Invalid UTF-8 spoils only its item, not the page.
        let text = String::from_utf8_lossy(&answer.body);
        let items: Vec<T> = serde_json::from_str(&text).map_err(|source| RestError::Answer {
            request: "query",
            source,
        })?;
        let continuation = answer
            .headers
            .get("x-ms-continuation")
            .filter(|v| !v.is_empty());
        let item_type = answer
            .headers
            .get("x-ms-item-type")
            .and_then(|v| v.to_str().ok());
        self.empty_pages = if items.is_empty() {
            self.empty_pages + 1
        } else {
            0
        };
        if self.empty_pages > MAX_EMPTY_PAGES {
            return Err(RestError::EndlessPaging(self.empty_pages));
        }
        self.ended = continuation.is_none();
        self.continuation = continuation.cloned();
        Ok(Some(Page {
            items,
            item_type: item_type.map(str::to_owned),
            is_last: self.ended,
        }))
    }

    /// Returns all pages as a stream, which ends after the last page or the first error.
    pub fn into_pages<T: DeserializeOwned>(self) -> impl Stream<Item = Result<Page<T>, RestError>> {
        try_unfold(self, |mut pages| async move {
            Ok(pages.next_page_as().await?.map(|page| (page, pages)))
        })
    }

    /// Returns all items as a stream, which ends after the last item or the first error. Holds one
    /// page in memory.
    pub fn into_items<T: DeserializeOwned>(self) -> impl Stream<Item = Result<T, RestError>> {
        let start = (self, Vec::new().into_iter());
        try_unfold(
            start,
            |(mut pages, mut items): (_, std::vec::IntoIter<T>)| async move {
                loop {
                    if let Some(item) = items.next() {
                        return Ok(Some((item, (pages, items))));
                    }
                    match QueryPages::next_page_as(&mut pages).await? {
                        Some(page) => items = page.items.into_iter(),
                        None => return Ok(None),
                    }
                }
            },
        )
    }
}
