//! The live page, for watching rollouts and deciding about gates.
//!
//! The page consists of a few files in the binary, so the page needs no build and no internet. The
//! page gets all data from the API, with the token of the viewer. The files themselves are no
//! secret, and are served without a token. Data are never parsed as HTML, and the browser is told
//! to run and load nothing from other origins.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The permissions of the browser: load from and query this origin, and allow no frame around the
/// page.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 11] = [
    File {
        path: "/",
        content_type: "text/html; charset=utf-8",
        text: include_str!("page/index.html"),
    },
    File {
        path: "/style.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("page/style.css"),
    },
    File {
        path: "/icon.svg",
        content_type: "image/svg+xml",
        text: include_str!("page/icon.svg"),
    },
    script("/app.js", include_str!("page/app.js")),
    script("/device.js", include_str!("page/device.js")),
    script("/dom.js", include_str!("page/dom.js")),
    script("/lists.js", include_str!("page/lists.js")),
    script("/operations.js", include_str!("page/operations.js")),
    script("/rate.js", include_str!("page/rate.js")),
    script("/rollout.js", include_str!("page/rollout.js")),
    script("/text.js", include_str!("page/text.js")),
];

const fn script(path: &'static str, text: &'static str) -> File {
    File {
        path,
        content_type: SCRIPT,
        text,
    }
}

/// Returns the routes of the page's files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for file in &FILES {
        router = router.route(file.path, get(|| async { serve(file) }));
    }
    router
}

fn serve(file: &'static File) -> Response {
    let mut response = file.text.into_response();
    let headers = response.headers_mut();
    let said: [(HeaderName, &'static str); 3] = [
        (header::CONTENT_TYPE, file.content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in said {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use twincast_core::account::Activity;
    use twincast_core::outcome::{Outcome, OutcomeClass};

    /// The page has a text for every value that may be shown.
    #[test]
    fn every_outcome_class_and_activity_has_a_text() {
        let texts = include_str!("page/text.js");
        for outcome in Outcome::ALL {
            let entry = format!("\n  {}:", outcome.as_str());
            assert!(texts.contains(&entry), "{outcome}");
        }
        for class in OutcomeClass::ALL {
            let entry = format!("\n  {}: '{}", class.as_str(), class.describe());
            assert!(texts.contains(&entry), "{entry}");
            if class.is_failure() {
                let outcomes = class.outcomes(true).map(|it| format!("'{it}'"));
                let outcomes = outcomes.collect::<Vec<_>>().join(", ");
                let entry = format!("\n  {}: [{outcomes}]", class.as_str());
                assert!(texts.contains(&entry), "{entry}");
            }
        }
        for activity in Activity::ALL {
            let entry = format!("\n  {}: '{}'", activity.as_str(), activity.describe());
            assert!(texts.contains(&entry), "{entry}");
        }
    }
}
