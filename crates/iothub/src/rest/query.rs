//! Twin queries, page by page.
//!
//! `POST /devices/query` answers one page; the header `x-ms-continuation` leads to the next one, and only its absence
//! ends the query: short and empty pages in between are legal. Every page counts as one query against the hub's
//! throttle (20 a minute on one S1 unit), so each is asked for only when it is wanted.

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Client;
use crate::credentials::Right;

use super::error::RestError;
use super::transport::Request;

/// The most items of a page, as IoT Hub documents it. The hub may give fewer.
pub const LARGEST_PAGE: u32 = 100;

/// The longest query, in characters, as IoT Hub documents it.
pub const LONGEST_QUERY: usize = 8_192;

/// After so many empty pages in a row a query is given up: it would never end.
const MOST_EMPTY_PAGES: u32 = 1_000;

/// One page of a query's answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T = Value> {
    /// Its items; may be fewer than asked for, may be none.
    pub items: Vec<T>,
    /// The hub's `x-ms-item-type`: `Twin`, `Raw`, `DeviceJob`, `JobResponse`.
    pub item_type: Option<String>,
    /// Whether it is the last one.
    pub is_last: bool,
}

/// A query under way.
///
/// # Cancel safety
///
/// Dropping a call of [`next_page`](Self::next_page) before it is done loses nothing: the next call asks for the same
/// page again. After an error, too.
#[derive(Debug)]
#[must_use = "nothing is asked before next_page() or one of the streams is polled"]
pub struct QueryPages {
    client: Client,
    body: Bytes,
    page_size: u32,
    continuation: Option<HeaderValue>,
    ended: bool,
    empty_pages: u32,
}

impl Client {
    /// Starts a query; nothing is sent before the first page is asked for.
    ///
    /// `sql` is IoT Hub's query language, at most [`LONGEST_QUERY`] characters; `page_size` is cut to 1 to
    /// [`LARGEST_PAGE`]. Values from outside must be quoted by the caller.
    ///
    /// # Errors
    ///
    /// [`RestError::QueryTooLong`].
    pub fn query(&self, sql: &str, page_size: u32) -> Result<QueryPages, RestError> {
        let found = sql.chars().count();
        if found > LONGEST_QUERY {
            return Err(RestError::QueryTooLong {
                found,
                limit: LONGEST_QUERY,
            });
        }
        Ok(QueryPages {
            client: self.clone(),
            body: serde_json::json!({ "query": sql }).to_string().into(),
            page_size: page_size.clamp(1, LARGEST_PAGE),
            continuation: None,
            ended: false,
            empty_pages: 0,
        })
    }

    /// How many devices satisfy `condition` (what would follow `WHERE`), or how many there are at all.
    ///
    /// # Errors
    ///
    /// Those of a query.
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
    /// The next page, or `None` after the last one. Retries as the client's options say.
    ///
    /// # Errors
    ///
    /// Those of a request; the same page can be asked for again.
    pub async fn next_page(&mut self) -> Result<Option<Page>, RestError> {
        self.next_page_as().await
    }

    /// Like [`next_page`](Self::next_page), with the items read as `T`.
    ///
    /// # Errors
    ///
    /// Those of a request, and [`RestError::Answer`] when an item is not a `T`.
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
            right: Right::ReadTwins,
        };
        let answer = self.client.inner.request(&request).await;
        let answer = answer.map_err(|error| match error {
            RestError::Api(error) if error.status == 400 && self.continuation.is_some() => {
                RestError::Continuation(error)
            }
            error => error,
        })?;
        // Bytes that are no text spoil the item that has them, not the page.
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
        if self.empty_pages > MOST_EMPTY_PAGES {
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

    /// All pages as a stream that ends after the last page or the first error.
    pub fn into_pages<T: DeserializeOwned>(self) -> impl Stream<Item = Result<Page<T>, RestError>> {
        try_unfold(self, |mut pages| async move {
            Ok(pages.next_page_as().await?.map(|page| (page, pages)))
        })
    }

    /// All items as a stream that ends after the last item or the first error. Holds one page in memory.
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
