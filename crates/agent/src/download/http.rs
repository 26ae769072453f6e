//! HTTP and HTTPS, with ranges (RFC 9110 §14).

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{StatusCode, Url};

use super::{Body, Downloader, Failed, Part, wrong_size};
use crate::config::span;
use crate::report::Reason;

impl Downloader {
    /// Asks for what is missing. Gives the body, where in the file it begins, and what the server knows the file by.
    pub(super) async fn begin_http(
        &self,
        url: &Url,
        size: u64,
        had: u64,
        part: &Part,
    ) -> Result<(Body, u64, Option<String>), Failed> {
        let mut request = self
            .http
            .get(url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if had > 0 {
            request = request.header(RANGE, format!("bytes={had}-"));
            if let Some(validator) = &part.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        // Until the body comes, nothing else ends the wait for a server that is silent.
        let patience = span(self.settings.low_speed_time);
        let response = match tokio::time::timeout(patience, request.send()).await {
            Ok(sent) => sent.map_err(|error| Failed::Again(words(error)))?,
            Err(_) => {
                let text = format!("the server does not answer within {patience:?}");
                return Err(Failed::Again(text));
            }
        };
        let status = response.status();
        let validator = validator(response.headers());
        match status {
            StatusCode::OK => {
                if let Some(found) = response.content_length().filter(|found| *found != size) {
                    return Err(Failed::ForGood(wrong_size(found, size)));
                }
                Ok((Body::Http(response), 0, validator))
            }
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), size) == Some(had) => {
                Ok((Body::Http(response), had, validator))
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                // What is here does not fit to what is there.
                crate::store::clear(&self.folder)
                    .map_err(|error| Failed::ForGood(super::disk(&error)))?;
                Err(Failed::Again(format!(
                    "the server answers {status} with another range than was asked for"
                )))
            }
            _ if is_passing(status) => Err(Failed::Again(format!("the server answers {status}"))),
            _ => {
                let text = format!(
                    "{} answers {status} for {}",
                    url.host_str().unwrap_or_default(),
                    url.path()
                );
                Err(Failed::ForGood(Reason::new("download", text)))
            }
        }
    }
}

/// Whether a status says that a later try may do better.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// What `If-Range` takes: a strong `ETag`, or else a date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text(ETAG).filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text(LAST_MODIFIED)).map(str::to_owned)
}

/// Where a part begins, if it is one of a file of this size and goes to its end.
fn begins_at(headers: &HeaderMap, size: u64) -> Option<u64> {
    let range = headers
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let is_whole = to.parse::<u64>().ok()?.checked_add(1)? == size
        && (total == "*" || total.parse() == Ok(size));
    from.parse().ok().filter(|_| is_whole)
}

/// What went wrong, without the address: its query may be a secret.
pub(super) fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, from) in [
            ("bytes 10-99/100", Some(10)),
            ("bytes 10-99/*", Some(10)),
            ("bytes 10-98/100", None),
            ("bytes 10-99/200", None),
            ("bytes */100", None),
            ("bytes 1-18446744073709551615/*", None),
            ("10-99/100", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, range.parse().unwrap())]);
            assert_eq!(begins_at(&headers, 100), from, "{range}");
        }
    }

    #[test]
    fn validators() {
        for (headers, taken) in [
            (vec![(ETAG, "\"a\""), (LAST_MODIFIED, "Mon")], Some("\"a\"")),
            (vec![(ETAG, "W/\"a\""), (LAST_MODIFIED, "Mon")], Some("Mon")),
            (vec![(ETAG, "W/\"a\"")], None),
        ] {
            let headers = headers
                .into_iter()
                .map(|(name, value)| (name, value.parse().unwrap()));
            assert_eq!(validator(&HeaderMap::from_iter(headers)).as_deref(), taken);
        }
    }
}
