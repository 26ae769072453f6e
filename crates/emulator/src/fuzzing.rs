//! Entry points for the targets in `fuzz/`; absent from all other builds.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use serde_json::Value;

use crate::HubConfig;
use crate::amqp::cbs;
use crate::amqp::connection::Connection;
use crate::query::evaluate::holds;
use crate::query::scan::in_document;
use crate::query::{Position, Query, Scan};

/// A hub without sockets.
#[derive(Debug, Clone)]
pub struct Hub(Arc<crate::hub::Hub>);

impl Hub {
    /// Creates a hub with the devices of `config`, and without sockets.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self(Arc::new(crate::hub::Hub::new(config, Default::default())))
    }

    /// Returns the hub's output on one connection, for input arriving in these pieces.
    #[must_use]
    pub fn feed<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut connection = Connection::new(Arc::clone(&self.0), None);
        let mut input = BytesMut::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            _ = connection.on_input(&mut input);
            connection.on_time(Instant::now());
        }
        connection.release_everything();
        connection.out.to_vec()
    }

    /// Returns the answer to a message on `$cbs`.
    #[must_use]
    pub fn put_token(&self, message: &[u8]) -> Vec<u8> {
        cbs::handle(message, &self.0).encode()
    }

    /// Returns the first rows of a query, and whether more rows follow.
    ///
    /// # Errors
    /// The problem of the query and the position, in characters from 1; a query with too many
    /// groups has the position 0.
    pub fn query(&self, text: &str, limit: usize) -> Result<(Vec<Value>, bool), (usize, String)> {
        let query = Query::parse(text).map_err(|error| (error.position, error.problem))?;
        let start = Position { device: 0, rows: 0 };
        let page = Scan::new(&self.0, &query).page(start, limit);
        let page = page.map_err(|error| (0, error.to_string()))?;
        Ok((page.rows, page.next.is_some()))
    }
}

/// Whether a twin meets the condition of a query.
///
/// # Errors
/// The problem of the query.
pub fn meets(query: &str, twin: &Value) -> Result<bool, String> {
    let query = Query::parse(query).map_err(|error| error.to_string())?;
    let get = |path: usize| in_document(twin, &query.paths[path]);
    let holds = |condition| holds(condition, &get) == Some(true);
    Ok(query.condition.as_ref().is_none_or(holds))
}
