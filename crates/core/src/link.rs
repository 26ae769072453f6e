//! Whether workers can send through a hub.
//!
//! Every worker reports the condition of its sending link to each of its hubs to the store, at
//! least once in [`REPORTED_EVERY`]. [`LinkObstacle::of`] decides from the reports of all workers
//! whether anything can be sent through a hub, so a stalled rollout can name the reason.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Holder, HubName};
use crate::ports::HubTrouble;
use crate::reports::{Reported, Reports};
use crate::time::Timestamp;

/// The longest interval between two reports of a worker.
pub const REPORTED_EVERY: Duration = Duration::from_secs(5);
/// A worker without a report for longer is gone.
const PRESENT: Duration = Duration::from_secs(15);
/// Shorter trouble is not reported: a link may be replaced within moments.
pub const MIN_TROUBLE: Duration = Duration::from_secs(5);
/// The longest kept reason, in characters.
const REASON: usize = 300;

/// The condition of a worker's sending link to a hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "link", rename_all = "snake_case")]
pub enum LinkState {
    /// Not used so far, or being opened for the first time.
    #[default]
    Unused,
    /// Messages can leave.
    Open,
    /// Nothing can be sent.
    Hindered {
        /// The kind of trouble.
        trouble: HubTrouble,
        /// The human-readable reason.
        reason: String,
    },
}

impl LinkState {
    /// A link over which nothing can be sent. A long reason is cut.
    #[must_use]
    pub fn hindered(trouble: HubTrouble, reason: &str) -> Self {
        Self::Hindered {
            trouble,
            reason: reason.chars().take(REASON).collect(),
        }
    }
}

/// A worker's report on its sending link to a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The worker.
    pub worker: Holder,
    /// How long the link has been in this condition.
    pub lasting: Duration,
    /// The condition.
    pub state: LinkState,
}

/// The newest report of a worker, as returned by the store. Times are ages on the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The worker.
    pub worker: Holder,
    /// How long ago the link came into this condition.
    pub lasting: Duration,
    /// The age of the report.
    pub reported_ago: Duration,
    /// The condition.
    pub state: LinkState,
}

impl LinkStatus {
    /// Whether the worker is still there.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.reported_ago <= PRESENT
    }

    /// The trouble, and how long it has lasted.
    fn obstacle(&self) -> Option<(Duration, LinkObstacle)> {
        match &self.state {
            LinkState::Hindered { trouble, reason } if self.lasting >= MIN_TROUBLE => {
                let (trouble, reason) = (*trouble, reason.clone());
                Some((self.lasting, LinkObstacle { trouble, reason }))
            }
            _ => None,
        }
    }
}

impl From<Reported<LinkState>> for LinkStatus {
    fn from(report: Reported<LinkState>) -> Self {
        Self {
            worker: report.by,
            lasting: report.at_ago.unwrap_or_default(),
            reported_ago: report.reported_ago,
            state: report.state,
        }
    }
}

/// The sending links to hubs, as kept by a store within a single process.
#[derive(Debug, Clone, Default)]
pub struct LinkReports(Reports<LinkState>);

impl LinkReports {
    /// Stores a report at `now`.
    pub fn report(&mut self, hub: &HubName, report: &LinkReport, now: Timestamp) {
        let since = Some(report.lasting);
        self.0
            .report(hub, &report.worker, since, &report.state, now);
    }

    /// The links to a hub, with ages at `now`.
    #[must_use]
    pub fn of(&self, hub: &HubName, now: Timestamp) -> Vec<LinkStatus> {
        self.0.of(hub, now).map(LinkStatus::from).collect()
    }
}

/// The reason why nothing can be sent through a hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkObstacle {
    /// The kind of trouble.
    pub trouble: HubTrouble,
    /// The human-readable reason.
    pub reason: String,
}

impl LinkObstacle {
    /// Returns the trouble of all workers with a hub, taken from the link with the longest trouble.
    /// `None` while a link is open, or while no present worker has had trouble for
    /// [`MIN_TROUBLE`].
    #[must_use]
    pub fn of(links: &[LinkStatus]) -> Option<Self> {
        let present = links.iter().filter(|link| link.is_present());
        if present.clone().any(|link| link.state == LinkState::Open) {
            return None;
        }
        let obstacles = present.filter_map(LinkStatus::obstacle);
        let longest = obstacles.max_by_key(|(lasting, _)| *lasting);
        longest.map(|(_, obstacle)| obstacle)
    }

    /// Returns the longest trouble among the links with trouble, its duration, and the number of
    /// these links, even if other links are open.
    #[must_use]
    pub fn longest(links: &[LinkStatus]) -> Option<(Self, Duration, usize)> {
        let present = links.iter().filter(|link| link.is_present());
        let obstacles: Vec<_> = present.filter_map(LinkStatus::obstacle).collect();
        let count = obstacles.len();
        let (lasting, longest) = obstacles.into_iter().max_by_key(|(lasting, _)| *lasting)?;
        Some((longest, lasting, count))
    }
}

/// A description to follow "the hub".
impl fmt::Display for LinkObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.trouble {
            HubTrouble::Unreachable => "cannot be reached",
            HubTrouble::Certificate => "presents a certificate that is not trusted",
            HubTrouble::CertificateName => "presents a certificate for another name",
            HubTrouble::CertificateDates => "presents a certificate that is not valid now",
            HubTrouble::Tls => "does not speak TLS",
            HubTrouble::Unauthorized => "refuses the key",
            HubTrouble::Throttled => "refuses sends because of its quota",
            HubTrouble::QuotaUsedUp => "has used up its daily quota, until midnight (UTC)",
            HubTrouble::Unavailable => "accepts no messages",
            HubTrouble::Clock => "refuses the expiry times of messages, by its clock",
            HubTrouble::BadQuery | HubTrouble::Other => "cannot be used for sends",
        };
        write!(f, "{what}: {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(worker: &str, lasting: u64, reported: u64, state: LinkState) -> LinkStatus {
        LinkStatus {
            worker: Holder::new(worker).unwrap(),
            lasting: Duration::from_secs(lasting),
            reported_ago: Duration::from_secs(reported),
            state,
        }
    }

    fn away(reason: &str) -> LinkState {
        LinkState::hindered(HubTrouble::Unreachable, reason)
    }

    fn reason(links: &[LinkStatus]) -> Option<String> {
        LinkObstacle::of(links).map(|obstacle| obstacle.reason)
    }

    #[test]
    fn obstacle_is_reported_when_no_link_is_open() {
        let open = LinkState::Open;
        let unused = LinkState::Unused;
        assert_eq!(reason(&[]), None);
        assert_eq!(reason(&[link("a", 600, 1, away("x"))]), Some("x".into()));
        // An idle worker is no evidence that the hub can be reached.
        let idle = link("b", 900, 1, unused.clone());
        assert_eq!(
            reason(&[idle.clone(), link("a", 600, 1, away("x"))]),
            Some("x".into())
        );
        let two = [link("a", 60, 1, away("x")), link("b", 61, 1, away("y"))];
        assert_eq!(reason(&two), Some("y".into()), "the longest");
        let sends = link("c", 1, 15, open.clone());
        assert_eq!(reason(&[two[0].clone(), sends.clone()]), None);
        let expired = link("c", 1, 16, open);
        assert_eq!(reason(&[two[0].clone(), expired]), Some("x".into()));
        assert_eq!(reason(&[link("a", 600, 16, away("x"))]), None, "expired");
        assert_eq!(reason(&[link("a", 4, 1, away("x"))]), None, "too brief");
        assert_eq!(reason(&[link("a", 600, 1, unused)]), None);
        let (longest, _, count) =
            LinkObstacle::longest(&[two[0].clone(), two[1].clone(), sends]).unwrap();
        assert_eq!((longest.reason.as_str(), count), ("y", 2));
    }

    #[test]
    fn stored_link_state_is_bounded_and_reads_back() {
        let state = away(&"é".repeat(1000));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<LinkState>(&text).unwrap(), state);
        assert_eq!(text.chars().filter(|c| *c == 'é').count(), REASON);
        // A newer release may know of other trouble.
        let newer = r#"{"link":"hindered","trouble":"flooded","reason":"r"}"#;
        let read = serde_json::from_str::<LinkState>(newer).unwrap();
        assert_eq!(read, LinkState::hindered(HubTrouble::Other, "r"));
    }
}
