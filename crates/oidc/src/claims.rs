//! A token's claims, and the checks of issuer, audience and times.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::rejection::Rejection;

/// Tolerated difference between the issuer's clock and this machine's.
const LEEWAY: Duration = Duration::from_secs(60);

/// The claims of a valid token.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    pub(crate) fn read(text: &[u8]) -> Result<Self, Rejection> {
        let claims = serde_json::from_slice(text);
        claims
            .map(Self)
            .map_err(|_| Rejection::Unreadable("the claims are not a JSON object"))
    }

    /// Checks for this issuer, this audience, and validity at `now`.
    pub(crate) fn check(
        &self,
        issuer: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<(), Rejection> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.text("iss") != Some(issuer) {
            let found = self.text("iss").map(str::to_owned);
            return Err(Rejection::Issuer { found });
        }
        let audiences = self.texts("aud");
        if !audiences.contains(&audience) {
            let found = audiences.into_iter().map(str::to_owned).collect();
            return Err(Rejection::Audience { found });
        }
        let expires = self.time("exp")?;
        let expires = expires.ok_or(Rejection::Time { claim: "exp" })?;
        if now >= expires.saturating_add(LEEWAY) {
            return Err(Rejection::Expired);
        }
        for claim in ["nbf", "iat"] {
            if self
                .time(claim)?
                .is_some_and(|from| from > now.saturating_add(LEEWAY))
            {
                return Err(Rejection::NotYet);
            }
        }
        Ok(())
    }

    /// Returns a text claim.
    #[must_use]
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.find(claim)?.as_str()
    }

    /// Returns the texts of a claim with a list of texts or a single text.
    #[must_use]
    pub fn texts(&self, claim: &str) -> Vec<&str> {
        match self.find(claim) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(text)) => vec![text],
            _ => Vec::new(),
        }
    }

    /// Returns the token's expiry in whole seconds since 1970.
    #[must_use]
    pub fn expires_s(&self) -> Option<u64> {
        self.time("exp").ok()?.map(|time| time.as_secs())
    }

    /// Finds a claim by its name, dots included; else by a path of names separated by dots.
    fn find(&self, claim: &str) -> Option<&Value> {
        if let Some(value) = self.0.get(claim) {
            return Some(value);
        }
        let mut steps = claim.split('.');
        let mut value = self.0.get(steps.next()?)?;
        for step in steps {
            value = value.get(step)?;
        }
        Some(value)
    }

    /// Returns the time since 1970 of a claim in seconds, possibly with a fraction.
    fn time(&self, claim: &'static str) -> Result<Option<Duration>, Rejection> {
        let Some(value) = self.0.get(claim) else {
            return Ok(None);
        };
        let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0);
        let seconds = seconds.ok_or(Rejection::Time { claim })?;
        let time = Duration::try_from_secs_f64(seconds);
        Ok(Some(time.unwrap_or(Duration::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims(change: &Value) -> Claims {
        let mut claims = json!({ "iss": "https://i", "aud": ["other", "us"], "exp": NOW + 300 });
        let claims = claims.as_object_mut().unwrap();
        for (claim, value) in change.as_object().unwrap() {
            claims.insert(claim.clone(), value.clone());
        }
        Claims::read(json!(claims).to_string().as_bytes()).unwrap()
    }

    fn check(change: &Value) -> Result<(), Rejection> {
        claims(change).check("https://i", "us", UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn tokens_are_checked_for_issuer_audience_and_time() {
        let good = [
            json!({}),
            json!({ "aud": "us" }),
            json!({ "nbf": NOW, "iat": NOW - 5 }),
            json!({ "exp": NOW - 59, "nbf": NOW + 60, "iat": NOW + 60 }),
            json!({ "exp": NOW as f64 + 0.5 }),
            json!({ "exp": 1e300 }),
        ];
        for change in good {
            assert_eq!(check(&change), Ok(()), "{change}");
        }
        let times = [
            (json!({ "exp": NOW - 60 }), Rejection::Expired),
            (json!({ "exp": 0 }), Rejection::Expired),
            (json!({ "exp": null }), Rejection::Time { claim: "exp" }),
            (json!({ "exp": "soon" }), Rejection::Time { claim: "exp" }),
            (json!({ "exp": -1 }), Rejection::Time { claim: "exp" }),
            (json!({ "nbf": [] }), Rejection::Time { claim: "nbf" }),
            (json!({ "nbf": NOW + 61 }), Rejection::NotYet),
            (json!({ "iat": NOW + 61 }), Rejection::NotYet),
        ];
        for (change, rejection) in times {
            assert_eq!(check(&change), Err(rejection), "{change}");
        }
        for iss in [json!("https://i/"), json!(["https://i"]), json!(null)] {
            let rejected = check(&json!({ "iss": iss }));
            assert!(matches!(rejected, Err(Rejection::Issuer { .. })), "{iss}");
        }
        for aud in [json!("US"), json!([]), json!({ "us": 1 }), json!([["us"]])] {
            let rejected = check(&json!({ "aud": aud }));
            assert!(matches!(rejected, Err(Rejection::Audience { .. })), "{aud}");
        }
        let without = Claims::read(br#"{"iss":"https://i","aud":"us"}"#).unwrap();
        assert_eq!(
            without.check("https://i", "us", UNIX_EPOCH + Duration::from_secs(NOW)),
            Err(Rejection::Time { claim: "exp" })
        );
    }

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let claims = claims(&json!({
            "roles": ["a", 7, "b"], "group": "c", "realm_access": { "roles": ["d"] }, "https://x.y/roles": ["e"],
            "deep.name": "f", "deep": { "name": "g" },
        }));
        let table: [(&str, &[&str]); 9] = [
            ("roles", &["a", "b"]),
            ("group", &["c"]),
            ("realm_access.roles", &["d"]),
            ("https://x.y/roles", &["e"]),
            ("deep.name", &["f"]),
            ("exp", &[]),
            ("realm_access", &[]),
            ("realm_access.roles.d", &[]),
            ("", &[]),
        ];
        for (claim, texts) in table {
            assert_eq!(claims.texts(claim), texts, "{claim}");
        }
        assert_eq!(claims.text("group"), Some("c"));
        assert_eq!(claims.text("roles"), None);
    }
}
