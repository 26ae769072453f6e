//! The contracts of the ports as named cases.
//!
//! An implementation runs all of them:
//!
//! ```text
//! async fn make() -> Subject { … }
//! twincast_testkit::store_conformance!(make);
//! ```
//!
//! A defect that is found in one implementation becomes a case here, for all of them.

pub mod budgets;
pub mod commits;
pub mod lines;
pub mod links;
pub mod listeners;
pub mod looks;
pub mod permits;
pub mod plans;
pub mod queue;
pub mod random;
pub mod removal;
pub mod retries;
pub mod roster;
pub mod work;

use std::any::Any;
use std::sync::Arc;

use twincast_core::ports::{Roster, Store};

use crate::ManualClock;

/// A store to be tested: empty, and on a clock that the cases move.
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Its clock.
    pub clock: ManualClock,
    _keep: Option<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl Subject {
    /// A store and its clock.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: ManualClock) -> Self {
        Self {
            store,
            clock,
            _keep: None,
        }
    }

    /// Keeps something for as long as the store is used: its folder, a server.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._keep = Some(Box::new(kept));
        self
    }
}

/// A roster to be tested, with the store whose rollouts it has, and their clock.
pub struct RosterSubject {
    /// The roster.
    pub roster: Arc<dyn Roster>,
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Their clock.
    pub clock: ManualClock,
    _keep: Option<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for RosterSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RosterSubject").finish_non_exhaustive()
    }
}

impl RosterSubject {
    /// A roster and what belongs to it.
    #[must_use]
    pub fn new(roster: Arc<dyn Roster>, store: Arc<dyn Store>, clock: ManualClock) -> Self {
        Self {
            roster,
            store,
            clock,
            _keep: None,
        }
    }

    /// Keeps something for as long as the roster is used.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._keep = Some(Box::new(kept));
        self
    }
}

/// Runs a case. The runtime is its own, with time that the case can pause.
///
/// # Panics
/// When the case does, or there is no runtime.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime can be built").block_on(case);
}

/// Asserts that a call was refused in one way.
#[macro_export]
macro_rules! assert_refused {
    ($result:expr, $variant:ident) => {
        match $result {
            Err(twincast_core::ports::StoreError::$variant { .. }) => {}
            other => panic!("not refused as {}: {other:?}", stringify!($variant)),
        }
    };
}

/// One test for each case of the store's contract. `$make` is an `async fn() -> Subject`.
#[macro_export]
macro_rules! store_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::plans, $make().await;
            creating_twice_keeps_the_first
            what_is_not_there_is_told
            names_ascend
            a_save_is_a_compare_and_swap
            a_record_of_another_history_is_refused
            a_plan_is_whole_when_the_store_has_all_of_it
            a_rollout_ends_when_all_is_settled
            a_note_is_no_change
            records_read_back_whole
            a_new_try_leaves_no_trace_of_the_old
            only_the_current_try_is_added_to
            a_repeated_batch_changes_nothing
            batches_come_in_pages
            finished_batches_are_passed_over
            batches_are_released_in_their_order
            what_was_added_is_loaded
        }
        $crate::cases! { $crate::conformance::removal, $make().await;
            what_is_removed_is_gone_with_all_that_belongs_to_it
            only_the_revision_that_was_seen_is_removed
            the_name_of_a_removed_rollout_is_free
        }
        $crate::cases! { $crate::conformance::retries, $make().await;
            a_retry_makes_the_chosen_devices_pending
            preparing_a_retry_twice_changes_nothing
            only_what_can_be_retried_is_lowered
            only_a_rollout_that_prepares_a_retry_is_lowered
            a_retry_waits_for_the_holder_and_fences_a_lapsed_one
            late_feedback_counts_for_its_attempt
        }
        $crate::cases! { $crate::conformance::looks, $make().await;
            only_the_current_look_is_added_to
            nothing_is_added_while_a_retry_is_prepared
            late_batches_are_worked_on
            devices_that_have_left_are_skipped
            other_rollouts_do_not_look
        }
        $crate::cases! { $crate::conformance::work, $make().await;
            one_holder_at_a_time
            a_lease_lapses_and_its_holder_is_fenced
            a_lapsed_lease_that_nobody_took_still_records
            a_batch_that_brings_down_its_holders_is_left_alone
            a_released_batch_is_free
            a_lease_is_asked_for_by_the_right_phase
            a_finished_batch_is_done
            records_merge_in_any_order
            a_record_says_what_is_wanted
            a_record_renews_the_lease
            a_refused_record_writes_nothing
            a_lease_of_an_older_try_is_fenced
            the_first_code_stands
            a_stage_waits_for_the_one_before_it
            tallies_are_by_stage_and_hub
            what_is_left_of_an_aborted_batch_is_skipped
            only_an_abort_skips
            what_others_learned_is_merged
        }
        $crate::cases! { $crate::conformance::commits, $make().await;
            what_is_committed_is_read
            a_change_of_what_has_changed_is_overtaken
            a_change_holds_under_the_record_that_was_read
            budgets_begin_to_count_one_batch_at_a_time
            a_change_of_what_is_gone_is_overtaken
            no_change_is_lost_to_another
        }
        $crate::cases! { $crate::conformance::lines, $make().await;
            a_line_is_kept_for_each_group
            a_line_is_changed_by_comparing
            nobody_is_lost_from_a_line
        }
        $crate::cases! { $crate::conformance::listeners, $make().await;
            a_listener_is_known_by_its_newest_report
            a_listener_says_why_it_does_not_hear
            old_reports_do_not_pile_up
        }
        $crate::cases! { $crate::conformance::links, $make().await;
            a_link_is_known_by_its_newest_report
            links_of_long_ago_do_not_pile_up
        }
        $crate::cases! { $crate::conformance::budgets, $make().await;
            a_batch_is_given_when_its_group_has_room
            what_a_lost_worker_had_counts
            silence_ends
            a_per_cent_is_of_the_whole_group
            all_budgets_hold_at_once
            a_new_try_has_empty_groups
        }
        $crate::cases! { $crate::conformance::permits, $make().await;
            the_quota_is_used_and_not_exceeded
            hubs_have_quotas_of_their_own
            a_rollout_keeps_to_its_own_limit
            a_throttle_holds_everyone_back
            a_throttle_shows_until_it_is_made_up_for
            a_limiter_tells_who_asks_and_how_far_it_is_given_away
            rollouts_share_by_weight
            links_have_a_budget
            a_hub_is_bound_once
            agrees_with_the_arithmetic
        }
        #[test]
        fn agrees_with_the_model() {
            $crate::conformance::random::agrees_with_the_model(async || $make().await);
        }
    };
}

/// One test for each case of the queue's contract. `$make` is a
/// `async fn(limit: usize) -> impl Queue`, a queue in which `limit` dispatches of a hub may wait.
#[macro_export]
macro_rules! queue_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::queue, $make;
            dispatches_come_in_order
            each_hub_has_its_own_line
            what_is_acked_is_gone
            what_is_requeued_comes_back
            a_dropped_ticket_comes_back
            a_dropped_consumer_hands_back_what_it_held
            the_line_is_bounded
            two_consumers_share
            a_consumer_waits_for_what_is_published
            an_abandoned_wait_loses_nothing
            a_consumer_is_given_no_more_than_it_wants
            depth_shows_what_waits_and_who_takes
        }
    };
}

/// One test for each case of the roster's contract. `$make` is an
/// `async fn() -> RosterSubject`.
#[macro_export]
macro_rules! roster_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::roster, $make().await;
            what_is_stored_is_active_until_it_is_retired
            only_the_version_that_ended_is_retired
            one_claim_at_a_time
            a_claim_lapses
            a_look_shows_what_there_is_to_drive
            announcing_never_goes_back
            a_halt_stays_until_it_is_lifted
        }
        $crate::cases! { $crate::conformance::removal, $make().await;
            the_roster_forgets_what_is_removed
        }
    };
}

/// One test for each case. For the two macros above.
#[doc(hidden)]
#[macro_export]
macro_rules! cases {
    ($module:path, $subject:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                use $module as cases;
                $crate::conformance::run(async { cases::$case($subject).await });
            }
        )*
    };
}
