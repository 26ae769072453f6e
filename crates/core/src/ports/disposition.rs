//! How a caller handles an error of a port.

/// How a caller handles an error. Every error of a port has a disposition, and callers decide by
/// the disposition alone. The kind of error only matters for texts, exit codes and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Repeat later: the call itself is correct and may succeed then.
    Retry,
    /// Read again, or give up: the call relies on something changed or deleted, and the same call
    /// fails again.
    Superseded,
    /// Stop: waiting does not help, and this process cannot make the call until an operator has
    /// solved the problem.
    Fatal,
}

#[cfg(test)]
mod tests {
    use super::Disposition::{self, Fatal, Retry, Superseded};
    use crate::ids::HubName;
    use crate::ports::{HubError, HubTrouble, QueueError, StoreError};

    #[test]
    fn errors_of_a_store() {
        let (what, doing) = ("it".to_owned(), "do it".to_owned());
        let table: [(StoreError, Disposition); 7] = [
            (
                StoreError::Unavailable {
                    doing: doing.clone(),
                    source: "away".into(),
                },
                Retry,
            ),
            (
                StoreError::NotWritable {
                    doing: doing.clone(),
                    source: "full".into(),
                },
                Retry,
            ),
            (StoreError::Superseded { what: what.clone() }, Superseded),
            (StoreError::NotFound { what: what.clone() }, Superseded),
            (StoreError::Regressed { what: what.clone() }, Superseded),
            (
                StoreError::Newer {
                    what,
                    found: 2,
                    known: 1,
                },
                Fatal,
            ),
            (
                StoreError::Corrupt {
                    doing,
                    source: "damaged".into(),
                },
                Fatal,
            ),
        ];
        for (error, disposition) in table {
            assert_eq!(error.disposition(), disposition, "{error:?}");
        }
    }

    #[test]
    fn errors_of_a_hub() {
        let table = [
            (HubTrouble::Unreachable, Retry),
            (HubTrouble::Certificate, Fatal),
            (HubTrouble::CertificateName, Fatal),
            (HubTrouble::CertificateDates, Retry),
            (HubTrouble::Tls, Retry),
            (HubTrouble::Unauthorized, Fatal),
            (HubTrouble::BadQuery, Fatal),
            (HubTrouble::Throttled, Retry),
            (HubTrouble::QuotaUsedUp, Retry),
            (HubTrouble::Unavailable, Retry),
            (HubTrouble::Clock, Retry),
            (HubTrouble::Other, Fatal),
        ];
        for (trouble, disposition) in table {
            let error = HubError {
                doing: "do it".into(),
                trouble,
                source: "no".into(),
            };
            assert_eq!(error.disposition(), disposition, "{trouble:?}");
        }
    }

    #[test]
    fn errors_of_a_queue() {
        let full = QueueError::Full {
            hub: HubName::new("h").unwrap(),
            limit: 1,
        };
        let unavailable = QueueError::Unavailable {
            doing: "do it",
            source: "away".into(),
        };
        let closed = QueueError::Closed { doing: "do it" };
        for (error, disposition) in [(full, Retry), (unavailable, Retry), (closed, Fatal)] {
            assert_eq!(error.disposition(), disposition, "{error:?}");
        }
    }
}
