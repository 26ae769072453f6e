//! The rules of a spec for the devices of a tag group: the times of sending, and the budgets.

use super::budget::Budget;
use super::rollout_spec::RolloutSpec;
use super::schedule::{ScheduleState, UnknownZone, ZoneName};
use crate::budget::BudgetGroup;
use crate::message::TTL;
use crate::plan::TagGroup;
use crate::query::TagPath;
use crate::time::{Timestamp, ms};

impl RolloutSpec {
    /// Returns whether devices may have time zones of their own, and therefore other times of
    /// sending.
    #[must_use]
    pub fn has_zones(&self) -> bool {
        let schedule = self.schedule.as_ref();
        schedule.is_some_and(|schedule| schedule.zone_tag.is_some())
    }

    /// Returns whether messages are sent at `now` to the devices of a tag group, and when this
    /// changes.
    #[must_use]
    pub fn schedule_state(&self, group: &TagGroup, now: Timestamp) -> ScheduleState {
        match &self.schedule {
            Some(schedule) => schedule.state_at(now, self.zone_in(group)),
            None => ScheduleState::Open { until: None },
        }
    }

    /// Returns the zone in the tags of a tag group, if the schedule has a `zone_tag`. The zone may
    /// be unknown.
    #[must_use]
    pub fn zone_in<'a>(&self, group: &'a TagGroup) -> Option<&'a str> {
        let tag = self.schedule.as_ref()?.zone_tag.as_ref()?;
        let (_, value) = group.0.iter().find(|(name, _)| name == tag.as_str())?;
        value.as_deref()
    }

    /// Returns the zone in the tags of a tag group, if no zone of this name exists.
    #[must_use]
    pub fn unknown_zone_in<'a>(&self, group: &'a TagGroup) -> Option<&'a str> {
        self.zone_in(group)
            .filter(|zone| zone.parse::<ZoneName>().is_err())
    }

    /// Returns the zone tag, if devices with an unknown zone are left out.
    #[must_use]
    pub fn skips_unknown_zones(&self) -> Option<&TagPath> {
        let schedule = self.schedule.as_ref()?;
        let tag = schedule.zone_tag.as_ref()?;
        (schedule.unknown_zone == UnknownZone::Skip).then_some(tag)
    }

    /// Returns the budget groups of a tag group, in the order of the budgets.
    #[must_use]
    pub fn budget_groups(&self, group: &TagGroup) -> Vec<BudgetGroup> {
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
        let own = budget
            .deadline
            .or(self.message.ttl)
            .map(|duration| duration.0);
        let silence = own.unwrap_or(TTL);
        ms(silence)
    }
}
