//! Long-lived responses.

use std::task::Poll;

use axum::BoxError;
use futures::future::FutureExt as _;
use futures::stream::{self, Stream, StreamExt as _};

/// Returns a stream that breaks off with an error on `end`, so that no client takes the stream for
/// complete.
pub(super) fn until<T>(
    end: impl Future<Output = ()> + Send,
    items: impl Stream<Item = Result<T, BoxError>> + Send,
) -> impl Stream<Item = Result<T, BoxError>> + Send {
    let (mut end, mut items) = (Box::pin(end), Box::pin(items));
    let mut is_over = false;
    stream::poll_fn(move |context| {
        if is_over {
            return Poll::Ready(None);
        }
        if end.poll_unpin(context).is_pending() {
            return items.poll_next_unpin(context);
        }
        is_over = true;
        let error: BoxError = "the token is no longer valid".into();
        Poll::Ready(Some(Err(error)))
    })
}
