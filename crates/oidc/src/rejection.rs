//! Why a token is not good.

/// Why a token is not good, for the log. [`Rejection::shown`] is what its bearer may know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is none, or one of another kind.
    #[error("the token cannot be read: {0}")]
    Unreadable(&'static str),
    /// It is signed in a way that is not let in, or not at all.
    #[error("the token's algorithm is {found:?}, which is not let in")]
    Algorithm {
        /// What its header says.
        found: String,
    },
    /// The issuer has no such key for its algorithm, or several.
    #[error("the issuer has not just one key {kid:?} for the token's algorithm")]
    Key {
        /// What its header says.
        kid: Option<String>,
    },
    /// The signature is not by that key.
    #[error("the token's signature is wrong")]
    Signature,
    /// It is by somebody else.
    #[error("the token's issuer is {found:?}")]
    Issuer {
        /// What it says.
        found: Option<String>,
    },
    /// It is meant for somebody else.
    #[error("the token is for the audience {found:?}")]
    Audience {
        /// What it says.
        found: Vec<String>,
    },
    /// A time is missing, or is none.
    #[error("the token's {claim} is missing or is no time")]
    Time {
        /// Which.
        claim: &'static str,
    },
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet: clocks may differ")]
    NotYet,
    /// There is nothing to check it with now. It may be good.
    #[error("the keys of the issuer cannot be had now")]
    NoKeys,
    /// It names a key that is not known, and many wait to hear of that already. It may be good.
    #[error("the issuer is being asked for its keys, and too many wait for the answer")]
    Crowded,
}

impl Rejection {
    /// What its bearer is told. Why a token is not of the issuer is for the log alone.
    #[must_use]
    pub fn shown(&self) -> &'static str {
        match self {
            Self::Unreadable(_) | Self::Algorithm { .. } | Self::Key { .. } | Self::Signature => {
                "the token is not known"
            }
            Self::Issuer { .. } => "the token is of another issuer",
            Self::Audience { .. } => "the token is for another audience",
            Self::Time { .. } => "the token does not say how long it is valid",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::NoKeys => "the keys of the issuer cannot be had now",
            Self::Crowded => "the issuer is being asked for its keys",
        }
    }
}
