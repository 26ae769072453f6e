//! Where a rollout's time goes.
//!
//! A rollout's record has an [`Account`]: what it is doing, since when, and for how long it did what before.
//! Whenever it begins to do something else, the time since is booked. So the parts add up to the whole, to the
//! millisecond, whatever is noted and however late; and while nobody drives a rollout, after a crash say, its time
//! is booked to what it was doing.
//!
//! A transition books at its very moment. What a running rollout does changes without one, too: that is noted by
//! its driver, at once after a transition, and then once in [`NOTED_EVERY`] at the most.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::budget::FullGroup;
use crate::gate::{Next, WaitsFor};
use crate::ids::HubName;
use crate::link::Impasse;
use crate::rollout::{Event, Phase, Rollout};
use crate::spec::Opening;
use crate::time::{Timestamp, ms};

/// How often it is noted, at the most, that a running rollout does something else. What lasts for less may be
/// booked to what came before or after it.
pub const NOTED_EVERY: Duration = Duration::from_secs(5);

/// The most hubs that a text names.
const NAMED: usize = 3;

/// What a rollout is doing. It does one of these at any time.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It is accepted, and waits for its turn to be planned.
    #[default]
    Queued,
    /// Its devices are being found.
    Planning,
    /// Something is to be sent, and nothing of what is below keeps it.
    Sending,
    /// Something is to be sent, and every hub that it is to be sent through has refused sends for its quota
    /// of late: its limiter has not climbed back to the quota yet.
    Throttled,
    /// Something is to be sent, and there is no way for it: nothing can be sent through any of its hubs, no worker is
    /// there, or the queue cannot be reached.
    Blocked,
    /// All of a stage was sent, and its gate waits for what the devices say, as its budgets and its end may do.
    Feedback,
    /// Nothing can be said before the hub is heard, and it is not.
    Evidence,
    /// All of a stage was sent, and its gate waits for the end of the bake, or for its metrics.
    Baking,
    /// An approval is all that a stage's gate waits for.
    Approval,
    /// Something is to be sent, and the schedule does not let it.
    OutsideWindow,
    /// All was sent, and devices may join.
    Joiners,
    /// It is paused.
    Paused,
    /// All rollouts are stopped.
    Halted,
    /// It is being aborted.
    Aborting,
    /// It is over. Counts only if it was taken up again later.
    Over,
}

impl Activity {
    /// All of them, in the order of a rollout's life.
    pub const ALL: [Self; 15] = [
        Self::Queued,
        Self::Planning,
        Self::Sending,
        Self::Throttled,
        Self::Blocked,
        Self::Feedback,
        Self::Evidence,
        Self::Baking,
        Self::Approval,
        Self::OutsideWindow,
        Self::Joiners,
        Self::Paused,
        Self::Halted,
        Self::Aborting,
        Self::Over,
    ];

    /// Its name as it is written in files and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Planning => "planning",
            Self::Sending => "sending",
            Self::Throttled => "throttled",
            Self::Blocked => "blocked",
            Self::Feedback => "feedback",
            Self::Evidence => "evidence",
            Self::Baking => "baking",
            Self::Approval => "approval",
            Self::OutsideWindow => "outside_window",
            Self::Joiners => "joiners",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Aborting => "aborting",
            Self::Over => "over",
        }
    }

    /// The same for people.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Queued => "waiting to be planned",
            Self::Planning => "planning",
            Self::Sending => "sending",
            Self::Throttled => "throttled by the hub",
            Self::Blocked => "without a way to the hub",
            Self::Feedback => "waiting for feedback",
            Self::Evidence => "waiting to hear the hub",
            Self::Baking => "baking",
            Self::Approval => "waiting for an approval",
            Self::OutsideWindow => "outside its window",
            Self::Joiners => "waiting for devices to join",
            Self::Paused => "paused",
            Self::Halted => "stopped with all rollouts",
            Self::Aborting => "aborting",
            Self::Over => "over, until it was taken up again",
        }
    }

    /// What a rollout does in a phase, as far as the phase says it.
    #[must_use]
    fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Accepted => Self::Queued,
            Phase::Planning => Self::Planning,
            Phase::Running => Self::Sending,
            Phase::Paused { .. } => Self::Paused,
            Phase::Halted { .. } => Self::Halted,
            Phase::Aborting { .. } => Self::Aborting,
            Phase::Aborted { .. }
            | Phase::Succeeded
            | Phase::FinishedWithFailures
            | Phase::Failed { .. } => Self::Over,
        }
    }

    /// What a rollout does that runs, by what is next. `None` when that is an event, which says it itself.
    #[must_use]
    pub fn of_next(next: &Next, way: Way) -> Option<Self> {
        match next {
            Next::Send | Next::Wait(WaitsFor::Sends { .. }) => Some(match way {
                Way::Clear => Self::Sending,
                Way::Throttled => Self::Throttled,
                Way::Blocked => Self::Blocked,
                Way::OutsideWindow => Self::OutsideWindow,
                Way::HeldBack => Self::Feedback,
            }),
            Next::Wait(WaitsFor::Retry) => Some(Self::Sending),
            Next::Wait(WaitsFor::Joiners { .. }) => Some(Self::Joiners),
            Next::Measure | Next::Wait(WaitsFor::Silent { .. } | WaitsFor::Answers { .. }) => {
                Some(Self::Feedback)
            }
            Next::Wait(WaitsFor::Evidence { .. }) => Some(Self::Evidence),
            Next::Wait(WaitsFor::Bake { .. } | WaitsFor::Metric { .. }) => Some(Self::Baking),
            Next::Wait(WaitsFor::Approval { .. } | WaitsFor::ApprovalToBeNoted) => {
                Some(Self::Approval)
            }
            Next::Happened(_) | Next::Over => None,
        }
    }
}

/// Whether what is to be sent can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It can.
    Clear,
    /// More slowly than the quota: see [`Activity::Throttled`].
    Throttled,
    /// There is no way: see [`Activity::Blocked`].
    Blocked,
    /// The schedule does not let it.
    OutsideWindow,
    /// Its budgets do not let it, until devices that are in progress are heard of.
    HeldBack,
}

/// The reason why nothing of a rollout is sent, as its driver has seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Words that follow "waits for".
    pub waits_for: String,
    /// The end, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Hold {
    /// A schedule that is closed; `None` while it is open.
    #[must_use]
    pub fn of_schedule(opening: &Opening) -> Option<Self> {
        let until = match opening {
            Opening::Open { until } | Opening::Closed { until, .. } => *until,
        };
        let waits_for = opening.waits_for()?;
        Some(Self { waits_for, until })
    }

    /// Budgets without room; `None` when none is full.
    #[must_use]
    pub fn of_budgets(full: &[FullGroup]) -> Option<Self> {
        let waits_for = FullGroup::waits_for(full)?;
        let until = None;
        Some(Self { waits_for, until })
    }

    /// Hubs that something is to be sent through, and that nothing can be sent through. `others` are those that it can.
    /// `None` when there are none.
    #[must_use]
    pub fn of_hubs(stuck: &[(HubName, Impasse)], others: usize) -> Option<Self> {
        let named = stuck.iter().take(NAMED);
        let mut parts: Vec<_> = named.map(|(hub, is)| is.of_hub(hub)).collect();
        match stuck.len() {
            0 => return None,
            n if n > NAMED => parts.push(format!("and {} more hubs", n - NAMED)),
            _ => {}
        }
        match others {
            0 => {}
            1 => parts.push("1 other hub goes on".to_owned()),
            n => parts.push(format!("{n} other hubs go on")),
        }
        let waits_for = parts.join("; ");
        let until = None;
        Some(Self { waits_for, until })
    }

    /// A hub whose batches no worker takes.
    #[must_use]
    pub fn of_workers(hub: &HubName) -> Self {
        let waits_for = format!("a worker: none takes the batches of hub {hub}");
        let until = None;
        Self { waits_for, until }
    }

    /// Hubs that have refused sends for their quota of late.
    #[must_use]
    pub fn of_throttle(hubs: &BTreeSet<&HubName>) -> Self {
        let names: Vec<_> = hubs.iter().take(NAMED).map(|hub| hub.as_str()).collect();
        let names = match hubs.len().saturating_sub(NAMED) {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        };
        let waits_for =
            format!("the quota of hub {names}: it has refused sends of late, so they are slower");
        let until = None;
        Self { waits_for, until }
    }

    /// A queue that takes no dispatches; `why` is for people.
    #[must_use]
    pub fn of_queue(why: &str) -> Self {
        let waits_for = format!("the queue to take dispatches: {why}");
        let until = None;
        Self { waits_for, until }
    }

    /// The hold that ends first.
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        let end = |hold: &Self| (hold.until.is_none(), hold.until);
        if end(&other) < end(&self) {
            other
        } else {
            self
        }
    }
}

/// For how long a rollout has done what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Milliseconds, up to `since`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    booked: BTreeMap<Activity, u64>,
    /// What it is doing.
    doing: Activity,
    /// Since when, or since the last booking.
    since: Timestamp,
    /// When a driver last noted something, since the last transition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noted_at: Option<Timestamp>,
    /// The reason why nothing is sent, as far as a driver has noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<Hold>,
}

impl Account {
    /// That of a rollout which was just accepted.
    #[must_use]
    pub fn opened(at: Timestamp) -> Self {
        Self {
            since: at,
            ..Self::default()
        }
    }

    /// What the rollout is doing, as far as it was noted.
    #[must_use]
    pub fn doing(&self) -> Activity {
        self.doing
    }

    /// Words for what the sends wait for at `now`, as far as a driver has noted them.
    #[must_use]
    pub fn held_back(&self, now: Timestamp) -> Option<&str> {
        let hold = self.hold.as_ref();
        let hold = hold.filter(|hold| hold.until.is_none_or(|until| now < until));
        hold.map(|hold| hold.waits_for.as_str())
    }

    /// Books the time up to `now`. A clock that was put back books nothing until it has caught up.
    fn begin(&mut self, doing: Activity, now: Timestamp) {
        let passed = now.since(self.since);
        if !passed.is_zero() {
            *self.booked.entry(self.doing).or_default() += ms(passed);
            self.since = now;
        }
        self.doing = doing;
    }

    /// Where the time has gone up to `now`; up to its end, for a rollout that is over.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> TimeSpent {
        let mut parts = self.booked.clone();
        if self.doing != Activity::Over {
            *parts.entry(self.doing).or_default() += ms(now.since(self.since));
        }
        TimeSpent(parts)
    }
}

impl Rollout {
    /// Where its time has gone up to `now`, or up to its end.
    #[must_use]
    pub fn time_spent(&self, now: Timestamp) -> TimeSpent {
        self.own_account(&self.phase).at(now)
    }

    /// The record with what it is doing now, and why nothing is sent; `None` if that is noted, or is not to be noted yet. It has the same
    /// version: nothing has happened, and whoever does not know of it overwrites it without harm.
    #[must_use]
    pub fn noting(&self, doing: Activity, hold: Option<Hold>, now: Timestamp) -> Option<Self> {
        let mut account = self.own_account(&self.phase);
        let is_early = |at: Timestamp| at <= now && now.since(at) < NOTED_EVERY;
        if self.phase != Phase::Running
            || (account.doing == doing && account.hold == hold)
            || account.noted_at.is_some_and(is_early)
        {
            return None;
        }
        account.begin(doing, now);
        account.noted_at = Some(now);
        account.hold = hold;
        Some(Self {
            account,
            ..self.clone()
        })
    }

    /// Books what an event says, which has led to this phase from `before`.
    pub(crate) fn book(&mut self, before: &Phase, event: &Event, now: Timestamp) {
        let mut account = self.own_account(before);
        let is_new_phase = before.as_str() != self.phase.as_str();
        let doing = match event {
            Event::ApprovalAwaited { .. } => Activity::Approval,
            Event::StagePassed { .. } => Activity::of(&self.phase),
            _ if is_new_phase => Activity::of(&self.phase),
            _ => account.doing,
        };
        account.begin(doing, now);
        account.noted_at = None;
        account.hold = None;
        self.account = account;
    }

    /// Its account while it is in `phase`. A record that is older than accounts has spent all the time before
    /// that phase on sending.
    fn own_account(&self, phase: &Phase) -> Account {
        if self.account != Account::default() {
            return self.account.clone();
        }
        let mut account = Account::opened(self.created_at);
        account.doing = Activity::Sending;
        account.begin(Activity::of(phase), self.changed_at);
        account
    }
}

/// For how long a rollout did what. Written as seconds, with their `total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeSpent(BTreeMap<Activity, u64>);

impl TimeSpent {
    /// All of it: from when the rollout was accepted to its end, or to now.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_millis(self.0.values().sum())
    }

    /// How long it did one thing.
    #[must_use]
    pub fn on(&self, activity: Activity) -> Duration {
        Duration::from_millis(self.0.get(&activity).copied().unwrap_or(0))
    }

    /// Whole seconds for each activity, which add up to those of the total: each is the difference of two
    /// sums that were rounded down.
    #[must_use]
    pub fn seconds(&self) -> [(Activity, u64); Activity::ALL.len()] {
        let mut sum = Duration::ZERO;
        Activity::ALL.map(|activity| {
            let before = sum.as_secs();
            sum += self.on(activity);
            (activity, sum.as_secs() - before)
        })
    }
}

impl Serialize for TimeSpent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Activity::ALL.len() + 1))?;
        map.serialize_entry("total", &self.total().as_secs())?;
        for (activity, seconds) in self.seconds() {
            map.serialize_entry(activity.as_str(), &seconds)?;
        }
        map.end()
    }
}

/// Back from the seconds; the total is their sum.
impl<'de> Deserialize<'de> for TimeSpent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = BTreeMap::<String, u64>::deserialize(deserializer)?;
        let on = |activity: Activity| Some((activity, seconds.get(activity.as_str())? * 1_000));
        Ok(Self(Activity::ALL.into_iter().filter_map(on).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::StageName;
    use crate::outcome::{Counts, Outcome};
    use crate::rollout::Word;
    use crate::spec::{OnFailure, RolloutSpec};

    const START: Timestamp = Timestamp(1_790_000_000_000);

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn accepted() -> Rollout {
        let spec = "{name: a, target: {all: true}, message: {body: {text: x}}, \
                    stages: [{name: canary, percent: 10%, gate: {approval: {}}}]}";
        let spec = RolloutSpec::read("x", spec).unwrap();
        Rollout::accepted(spec, BTreeMap::default(), START)
    }

    fn planned() -> Event {
        let plan = serde_json::json!({
            "devices": 10, "batches": 1, "digest": "", "checksum": {"batches": 0, "devices": 0, "sum": 0}, "hubs": [], "excluded": [], "repeated": 0, "stages": []
        });
        Event::PlanCompleted {
            plan: serde_json::from_value(plan).unwrap(),
        }
    }

    fn stage() -> StageName {
        StageName::new("canary").unwrap()
    }

    fn happens(rollout: &mut Rollout, event: Event, seconds: u64) {
        *rollout = rollout.after(event, at(seconds)).unwrap().unwrap();
    }

    /// The parts that are not zero, in seconds.
    fn parts(rollout: &Rollout, seconds: u64) -> Vec<(&'static str, u64)> {
        let spent = rollout.time_spent(at(seconds)).seconds();
        let spent = spent.into_iter().filter(|(_, seconds)| *seconds > 0);
        spent
            .map(|(activity, seconds)| (activity.as_str(), seconds))
            .collect()
    }

    #[test]
    fn a_life_is_booked_to_what_was_done() {
        let mut rollout = accepted();
        happens(&mut rollout, Event::PlanningStarted, 1);
        happens(&mut rollout, planned(), 11);
        rollout = rollout.noting(Activity::Throttled, None, at(12)).unwrap();
        assert_eq!(
            rollout.noting(Activity::Throttled, None, at(13)),
            None,
            "known"
        );
        assert_eq!(
            rollout.noting(Activity::Sending, None, at(16)),
            None,
            "too soon"
        );
        rollout = rollout.noting(Activity::Sending, None, at(17)).unwrap();
        let stage = stage();
        let sent = Event::StageSent {
            stage: stage.clone(),
        };
        happens(&mut rollout, sent, 20);
        // At once, for a transition came before.
        rollout = rollout.noting(Activity::Baking, None, at(20)).unwrap();
        let ripe = Event::ApprovalAwaited {
            stage: stage.clone(),
        };
        happens(&mut rollout, ripe, 50);
        let pause = Event::PauseRequested {
            reason: "lunch".into(),
        };
        happens(&mut rollout, pause, 60);
        assert_eq!(
            rollout.noting(Activity::Sending, None, at(61)),
            None,
            "it is paused"
        );
        happens(
            &mut rollout,
            Event::ResumeRequested {
                word: Word::default(),
            },
            90,
        );
        rollout = rollout.noting(Activity::Approval, None, at(90)).unwrap();
        let reason = "approved".to_owned();
        happens(&mut rollout, Event::StagePassed { stage, reason }, 100);
        let before_its_end = [
            ("queued", 1),
            ("planning", 10),
            ("sending", 14),
            ("throttled", 5),
            ("baking", 30),
            ("approval", 20),
            ("paused", 30),
        ];
        assert_eq!(parts(&rollout, 110), before_its_end);
        let mut counts = Counts::pending(1);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        happens(&mut rollout, Event::AllSettled { counts }, 110);
        assert_eq!(parts(&rollout, 9_999), before_its_end, "it is over");

        let json = serde_json::to_value(rollout.time_spent(at(0))).unwrap();
        assert_eq!((&json["total"], &json["halted"]), (&110.into(), &0.into()));
        let text = serde_json::to_string(&rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), rollout);
    }

    #[test]
    fn what_keeps_sends_is_noted_until_it_is_over() {
        let hold = |seconds: Option<u64>| Hold {
            waits_for: format!("{seconds:?}"),
            until: seconds.map(at),
        };
        let mut rollout = accepted();
        happens(&mut rollout, Event::PlanningStarted, 1);
        happens(&mut rollout, planned(), 11);
        let closed = |until| Some(hold(Some(until)));
        rollout = rollout
            .noting(Activity::OutsideWindow, closed(60), at(12))
            .unwrap();
        let again = |until, now| rollout.noting(Activity::OutsideWindow, closed(until), at(now));
        assert_eq!(again(60, 30), None, "known");
        assert_eq!(again(50, 14), None, "too soon");
        let earlier = again(50, 17).unwrap();
        assert_eq!(earlier.account.held_back(at(49)), Some("Some(50)"));
        assert_eq!(rollout.account.held_back(at(59)), Some("Some(60)"));
        assert_eq!(rollout.account.held_back(at(60)), None, "over");
        assert_eq!(parts(&earlier, 20), parts(&rollout, 20));
        let text = serde_json::to_string(&rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), rollout);
        let reason = "lunch".to_owned();
        happens(&mut rollout, Event::PauseRequested { reason }, 20);
        assert_eq!(rollout.account.held_back(at(21)), None, "it is paused");

        let (first, last, never) = (hold(Some(1)), hold(Some(2)), hold(None));
        assert_eq!(last.clone().sooner(first.clone()), first);
        assert_eq!(never.clone().sooner(last.clone()), last);
        assert_eq!(last.clone().sooner(never), last);
    }

    #[test]
    fn a_record_without_an_account_adds_up_too() {
        let mut rollout = accepted();
        happens(&mut rollout, Event::PlanningStarted, 5);
        rollout.account = Account::default();
        assert_eq!(parts(&rollout, 9), [("planning", 4), ("sending", 5)]);
        happens(&mut rollout, planned(), 15);
        assert_eq!(parts(&rollout, 16), [("planning", 10), ("sending", 6)]);
    }

    #[test]
    fn seconds_add_up_however_they_are_broken() {
        let mut parts = BTreeMap::new();
        for activity in Activity::ALL {
            parts.insert(activity, 999);
        }
        let spent = TimeSpent(parts);
        assert_eq!(spent.total().as_secs(), 14);
        let seconds = spent.seconds();
        assert_eq!(seconds.iter().map(|(_, seconds)| seconds).sum::<u64>(), 14);
        assert!(seconds.iter().all(|(_, seconds)| *seconds <= 1));
    }

    #[test]
    fn what_is_next_says_what_is_done() {
        use Activity as A;
        let until = at(1);
        let waits = |waits| Next::Wait(waits);
        let table = [
            (
                Next::Send,
                [
                    A::Sending,
                    A::Throttled,
                    A::Blocked,
                    A::OutsideWindow,
                    A::Feedback,
                ],
            ),
            (
                waits(WaitsFor::Silent { devices: 1, until }),
                [A::Feedback; 5],
            ),
            (
                waits(WaitsFor::Evidence {
                    devices: 1,
                    in_the_way: String::new(),
                }),
                [A::Evidence; 5],
            ),
            (Next::Measure, [A::Feedback; 5]),
            (waits(WaitsFor::Bake { until }), [A::Baking; 5]),
            (waits(WaitsFor::Approval { until: None }), [A::Approval; 5]),
            (waits(WaitsFor::Joiners { look: None }), [A::Joiners; 5]),
        ];
        for (next, expected) in table {
            let ways = [
                Way::Clear,
                Way::Throttled,
                Way::Blocked,
                Way::OutsideWindow,
                Way::HeldBack,
            ];
            let done = ways.map(|way| Activity::of_next(&next, way).unwrap());
            assert_eq!(done, expected, "{next:?}");
        }
        assert_eq!(Activity::of_next(&Next::Over, Way::Clear), None);
    }

    /// Whatever may happen to a rollout.
    fn event(number: usize) -> Event {
        let reason = || "r".to_owned();
        let mut counts = Counts::pending(1);
        counts.shift(Outcome::Pending, Outcome::Enqueued);
        let events = [
            Event::PlanningStarted,
            planned(),
            Event::PauseRequested { reason: reason() },
            Event::ResumeRequested {
                word: Word::default(),
            },
            Event::HaltRequested { reason: reason() },
            Event::HaltLifted {
                word: Word::default(),
            },
            Event::StageSent { stage: stage() },
            Event::ApprovalAwaited { stage: stage() },
            Event::Approved {
                stage: stage(),
                word: Word::default(),
            },
            Event::GateFailed {
                stage: stage(),
                reason: reason(),
                then: OnFailure::Pause,
            },
            Event::StagePassed {
                stage: stage(),
                reason: reason(),
            },
            Event::AbortRequested { reason: reason() },
            Event::AllSettled { counts },
        ];
        events[number % events.len()].clone()
    }

    proptest! {
        /// Events and notes at any times, illegal ones passed over, records lost (a driver that writes an older one
        /// over what another has noted), the clock put back: it adds up from the first to the latest time seen.
        #[test]
        fn it_always_adds_up(
            steps in prop::collection::vec((0u64..20_000, 0usize..30, 0usize..Activity::ALL.len() - 1, 0u64..40), 0..120), end in 0u64..100_000,
        ) {
            let mut rollout = accepted();
            let (mut now, mut latest) = (START, START);
            let mut ended = None;
            let mut older = (rollout.clone(), latest);
            for (later, number, doing, back) in steps {
                now = if back == 0 { Timestamp(now.0 - later.min(now.0 - START.0)) } else { Timestamp(now.0 + later) };
                let next = if number < 18 {
                    rollout.after(event(number), now).ok().flatten()
                } else if number < 28 {
                    older = (rollout.clone(), latest);
                    // All but `Over`, which only an end says.
                    rollout.noting(Activity::ALL[doing], None, now)
                } else {
                    if older.0.version == rollout.version {
                        (rollout, latest) = older.clone();
                    }
                    None
                };
                if let Some(next) = next {
                    latest = latest.max(now);
                    rollout = next;
                }
                if rollout.phase.is_ended() {
                    ended.get_or_insert(latest);
                }
            }
            let until = now.max(latest).plus(Duration::from_millis(end));
            let spent = rollout.time_spent(until);
            let until = ended.unwrap_or(until);
            prop_assert_eq!(spent.total(), until.since(START));
            let sum: Duration = Activity::ALL.iter().map(|activity| spent.on(*activity)).sum();
            prop_assert_eq!(sum, spent.total());
            let seconds: u64 = spent.seconds().iter().map(|(_, seconds)| seconds).sum();
            prop_assert_eq!(seconds, spent.total().as_secs());
        }
    }
}
