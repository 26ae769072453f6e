//! HTTP and HTTPS, with ranges (RFC 9110 §14).

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{StatusCode, Url};

use super::{Body, Downloader, Failed, PartialDownload, wrong_size};
use crate::config::to_std;
use crate::report::Reason;

impl Downloader {
    /// Requests the missing bytes. Returns the body, the offset of the body in the file, and the
    /// server's validator of the file.
    pub(super) async fn begin_http(
        &self,
        url: &Url,
        size: u64,
        offset: u64,
        partial: &PartialDownload,
    ) -> Result<(Body, u64, Option<String>), Failed> {
        let mut request = self
            .http
            .get(url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
            if let Some(validator) = &partial.validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        // No other timeout covers a silent server before the body begins.
        let timeout = to_std(self.settings.low_speed_time);
        let response = match tokio::time::timeout(timeout, request.send()).await {
            Ok(sent) => sent.map_err(|error| Failed::Transient(error_chain(error)))?,
            Err(_) => {
                let text = format!("the server does not answer within {timeout:?}");
                return Err(Failed::Transient(text));
            }
        };
        let status = response.status();
        let validator = validator(response.headers());
        match status {
            StatusCode::OK => {
                if let Some(found) = response.content_length().filter(|found| *found != size) {
                    return Err(Failed::Permanent(wrong_size(found, size)));
                }
                Ok((Body::Http(response), 0, validator))
            }
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), size) == Some(offset) => {
                Ok((Body::Http(response), offset, validator))
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                // The partial download does not match the server's file.
                crate::store::clear(&self.folder)
                    .map_err(|error| Failed::Permanent(super::disk(&error)))?;
                Err(Failed::Transient(format!(
                    "the server answers {status} without the requested range"
                )))
            }
            _ if is_transient(status) => {
                Err(Failed::Transient(format!("the server answers {status}")))
            }
            _ => {
                let text = format!(
                    "{} answers {status} for {}",
                    url.host_str().unwrap_or_default(),
                    url.path()
                );
                Err(Failed::Permanent(Reason::new("download", text)))
            }
        }
    }
}

/// Returns whether a status is transient: a later attempt may succeed.
fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// Returns the validator for `If-Range`: a strong `ETag`, or else a date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = text(ETAG).filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text(LAST_MODIFIED)).map(str::to_owned)
}

/// Returns the first byte of a `Content-Range` reaching to the end of a file of `size` bytes.
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

/// Describes an error without the URL: the query of the URL may be a secret.
pub(super) fn error_chain(error: reqwest::Error) -> String {
    crate::error_chain(&error.without_url())
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
