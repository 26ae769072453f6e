//! Reasons for rejecting a token.

/// Why a token was rejected, for the log. [`Rejection::public_message`] is the text for the token's bearer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The text is not a token, or a token of another kind.
    #[error("the token is malformed: {0}")]
    Unreadable(&'static str),
    /// The token's algorithm is not accepted, or the token is unsigned.
    #[error("the token's algorithm {found:?} is not allowed")]
    Algorithm {
        /// The algorithm in the header.
        found: String,
    },
    /// The issuer has no key, or several keys, with this id for the token's algorithm.
    #[error(
        "the issuer has no unique key for the token's algorithm and key id {}",
        quoted(kid.as_deref())
    )]
    Key {
        /// The key id in the header.
        kid: Option<String>,
    },
    /// The key did not produce the signature.
    #[error("the token's signature is wrong")]
    Signature,
    /// The token is from another issuer.
    #[error("the token's issuer is {}", quoted(found.as_deref()))]
    Issuer {
        /// The token's issuer.
        found: Option<String>,
    },
    /// The token is for another audience.
    #[error("the token is for the audience {found:?}")]
    Audience {
        /// The token's audiences.
        found: Vec<String>,
    },
    /// A time is missing or invalid.
    #[error("the token's {claim} is missing or not a time")]
    Time {
        /// The name of the claim.
        claim: &'static str,
    },
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The token is not valid yet.
    #[error("the token is not valid yet: clocks may differ")]
    NotYet,
    /// No keys are available now. The token may be valid.
    #[error("the issuer's keys are not available now")]
    NoKeys,
    /// The token names an unknown key, and many tokens already wait for the keys. The token may be
    /// valid.
    #[error("too many requests wait for the issuer's keys")]
    TooManyWaiting,
}

impl Rejection {
    /// Returns the text for the token's bearer. Reasons concerning the signature are for the log
    /// only.
    #[must_use]
    pub fn public_message(&self) -> &'static str {
        match self {
            Self::Unreadable(_) | Self::Algorithm { .. } | Self::Key { .. } | Self::Signature => {
                "the token is not known"
            }
            Self::Issuer { .. } => "the token is from another issuer",
            Self::Audience { .. } => "the token is for another audience",
            Self::Time { .. } => "a time in the token is missing or not valid",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::NoKeys => "the issuer's keys are not available now",
            Self::TooManyWaiting => "the issuer's keys are being requested",
        }
    }
}

/// Formats an optional value of the token for the log.
fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "(none)".to_owned(), |value| format!("{value:?}"))
}
