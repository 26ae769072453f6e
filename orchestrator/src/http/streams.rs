//! Answers that go on for long.

use std::task::Poll;

use axum::BoxError;
use futures::future::FutureExt as _;
use futures::stream::{self, Stream, StreamExt as _};

/// A stream that breaks off when `over` comes, so that nobody takes it for complete.
pub(super) fn until<T>(
    over: impl Future<Output = ()> + Send,
    items: impl Stream<Item = Result<T, BoxError>> + Send,
) -> impl Stream<Item = Result<T, BoxError>> + Send {
    let (mut over, mut items) = (Box::pin(over), Box::pin(items));
    let mut is_over = false;
    stream::poll_fn(move |context| {
        if is_over {
            return Poll::Ready(None);
        }
        if over.poll_unpin(context).is_pending() {
            return items.poll_next_unpin(context);
        }
        is_over = true;
        let error: BoxError = "the token is good no longer".into();
        Poll::Ready(Some(Err(error)))
    })
}
