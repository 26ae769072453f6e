//! The pace of a stage.

use super::quantity::Rate;
use super::ramp::Ramp;
use super::rollout_spec::RolloutSpec;
use crate::ids::StageIndex;
use crate::outcome::Tally;

/// The maximum pace of a stage through each hub.
#[derive(Debug, Clone, PartialEq)]
pub struct StagePace {
    max_rate: Option<Rate>,
    ramp: Option<Ramp>,
    /// The stage counted by the ramp; `None` for the whole rollout.
    of_stage: Option<StageIndex>,
}

impl RolloutSpec {
    /// Returns the rate of a stage: the lower of the stage's and the rollout's rate.
    #[must_use]
    pub fn rate_of(&self, stage: StageIndex) -> Option<Rate> {
        let own = self
            .stages
            .get(usize::from(stage.0))
            .and_then(|stage| stage.rate);
        lower_rate(own, self.rate)
    }

    /// Returns the pace of a stage. A ramp of the stage replaces the rollout's ramp.
    #[must_use]
    pub fn pace_of(&self, stage: StageIndex) -> StagePace {
        let own = self.stages.get(usize::from(stage.0));
        let own = own.and_then(|stage| stage.ramp.clone());
        StagePace {
            max_rate: self.rate_of(stage),
            of_stage: own.is_some().then_some(stage),
            ramp: own.or_else(|| self.ramp.clone()),
        }
    }
}

fn lower_rate(one: Option<Rate>, other: Option<Rate>) -> Option<Rate> {
    match (one, other) {
        (Some(a), Some(b)) => Some(if a < b { a } else { b }),
        (a, b) => a.or(b),
    }
}

impl StagePace {
    /// Creates a constant pace; `None` is as fast as the hub allows.
    #[must_use]
    pub fn constant(max_rate: Option<Rate>) -> Self {
        Self {
            max_rate,
            ramp: None,
            of_stage: None,
        }
    }

    /// Returns the ramp, if any.
    #[must_use]
    pub fn ramp(&self) -> Option<&Ramp> {
        self.ramp.as_ref()
    }

    /// Returns whether the ramp counts only the devices of this stage, and begins with this stage.
    #[must_use]
    pub fn is_of_stage(&self) -> bool {
        self.of_stage.is_some()
    }

    /// Returns the rate after `counted` counted devices; `None` is as fast as the hub allows.
    #[must_use]
    pub fn rate_at(&self, counted: u64) -> Option<Rate> {
        let ramp = self.ramp.as_ref().map(|ramp| ramp.rate_at(counted));
        lower_rate(self.max_rate, ramp)
    }

    /// Returns how many of a rollout's devices the ramp counts; 0 without a ramp.
    #[must_use]
    pub fn counted(&self, tallies: &[Tally]) -> u64 {
        let Some(ramp) = &self.ramp else { return 0 };
        let counts = |tally: &&Tally| self.of_stage.is_none_or(|stage| tally.stage == stage);
        ramp.counted(&Tally::sum(tallies.iter().filter(counts)))
    }

    /// Returns the number of counted devices at which the rate rises next; `None` if the rate does
    /// not rise any more.
    #[must_use]
    pub fn next_step(&self, counted: u64) -> Option<u64> {
        let every = u64::from(self.ramp.as_ref()?.every.max(1));
        let next = (counted / every).checked_add(1)?.checked_mul(every)?;
        (self.rate_at(next) > self.rate_at(counted)).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::HubName;
    use crate::outcome::{Counts, Outcome};

    fn per_minute(rate: Option<Rate>) -> f64 {
        rate.expect("a rate").as_per_minute()
    }

    fn spec(text: &str) -> RolloutSpec {
        let text = format!(
            "{{name: r, target: {{all: true}}, message: {{body: {{text: hi}}, ack: full}}, {text}}}"
        );
        RolloutSpec::read("x", &text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn tally(stage: u16, hub: &str, outcomes: &[(Outcome, u64)]) -> Tally {
        let total = outcomes.iter().map(|(_, n)| n).sum();
        let mut counts = Counts::pending(total);
        for (outcome, n) in outcomes {
            (0..*n).for_each(|_| counts.shift(Outcome::Pending, *outcome));
        }
        Tally {
            stage: StageIndex(stage),
            hub: HubName::new(hub).unwrap(),
            counts,
        }
    }

    #[test]
    fn stage_ramp_overrides_rollout_ramp() {
        let spec = spec(
            "rate: 300/min, ramp: {base: 50/min, factor: 2, every: 10}, stages: [\
             {name: a, percent: 10%}, \
             {name: b, percent: 20%, ramp: {base: 10/min, factor: 10, every: 5, of: succeeded}}]",
        );
        use Outcome::{Delivered, Enqueued, NotFound, Pending, Refused, Rejected, Unknown};
        let tallies = [
            tally(0, "eu", &[(Enqueued, 5), (Rejected, 2), (Unknown, 9)]),
            tally(0, "us", &[(Delivered, 3), (NotFound, 7)]),
            tally(
                1,
                "eu",
                &[(Delivered, 5), (Enqueued, 4), (Refused, 3), (Pending, 8)],
            ),
            tally(2, "us", &[(Pending, 100)]),
        ];
        // `sent` counts devices with a message accepted by the hub, in all stages and hubs.
        let whole = spec.pace_of(StageIndex(0));
        assert_eq!(whole.counted(&tallies), 5 + 2 + 3 + 5 + 4);
        assert_eq!(spec.pace_of(StageIndex(2)), whole, "no pace of its own");
        assert!((per_minute(whole.rate_at(19)) - 100.0).abs() < 1e-9);
        assert_eq!(whole.next_step(19), Some(20));
        assert!((per_minute(whole.rate_at(30)) - 300.0).abs() < 1e-9, "rate");
        assert_eq!(whole.next_step(30), None);

        let own = spec.pace_of(StageIndex(1));
        assert_eq!(own.counted(&tallies), 5);
        assert!((per_minute(own.rate_at(5)) - 100.0).abs() < 1e-9);
        assert_eq!(StagePace::constant(None).rate_at(7), None);
        assert_eq!(StagePace::constant(None).next_step(7), None);
    }

    proptest! {
        /// More counted devices never mean a lower rate, and the rate changes exactly at the next
        /// step.
        #[test]
        fn a_ramp_only_rises(base in 1u32..10_000, factor in 1.01f64..10.0, every in 1u32..5_000, most in 1u32..100_000, counted in 0u64..1_000_000) {
            let spec = spec(&format!("rate: {most}/min, ramp: {{base: {base}/min, factor: {factor}, every: {every}}}"));
            let pace = spec.pace_of(StageIndex(0));
            let now = per_minute(pace.rate_at(counted));
            prop_assert!(now <= f64::from(most) && now >= f64::from(base.min(most)));
            match pace.next_step(counted) {
                None => prop_assert!(per_minute(pace.rate_at(counted + u64::from(every))) <= now),
                Some(next) => {
                    prop_assert!(next > counted && next - counted <= u64::from(every));
                    prop_assert!((per_minute(pace.rate_at(next - 1)) - now).abs() < 1e-9);
                    prop_assert!(per_minute(pace.rate_at(next)) > now);
                }
            }
        }
    }
}
