//! What every store must do, as test cases: run against each backend and against the HTTP client.
//!
//! A case is an `async fn(&Subject)` that panics when the store does not conform. [`conformance_tests`] makes a
//! test of each:
//!
//! ```ignore
//! mod memory {
//!     async fn subject() -> agl_conformance::Subject { ... }
//!     agl_conformance::conformance_tests!(subject().await);
//!     agl_conformance::local_conformance_tests!(subject().await);
//! }
//! ```
//!
//! The subject's store must be fresh and must take its time from the subject's clock.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a case that fails is a test that fails"
)]

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use agl_store::{Clock, Error, ManualClock, Store};
use agl_types::{
    Attempt, AttemptStatus, AttemptUpdate, AttemptedRollout, Attributes, EnqueueRolloutRequest, JsonMap, Llm,
    NamedResources, Resource, Rollout, RolloutConfig, RolloutQuery, RolloutStatus, RolloutUpdate, Span,
    SpanQuery, StartRollout, Worker, bytes_attribute,
};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy as _, any};
use proptest::prop_oneof;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;

pub mod controllers;
pub mod feed;
pub mod once;
pub mod purge;
pub mod queries;
pub mod queue;
pub mod resources;
pub mod spans;
pub mod waits;
pub mod watchdog;
pub mod workers;

/// The moment at which the clocks of all subjects start.
pub const START: f64 = 1_000_000.0;

/// A fresh store under test.
#[derive(Debug)]
pub struct Subject {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Where its time comes from.
    pub clock: ManualClock,
    _keep: Box<dyn Keep>,
}

trait Keep: Any + Debug + Send + Sync {}

impl<T: Any + Debug + Send + Sync> Keep for T {}

impl Subject {
    /// A store that runs on `clock`, which shows [`START`]. `keep` lives as long as the subject: the folder or the
    /// server that the store needs.
    pub fn new(store: Arc<dyn Store>, clock: ManualClock, keep: impl Any + Debug + Send + Sync) -> Self {
        Self { store, clock, _keep: Box::new(keep) }
    }

    fn clock_now(&self) -> f64 {
        self.clock.now()
    }

    async fn enqueue(&self, input: impl Into<Value>) -> Rollout {
        self.store.enqueue_rollout(EnqueueRolloutRequest::new(input)).await.unwrap()
    }

    async fn enqueue_with(&self, config: RolloutConfig) -> Rollout {
        let request = EnqueueRolloutRequest { config: Some(config), ..EnqueueRolloutRequest::new("task") };
        self.store.enqueue_rollout(request).await.unwrap()
    }

    async fn start(&self) -> AttemptedRollout {
        self.start_with(RolloutConfig::default(), None).await
    }

    async fn start_with(&self, config: RolloutConfig, worker_id: Option<&str>) -> AttemptedRollout {
        let rollout = EnqueueRolloutRequest { config: Some(config), ..EnqueueRolloutRequest::new("task") };
        let request = StartRollout { rollout, worker_id: worker_id.map(str::to_owned) };
        self.store.start_rollout(request).await.unwrap()
    }

    async fn dequeue(&self) -> Option<AttemptedRollout> {
        self.store.dequeue_rollout(None).await.unwrap()
    }

    async fn dequeue_as(&self, worker_id: &str) -> Option<AttemptedRollout> {
        self.store.dequeue_rollout(Some(worker_id.to_owned())).await.unwrap()
    }

    async fn rollout(&self, rollout_id: &str) -> Rollout {
        self.store.get_rollout_by_id(rollout_id).await.unwrap().unwrap().rollout
    }

    async fn status(&self, rollout_id: &str) -> RolloutStatus {
        self.rollout(rollout_id).await.status
    }

    async fn latest(&self, rollout_id: &str) -> Attempt {
        self.store.get_latest_attempt(rollout_id).await.unwrap().unwrap()
    }

    async fn worker(&self, worker_id: &str) -> Worker {
        self.store.get_worker_by_id(worker_id).await.unwrap().unwrap()
    }

    async fn report(&self, attempt: &Attempt, status: AttemptStatus) -> Attempt {
        let update = AttemptUpdate { status: status.into(), ..AttemptUpdate::default() };
        self.store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await.unwrap()
    }

    async fn set_status(&self, rollout_id: &str, status: RolloutStatus) -> Rollout {
        let update = RolloutUpdate { status: status.into(), ..RolloutUpdate::default() };
        self.store.update_rollout(rollout_id, update).await.unwrap()
    }

    async fn spans(&self, rollout_id: &str) -> Vec<Span> {
        let query = SpanQuery { rollout_id: rollout_id.to_owned(), ..SpanQuery::default() };
        self.store.query_spans(query).await.unwrap().items
    }

    async fn add_span(&self, attempt: &Attempt, span_id: u64, sequence_id: i64) -> Option<Span> {
        self.store.add_span(span(attempt, span_id, sequence_id)).await.unwrap()
    }

    /// The ids of the rollouts that a query finds, and how many there are in all.
    async fn find(&self, query: RolloutQuery) -> (Vec<String>, i64) {
        let page = self.store.query_rollouts(query).await.unwrap();
        (page.items.into_iter().map(|view| view.rollout.rollout_id).collect(), page.total)
    }
}

fn span(attempt: &Attempt, span_id: u64, sequence_id: i64) -> Span {
    let trace_id = agl_types::ids::trace_id(1, span_id);
    let span = Span::new("step", trace_id, agl_types::ids::span_id(span_id), START, START + 1.0);
    span.placed(&attempt.rollout_id, &attempt.attempt_id, sequence_id)
}

/// `count` sets of attributes with values of every type, at random.
#[must_use]
pub fn any_attributes(count: usize) -> Vec<Attributes> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        any::<Vec<u8>>().prop_map(|bytes| bytes_attribute(&bytes)),
    ];
    let value = scalar.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((".*", inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    let attributes = vec((".*", value), 0..6).prop_map(Attributes::from_iter);
    let mut runner = TestRunner::default();
    (0..count).map(|_| attributes.new_tree(&mut runner).unwrap().current()).collect()
}

fn config(max_attempts: u32, retry_condition: &[AttemptStatus]) -> RolloutConfig {
    RolloutConfig {
        max_attempts: max_attempts.try_into().unwrap(),
        retry_condition: retry_condition.to_vec(),
        ..RolloutConfig::default()
    }
}

fn model(name: &str) -> NamedResources {
    NamedResources::from_iter([("main".to_owned(), Resource::Llm(Llm::new("http://localhost:1/v1", name)))])
}

fn object(value: Value) -> JsonMap {
    match value {
        Value::Object(map) => map,
        _ => JsonMap::new(),
    }
}

#[track_caller]
fn assert_not_found<T: Debug>(result: Result<T, Error>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), "not_found", "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[track_caller]
fn assert_invalid<T: Debug>(result: Result<T, Error>, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), "invalid", "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// Makes a test of each case that holds in process and over HTTP. The argument is an expression for the [`Subject`],
/// evaluated in each test; it may await.
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::tests_of!($subject;
            queue: start_rollout_skips_the_queue, enqueue_fills_in_defaults, enqueue_many_keeps_order_and_fields,
                dequeue_is_first_in_first_out, dequeue_many_takes_up_to_its_limit, a_limit_of_nothing_takes_nothing,
                a_rollout_that_left_the_queue_is_passed_over, requeuing_puts_a_rollout_at_the_tail_once,
                concurrent_dequeues_claim_distinct_rollouts, start_attempt_takes_a_rollout_out_of_the_queue,
                start_attempt_may_exceed_max_attempts, start_attempt_reopens_what_has_ended,
                news_of_an_old_attempt_changes_nothing_else, failure_leads_to_a_retry_while_attempts_are_left,
                failure_outside_the_retry_condition_is_final, ends_have_times, terminal_statuses_stick,
                reopening_clears_the_end, updates_touch_only_what_they_name, unknown_ids_are_not_found,
                metadata_of_an_attempt_changes_no_status, latest_names_the_highest_attempt,
                rollouts_round_trip, a_cancelled_attempt_is_not_tried_again, a_pause_holds_until_it_is_over,
                a_claim_brings_resources_and_notes_the_start, an_end_stores_the_last_spans_first;
            spans: attributes_of_any_type_are_kept, attributes_without_end_are_refused, written_spans_are_spans, spans_of_many_attempts, a_span_is_kept_and_is_a_heartbeat, a_duplicate_is_refused_and_is_no_heartbeat,
                a_partly_duplicate_batch_keeps_the_new_spans, duplicates_within_a_batch_are_stored_once,
                span_ids_are_unique_within_an_attempt_only, one_counter_serves_all_attempts,
                explicit_ids_push_the_counter, counters_need_no_rollout, ids_are_issued_in_the_order_asked_for,
                drafts_are_numbered_in_order, concurrent_spans_get_consecutive_ids,
                every_field_of_a_span_survives, heartbeats_move_forward, a_batch_is_grouped_by_attempt,
                spans_of_unknown_places_are_refused, a_span_brings_a_queued_rollout_back,
                a_span_does_not_bring_back_a_timeout, a_span_brings_back_an_unresponsive_attempt,
                late_spans_of_an_old_attempt_leave_the_rollout_alone, spans_and_updates_do_not_overwrite_each_other;
            queries: conditions_are_anded_or_ored, rollouts_are_found_by_mode, an_empty_list_matches_nothing, contains_is_literal,
                pages_count_all_matches, bad_pages_are_refused, nulls_have_their_place, ties_keep_insertion_order,
                unknown_sort_fields_are_named, views_carry_the_latest_attempt, attempts_come_in_order,
                spans_are_filtered_within_their_rollout, or_without_conditions_matches_all,
                unknown_places_have_no_spans, spans_are_sorted_by_any_field, workers_are_filtered_and_sorted,
                missing_things_are_none, statistics_count;
            resources: versions_count_up_and_stay_readable, update_creates_what_is_missing,
                resources_are_found_by_id, rollouts_pin_the_latest_resources, custom_resources_survive;
            workers: a_worker_follows_its_attempts, heartbeats_of_workers_change_no_status,
                an_empty_queue_makes_a_worker_idle, the_last_claim_of_many_is_shown,
                an_empty_worker_id_names_nobody, handing_over_frees_the_first_worker,
                the_worker_is_on_every_attempt;
            watchdog: a_timeout_fires_by_itself, the_reading_call_shows_a_passed_deadline,
                silence_counts_from_the_last_sign, a_timeout_counts_from_the_start, timeout_wins_over_silence,
                silence_outside_the_retry_condition_is_final, nothing_in_the_queue_times_out,
                each_attempt_has_its_own_clock, limits_can_be_set_later, many_deadlines_pass_at_once,
                a_deadline_loses_the_worker;
            waits: ended_rollouts_are_returned_at_once, unknown_rollouts_are_left_out,
                a_wait_ends_with_the_last_rollout, answers_keep_the_order_asked_for,
                a_wait_that_runs_out_returns_what_has_ended, all_waiters_wake, a_reopened_rollout_is_waited_for_again,
                a_wait_can_be_dropped;
            once: making_something_twice_makes_it_once, a_retried_dequeue_returns_the_same_claim, a_retried_claim_and_end_happen_once,
                retried_spans_are_answered_as_new, a_retried_update_does_not_undo_what_came_after,
                a_key_stands_for_one_request, concurrent_retries_share_one_answer;
            feed: every_change_is_told_in_order, the_feed_is_filtered, the_feed_resumes,
                a_paused_queue_keeps_waiting_workers_waiting, waiting_workers_are_woken_by_work, a_wait_for_work_runs_out, a_retry_wakes_a_waiting_worker;
            purge: named_rollouts_lose_their_spans, old_rollouts_lose_their_spans, spans_after_a_purge_are_kept,
                a_purge_needs_a_condition;
            controllers: controllers_rollouts_round_trip, creating_again_changes_nothing, controllers_claim_by_name,
                concurrent_claims_have_one_winner, controllers_states_follow_the_rules, an_end_ends_the_attempt_too,
                a_rollout_can_fail_unclaimed, what_controllers_say_is_kept, controllers_rollouts_are_never_queued,
                retries_stay_with_the_controllers, controllers_only_look_at_runners_rollouts,
                lists_come_in_order_of_creation, a_deadline_fails_what_its_controller_left, events_are_spans,
                rewards_of_runners_are_events, events_need_an_attempt, events_are_of_one_attempt,
                completions_come_in_order, completions_follow_what_ends_again, deleting_leaves_nothing,
                what_is_deleted_is_in_no_list, deleting_keeps_the_order_of_the_others,
                models_are_registered_and_removed, retried_calls_of_controllers_count_once, deleting_is_counted;
        );
    };
}

/// Makes a test of each case that 0.3's HTTP interface is too strict for, or that looks after the store itself.
#[macro_export]
macro_rules! local_conformance_tests {
    ($subject:expr) => {
        mod local {
            use super::*;

            $crate::tests_of!($subject; queries: a_limit_of_zero_only_counts; once: keys_are_kept_for_a_day;);
        }
    };
}

/// Makes tests of the cases named.
#[doc(hidden)]
#[macro_export]
macro_rules! tests_of {
    ($subject:expr; $($module:ident: $($case:ident),+;)+) => { $(
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let subject = $subject;
                    $crate::$module::$case(&subject).await;
                }
            )+
        }
    )+ };
}

#[cfg(test)]
mod tests {
    /// A case that is in no list would never run.
    #[test]
    fn every_case_is_listed() {
        let lists = include_str!("lib.rs");
        let sources = [
            include_str!("controllers.rs"),
            include_str!("feed.rs"),
            include_str!("once.rs"),
            include_str!("purge.rs"),
            include_str!("queries.rs"),
            include_str!("queue.rs"),
            include_str!("resources.rs"),
            include_str!("spans.rs"),
            include_str!("waits.rs"),
            include_str!("watchdog.rs"),
            include_str!("workers.rs"),
        ];
        for source in sources {
            for case in source.split("pub async fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
                let listed = [",", ";"].iter().any(|end| lists.contains(&format!(" {case}{end}")));
                assert!(listed, "{case} is in no list");
            }
        }
    }
}
