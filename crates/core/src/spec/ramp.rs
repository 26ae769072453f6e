//! A rate that rises with the outcomes of devices.
//!
//! The current rate of a ramp is a function of counts alone ([`Ramp::rate_at`]). The store holds
//! the counts, so every worker computes the same rate, also after a crash.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Rate;
use crate::outcome::{Counts, Outcome};

/// The largest factor.
pub const MAX_FACTOR: f64 = 100.0;
/// The smallest factor: a smaller factor would give a ramp too many steps.
pub const MIN_FACTOR: f64 = 1.01;
/// The maximum number of devices between two steps.
pub const MAX_EVERY: u32 = 1_000_000_000;

/// A rate through each hub that is multiplied each time so many more devices have been counted. The
/// steps are at whole multiples of `every`: with a base of 50/min, a factor of 2 and 1000 devices,
/// the rate is 50/min, from 1000 devices on 100/min, from 2000 on 200/min, from 3000 on 400/min.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// The initial rate.
    pub base: Rate,
    /// The factor by which the rate is multiplied at each step. 1.01 to 100.
    #[schemars(range(min = 1.01, max = 100.0))]
    pub factor: f64,
    /// The number of devices between two steps. 1 to 1,000,000,000.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub every: u32,
    /// The devices counted by the ramp.
    #[serde(default)]
    pub of: RampOf,
    /// The maximum rate. Default: `rate`, or the hub's quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to: Option<Rate>,
}

/// The devices counted by a ramp, of all hubs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RampOf {
    /// Devices with a message accepted by the hub, regardless of the later outcome.
    #[default]
    Sent,
    /// Devices that have completed the message. Needs `ack: full` or `positive` in the message.
    Succeeded,
}

impl fmt::Display for RampOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sent => "sent",
            Self::Succeeded => "succeeded",
        })
    }
}

impl fmt::Display for Ramp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, factor, every, of) = (self.base, self.factor, self.every, self.of);
        write!(
            f,
            "{base} through each hub, times {factor} after every {every} {of}"
        )?;
        match self.up_to {
            Some(up_to) => write!(f, ", up to {up_to}"),
            None => Ok(()),
        }
    }
}

impl Ramp {
    /// Returns the rate after `counted` counted devices.
    #[must_use]
    pub fn rate_at(&self, counted: u64) -> Rate {
        let steps = i32::try_from(counted / u64::from(self.every.max(1))).unwrap_or(i32::MAX);
        let raised = self.base.as_per_minute() * self.factor.powi(steps);
        let most = self.up_to.unwrap_or(Rate::MAX).as_per_minute();
        Rate::per_minute(raised.min(most)).expect("between the base and the highest rate")
    }

    /// Returns how many devices of `counts` the ramp counts.
    #[must_use]
    pub fn counted(&self, counts: &Counts) -> u64 {
        match self.of {
            RampOf::Sent => counts.sum_of(Outcome::was_enqueued),
            RampOf::Succeeded => counts.sum_of(|outcome| outcome >= Outcome::Delivered),
        }
    }

    /// Returns the problems of the ramp, each with a field and a description.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(MIN_FACTOR..=MAX_FACTOR).contains(&self.factor) {
            let what = format!(
                "is {}; from {MIN_FACTOR} to {MAX_FACTOR} is allowed",
                self.factor
            );
            problems.push(("factor", what));
        }
        if !(1..=MAX_EVERY).contains(&self.every) {
            let what = format!("is {}; from 1 to {MAX_EVERY} is allowed", self.every);
            problems.push(("every", what));
        }
        if let Some(up_to) = self.up_to
            && up_to <= self.base
        {
            let what = format!(
                "is {up_to}, which is not above the base of {}; for a constant rate, use `rate`",
                self.base
            );
            problems.push(("up_to", what));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RolloutSpec;

    fn ramp(text: &str) -> Ramp {
        serde_json::from_value(
            crate::spec::Document::parse("x", text)
                .expect("YAML")
                .to_json()
                .expect("JSON")
                .to_value(),
        )
        .expect("a ramp")
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "powers of two are exact")]
    fn steps_are_at_multiples() {
        let doubling = "{base: 50/min, factor: 2, every: 1000}";
        let capped = "{base: 50/min, factor: 2, every: 1000, up_to: 300/min}";
        let slow = "{base: 60/h, factor: 1.5, every: 10}";
        let single = "{base: 1/min, factor: 100, every: 1}";
        for (text, counted, expected) in [
            (doubling, 0, 50.0),
            (doubling, 1, 50.0),
            (doubling, 999, 50.0),
            (doubling, 1_000, 100.0),
            (doubling, 1_999, 100.0),
            (doubling, 2_000, 200.0),
            (doubling, 2_999, 200.0),
            (doubling, 3_000, 400.0),
            (doubling, 10_000, 51_200.0),
            // The rate stays within the valid rates.
            (doubling, 1_000_000, 1e9),
            (doubling, u64::MAX, 1e9),
            (capped, 2_999, 200.0),
            (capped, 3_000, 300.0),
            (capped, u64::MAX, 300.0),
            (slow, 9, 1.0),
            (slow, 10, 1.5),
            (slow, 20, 2.25),
            (single, 1, 100.0),
            (single, 2, 10_000.0),
        ] {
            let rate = ramp(text).rate_at(counted).as_per_minute();
            assert_eq!(rate, expected, "{text} at {counted}");
        }
    }

    #[test]
    fn invalid_ramps_are_reported() {
        let with = |ramp: &str| {
            let text = format!(
                "name: a\ntarget: {{all: true}}\nmessage: {{body: {{text: x}}}}\nramp: {{{ramp}}}\n"
            );
            RolloutSpec::read("x", &text)
                .map_or_else(|problems| problems.to_string(), |_| String::new())
        };
        assert_eq!(with("base: 50/min, factor: 2, every: 10"), "");
        for (ramp, wrong) in [
            (
                "base: 50/min, factor: 1, every: 10",
                "ramp.factor: is 1; from 1.01 to 100",
            ),
            (
                "base: 50/min, factor: 2, every: 0",
                "ramp.every: is 0; from 1 to",
            ),
            (
                "base: 50/min, factor: 2, every: 10, up_to: 50/min",
                "ramp.up_to: is 50/min, which is not above the base",
            ),
            (
                "base: 50/min, factor: 2, every: 10, of: succeeded",
                "ramp.of: succeeded needs message.ack: full or positive",
            ),
            ("base: 50/min, every: 10", "ramp.factor: is missing"),
        ] {
            let found = with(ramp);
            assert!(found.contains(wrong), "{wrong:?} is not in {found:?}");
        }
        let stage = "name: a\ntarget: {all: true}\nmessage: {body: {text: x}}\nstages: [{name: s, ramp: {base: 1/s, factor: 0.5, every: 1}}]\n";
        let found = RolloutSpec::read("x", stage).unwrap_err().to_string();
        assert!(found.contains("stages[0].ramp.factor: is 0.5"), "{found}");
    }
}
