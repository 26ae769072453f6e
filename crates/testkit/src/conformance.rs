//! The contracts of the ports as named cases.
//!
//! An implementation runs all cases:
//!
//! ```text
//! async fn make() -> Subject { … }
//! twincast_testkit::store_conformance!(make);
//! ```
//!
//! A defect found in an implementation becomes a case here, for all implementations.

pub mod budgets;
pub mod commits;
pub mod group_queues;
pub mod links;
pub mod listeners;
pub mod permits;
pub mod plans;
pub mod queue;
pub mod random;
pub mod registry;
pub mod removal;
pub mod retries;
pub mod scans;
pub mod work;

use std::any::Any;
use std::sync::Arc;

use twincast_core::ports::{RolloutRegistry, Store};

use crate::ManualClock;

/// A store under test: empty, on a clock moved by the cases.
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The store's clock.
    pub clock: ManualClock,
    _keep: Option<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl Subject {
    /// Creates a subject from a store and the store's clock.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: ManualClock) -> Self {
        Self {
            store,
            clock,
            _keep: None,
        }
    }

    /// Keeps a resource for as long as the store is used: a folder, a server.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._keep = Some(Box::new(kept));
        self
    }
}

/// A rollout registry under test, with the store of the rollouts and the common clock.
pub struct RegistrySubject {
    /// The rollout registry.
    pub registry: Arc<dyn RolloutRegistry>,
    /// The store of the rollouts.
    pub store: Arc<dyn Store>,
    /// The common clock.
    pub clock: ManualClock,
    _keep: Option<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for RegistrySubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySubject").finish_non_exhaustive()
    }
}

impl RegistrySubject {
    /// Creates a subject from a registry, the store of the rollouts, and the common clock.
    #[must_use]
    pub fn new(
        registry: Arc<dyn RolloutRegistry>,
        store: Arc<dyn Store>,
        clock: ManualClock,
    ) -> Self {
        Self {
            registry,
            store,
            clock,
            _keep: None,
        }
    }

    /// Keeps a resource for as long as the registry is used.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send) -> Self {
        self._keep = Some(Box::new(kept));
        self
    }
}

/// Runs a case on a separate runtime. The case can pause the runtime's time.
///
/// # Panics
/// If the case panics, or no runtime can be built.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime can be built").block_on(case);
}

/// Asserts that a call is refused with this error variant.
#[macro_export]
macro_rules! assert_refused {
    ($result:expr, $variant:ident) => {
        match $result {
            Err(twincast_core::ports::StoreError::$variant { .. }) => {}
            other => panic!("not refused as {}: {other:?}", stringify!($variant)),
        }
    };
}

/// Generates a test for each case of the store's contract. `$make` is an `async fn() -> Subject`.
#[macro_export]
macro_rules! store_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::plans, $make().await;
            creating_twice_keeps_the_first
            missing_records_are_reported
            names_ascend
            a_save_is_a_compare_and_swap
            a_record_of_another_history_is_refused
            a_plan_is_complete_with_exactly_the_planned_batches
            a_rollout_ends_when_all_is_settled
            notes_do_not_count_as_changes
            records_are_read_back_with_all_fields
            a_new_planning_attempt_discards_the_old_batches
            only_the_current_planning_attempt_adds_batches
            a_repeated_batch_has_no_effect
            batches_come_in_pages
            finished_batches_are_not_open
            open_batches_are_ordered_by_stage_and_sort_key
            added_batches_are_loaded
        }
        $crate::cases! { $crate::conformance::removal, $make().await;
            a_removed_rollout_leaves_no_records
            removal_requires_the_seen_revision
            the_name_of_a_removed_rollout_is_free
        }
        $crate::cases! { $crate::conformance::retries, $make().await;
            a_retry_makes_the_chosen_devices_pending
            a_repeated_retry_preparation_has_no_effect
            only_retriable_outcomes_are_reopened
            only_a_rollout_preparing_a_retry_is_reopened
            a_retry_waits_for_the_holder_and_fences_a_lapsed_lease
            late_failures_do_not_count_for_a_new_attempt
        }
        $crate::cases! { $crate::conformance::scans, $make().await;
            only_the_current_scan_adds_batches
            a_scan_adds_no_batches_while_a_retry_is_prepared
            late_batches_are_worked_on
            departed_pending_devices_are_skipped
            only_continuous_rollouts_have_scans
        }
        $crate::cases! { $crate::conformance::work, $make().await;
            one_holder_at_a_time
            a_lapsed_holder_is_fenced_after_a_new_lease
            a_lapsed_lease_not_taken_over_still_records
            repeated_failed_leases_quarantine_a_batch
            a_released_batch_is_free
            leases_are_granted_only_to_a_running_rollout
            a_finished_batch_is_done
            records_merge_in_any_order
            a_record_returns_the_directive
            a_record_renews_the_lease
            a_refused_record_has_no_effect
            a_lease_of_an_older_planning_attempt_is_fenced
            the_first_refusal_code_is_kept
            a_stage_waits_for_the_preceding_stage
            tallies_are_by_stage_and_hub
            the_rest_of_an_aborted_batch_is_skipped
            only_an_abort_skips
            feedback_is_merged_without_a_lease
        }
        $crate::cases! { $crate::conformance::commits, $make().await;
            a_committed_change_is_read_back
            a_change_of_a_changed_batch_is_overtaken
            a_bound_change_requires_the_current_rollout_record
            concurrent_changes_of_a_budget_are_serialized
            a_change_of_a_missing_batch_is_overtaken
            concurrent_changes_are_not_lost
        }
        $crate::cases! { $crate::conformance::group_queues, $make().await;
            each_group_has_a_separate_queue
            saving_a_queue_is_a_compare_and_swap
            concurrent_joins_are_all_kept
        }
        $crate::cases! { $crate::conformance::listeners, $make().await;
            the_newest_report_of_a_listener_is_kept
            listener_trouble_is_stored_unchanged
            old_reports_are_deleted
        }
        $crate::cases! { $crate::conformance::links, $make().await;
            the_newest_report_of_a_link_is_kept
            old_links_are_deleted
        }
        $crate::cases! { $crate::conformance::budgets, $make().await;
            a_batch_is_leased_when_the_group_has_room
            the_sends_of_a_lost_worker_count
            silent_devices_stop_counting
            a_per_cent_is_of_the_whole_group
            all_budgets_hold_at_once
            a_new_planning_attempt_has_empty_groups
        }
        $crate::cases! { $crate::conformance::permits, $make().await;
            the_quota_is_used_and_not_exceeded
            hubs_have_separate_quotas
            a_rollout_limit_below_the_hub_quota_is_respected
            a_throttle_pauses_and_slows_the_hub
            a_throttle_lowers_the_factor_until_recovery
            limiter_state_shows_reservations
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

/// Generates a test for each case of the queue's contract.
///
/// `$make` is an `async fn(limit: usize) -> impl Queue`. In the queue, `limit` dispatches of a hub
/// may wait.
#[macro_export]
macro_rules! queue_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::queue, $make;
            dispatches_come_in_order
            each_hub_has_a_separate_queue
            acked_dispatches_are_removed
            requeued_dispatches_are_redelivered
            a_dropped_ticket_requeues_the_dispatch
            a_dropped_consumer_requeues_dispatches
            the_queue_is_bounded
            two_consumers_share
            a_consumer_waits_for_dispatches
            an_abandoned_wait_loses_no_dispatch
            a_consumer_gets_at_most_the_limit
            depth_counts_dispatches_and_consumers
        }
    };
}

/// Generates a test for each case of the rollout registry's contract.
///
/// `$make` is an `async fn() -> RegistrySubject`.
#[macro_export]
macro_rules! registry_conformance {
    ($make:path) => {
        $crate::cases! { $crate::conformance::registry, $make().await;
            stored_rollouts_are_active_until_deactivated
            deactivating_an_older_version_has_no_effect
            one_claim_at_a_time
            a_claim_lapses
            a_snapshot_lists_the_active_rollouts
            the_published_version_never_decreases
            a_halt_stays_until_lifted
        }
        $crate::cases! { $crate::conformance::removal, $make().await;
            a_removal_resets_the_registry_entry
        }
    };
}

/// Generates a test for each case. For the macros above.
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
