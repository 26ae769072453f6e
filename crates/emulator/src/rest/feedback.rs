//! `/messages/servicebound/…`: feedback over HTTPS, one batch at a time, as an alternative to the
//! AMQP link.
//!
//! A received batch is locked for the receiver. The lock ends when the receiver completes, rejects
//! or abandons the batch with the lock token in the `ETag`, or after a time.

use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use super::devices::check_tier;
use super::error::{ApiError, empty_response};
use super::serve::{Answer, Call};
use crate::amqp::FEEDBACK_CONTENT_TYPE;
use crate::fleet::iso_time;
use crate::hub::{FeedbackSettlement, Refusal};

/// Answers with the oldest batch, or 204 without a batch.
pub(crate) fn receive(call: &Call) -> Answer {
    check_tier(call)?;
    let Some((token, batch)) = call.hub.lock_feedback() else {
        return Ok(empty_response(StatusCode::NO_CONTENT));
    };
    let mut response = empty_response(StatusCode::OK);
    *response.body_mut() = batch.json.into();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(FEEDBACK_CONTENT_TYPE),
    );
    for (name, value) in [
        ("etag", format!("\"{token}\"")),
        ("iothub-enqueuedtime", iso_time(batch.made_ms)),
        ("iothub-deliverycount", batch.deliveries.to_string()),
    ] {
        // The values consist of digits, letters and punctuation.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// Completes a batch, or rejects the batch if the query contains `reject`.
pub(crate) fn complete(call: &Call, token: &str) -> Answer {
    let mut names = call.query.split('&').filter_map(|p| p.split('=').next());
    let rejects = names.any(|name| name.eq_ignore_ascii_case("reject"));
    let settlement = if rejects {
        FeedbackSettlement::Rejected
    } else {
        FeedbackSettlement::Completed
    };
    settle(call, token, settlement)
}

/// Returns a batch to the queue, for the next receiver.
pub(crate) fn abandon(call: &Call, token: &str) -> Answer {
    settle(call, token, FeedbackSettlement::Abandoned)
}

fn settle(call: &Call, token: &str, settlement: FeedbackSettlement) -> Answer {
    check_tier(call)?;
    let lock = token.trim_matches('"').parse::<Uuid>().ok();
    if lock.is_some_and(|lock| call.hub.settle_feedback(lock, settlement)) {
        Ok(empty_response(StatusCode::NO_CONTENT))
    } else {
        Err(lock_lost(token))
    }
}

/// Answers without a notification: notifications are about uploaded files, and the emulator accepts
/// no uploads.
pub(crate) fn receive_file_notification() -> Answer {
    Ok(empty_response(StatusCode::NO_CONTENT))
}

/// Returns the answer to a client without a valid lock.
pub(crate) fn lock_lost(token: &str) -> ApiError {
    (&Refusal::lock_lost(token)).into()
}
