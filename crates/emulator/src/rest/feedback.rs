//! `/messages/servicebound/…`: feedback over HTTPS, one batch at a time, as an alternative to the AMQP link.
//!
//! A batch that is received is locked for its receiver until it completes, rejects or abandons it, with the
//! lock token of its `ETag`, or the lock ends.

use http::{HeaderValue, StatusCode, header};
use uuid::Uuid;

use super::devices::check_tier;
use super::error::{ApiError, empty_response};
use super::serve::{Answer, Call};
use crate::amqp::FEEDBACK_CONTENT_TYPE;
use crate::fleet::iso_time;
use crate::hub::{Refusal, Settlement};

/// Answers with the oldest batch, or that there is none.
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
        // Digits, letters and punctuation alone.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// Completes a batch, or rejects it if the request's query says so.
pub(crate) fn complete(call: &Call, token: &str) -> Answer {
    let mut names = call.query.split('&').filter_map(|p| p.split('=').next());
    let rejects = names.any(|name| name.eq_ignore_ascii_case("reject"));
    let settlement = if rejects {
        Settlement::Rejected
    } else {
        Settlement::Completed
    };
    settle(call, token, settlement)
}

/// Gives a batch back, for whoever receives next.
pub(crate) fn abandon(call: &Call, token: &str) -> Answer {
    settle(call, token, Settlement::Abandoned)
}

fn settle(call: &Call, token: &str, settlement: Settlement) -> Answer {
    check_tier(call)?;
    let lock = token.trim_matches('"').parse::<Uuid>().ok();
    if lock.is_some_and(|lock| call.hub.settle_feedback(lock, settlement)) {
        Ok(empty_response(StatusCode::NO_CONTENT))
    } else {
        Err(lock_lost(token))
    }
}

/// Answers that there is no notification: they tell of files that devices have sent, and the emulator takes
/// none.
pub(crate) fn receive_file_notification() -> Answer {
    Ok(empty_response(StatusCode::NO_CONTENT))
}

/// The answer to whoever holds no lock on a message, or no longer does.
pub(crate) fn lock_lost(token: &str) -> ApiError {
    (&Refusal::lock_lost(token)).into()
}
