//! What a spec says of the devices of one tag group: when they are sent to, and which budgets count them.

use super::budget::Budget;
use super::rollout_spec::RolloutSpec;
use super::schedule::{Opening, UnknownZone, ZoneName};
use crate::budget::BudgetGroup;
use crate::message::TTL;
use crate::plan::Group;
use crate::query::TagPath;
use crate::time::{Timestamp, ms};

impl RolloutSpec {
    /// Devices may have time zones of their own, and so be sent to when others are not.
    #[must_use]
    pub fn has_zones(&self) -> bool {
        let schedule = self.schedule.as_ref();
        schedule.is_some_and(|schedule| schedule.zone_tag.is_some())
    }

    /// Whether messages are sent at `now` to the devices of a tag group, and until when that is so.
    #[must_use]
    pub fn opening(&self, group: &Group, now: Timestamp) -> Opening {
        match &self.schedule {
            Some(schedule) => schedule.at(now, self.zone_in(group)),
            None => Opening::Open { until: None },
        }
    }

    /// What the devices of a tag group say is their zone, if the schedule goes by that.
    #[must_use]
    pub fn zone_in<'a>(&self, group: &'a Group) -> Option<&'a str> {
        let tag = self.schedule.as_ref()?.zone_tag.as_ref()?;
        let (_, value) = group.0.iter().find(|(name, _)| name == tag.as_str())?;
        value.as_deref()
    }

    /// The value that the devices of a tag group have as their zone, if no zone has that name.
    #[must_use]
    pub fn unknown_zone_in<'a>(&self, group: &'a Group) -> Option<&'a str> {
        self.zone_in(group)
            .filter(|zone| zone.parse::<ZoneName>().is_err())
    }

    /// The tag by which devices with an unknown zone are left out, if they are.
    #[must_use]
    pub fn skips_unknown_zones(&self) -> Option<&TagPath> {
        let schedule = self.schedule.as_ref()?;
        let tag = schedule.zone_tag.as_ref()?;
        (schedule.unknown_zone == UnknownZone::Skip).then_some(tag)
    }

    /// The groups by which the devices of a tag group are held back, in the order of the budgets.
    #[must_use]
    pub fn budget_groups(&self, group: &Group) -> Vec<BudgetGroup> {
        let of = |budget: &Budget| {
            let own = group.0.iter().find(|(tag, _)| tag == budget.tag.as_str());
            let value = own.and_then(|(_, value)| value.as_ref())?;
            Some(BudgetGroup {
                group: format!("{}={value}", budget.tag),
                limit: budget.at_most.limit(),
                silent_ms: self.silence(budget),
            })
        };
        self.budgets.iter().filter_map(of).collect()
    }

    fn silence(&self, budget: &Budget) -> u64 {
        let own = budget.deadline.or(self.message.ttl).map(|span| span.0);
        let silence = own.unwrap_or(TTL);
        ms(silence)
    }
}
