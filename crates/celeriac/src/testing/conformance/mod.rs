//! The suite that every store passes, and every wrapper around one.
//!
//! Each case is a public function of a store and the clock that store was built with; [`store_suite!`](crate::store_suite)
//! makes a test of each. Time moves by hand: a case moves the clock and asks with no wait. Only cases about being woken
//! wait in real time, with a bound that no working store comes near.
//!
//! An outside author runs it so:
//!
//! ```
//! use celeriac::memory::MemoryStore;
//! use celeriac::store::Store;
//!
//! // A future is fine too, and `(store, guard)` keeps a guard, as of a temporary directory, until the case is over.
//! celeriac::store_suite!(memory, |clock| Store::of(MemoryStore::new(clock)));
//! ```

#![allow(clippy::unwrap_used, reason = "a case fails by panicking, as any test does")]

pub mod backend;
pub mod batch;
pub mod broker;
pub mod catalog;
pub mod chord;
pub mod control;
pub mod dead;
pub mod lease;
pub mod listing;
pub mod log;
pub mod pause;
pub mod random;
pub mod revoke;
pub mod transact;

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::backend::{LogRecord, Record, Recorded};
use crate::broker::{Delivery, Place, Reserve, Routed};
use crate::id::{BatchIds, DeliveryTag, QueueName, TaskId, WorkerName};
use crate::protocol::{self, Json, RawMessage, ResultMeta};
use crate::state::{Phase, State};
use crate::store::{Outcome, Store, Transaction};

/// Makes a module of tests, one for each case of the suite, of a name and of how to build a store with a clock: a
/// [`Store`], or a pair of one and a guard to keep. With `at_once` for a name it runs all cases where it stands.
#[macro_export]
macro_rules! store_suite {
    (at_once, |$clock:ident| $make:expr) => {{
        let mut cases = $crate::testing::conformance::Cases::default();
        $crate::store_suite! { @all at_once(cases) |$clock| $make }
        cases.run().await;
    }};
    ($name:ident, |$clock:ident| $make:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "what builds the store may come from the module around")]
            use super::*;

            $crate::store_suite! { @all each |$clock| $make }
        }
    };
    (@all $how:ident $(($cases:ident))? |$clock:ident| $make:expr) => {
            $crate::store_suite! { @cases $how $(($cases))? |$clock| $make;
                broker: [
                    messages_come_in_order_of_publishing
                    lower_priorities_come_first_across_queues
                    priorities_past_nine_count_as_nine
                    queues_take_turns_within_a_priority
                    a_limit_bounds_and_no_queues_give_nothing
                    bytes_and_names_come_back_as_they_were
                    publishing_is_all_or_nothing_but_for_duplicates
                    a_settled_id_may_be_sent_again
                    a_unique_id_is_never_sent_again
                    a_delayed_message_shows_when_due
                    a_waiting_reserve_is_woken_by_a_publish
                    a_waiting_reserve_is_woken_by_a_requeue
                    a_waiting_reserve_takes_what_falls_due
                    a_reserve_that_finds_nothing_ends
                    concurrent_reserves_share_without_overlap
                    queues_are_counted
                    purge_drops_what_waits
                    locate_knows_every_phase
                ]
                batch: [
                    a_batch_is_as_many_messages
                    a_batch_is_sent_once
                    parts_of_a_batch_go_their_own_ways
                    the_forgotten_of_a_batch_leave_the_rest
                    what_is_like_a_batch_is_sent_as_well
                ]
                lease: [
                    an_extended_lease_holds
                    a_passed_lease_is_delivered_again
                    a_lost_lease_cannot_settle
                    restore_leaves_live_leases
                    one_lost_tag_does_not_hurt_the_others
                    a_requeued_message_keeps_its_place
                    a_requeued_message_may_wait
                    uncounted_hand_backs_do_not_count
                    begun_survives_the_loss_of_its_worker
                    what_is_given_back_is_not_begun
                    nothing_is_begun_by_itself
                ]
                pause: [
                    nothing_is_reserved_from_a_paused_queue
                    a_waiting_reserve_is_woken_by_a_resume
                    what_falls_due_waits_on_a_paused_queue
                    what_comes_back_waits_on_a_paused_queue
                    a_paused_queue_takes_and_gives_up_messages
                    paused_queues_are_listed
                    pausing_twice_changes_nothing
                ]
                control: [
                    a_card_comes_back_as_it_was
                    workers_come_and_go
                    commands_come_in_order
                    commands_reach_those_they_name
                    commands_expire
                    commands_wake
                    commands_are_bounded
                    replies_are_gathered
                    replies_wake
                    replies_expire
                    too_much_is_refused
                ]
                dead: [
                    the_buried_keep_their_bytes
                    the_revived_start_over
                    the_dropped_are_gone
                    the_dead_are_paged
                    a_dead_id_is_not_sent_again
                ]
                revoke: [
                    what_waits_is_taken
                    the_taken_outlive_their_taker
                    what_is_held_is_interrupted
                    interrupts_wake
                    a_termination_of_what_is_known_wakes
                    a_termination_names_its_signal
                    a_revoked_task_stays_so_when_handed_back
                    a_retry_does_not_escape
                    asking_twice_changes_nothing
                    termination_may_follow
                    the_finished_and_the_unknown_are_told_apart
                ]
                backend: [
                    every_field_of_a_result_is_kept
                    results_come_in_the_order_asked
                    a_finished_state_stays
                    unfinished_states_follow_each_other
                    waiting_for_a_result_that_is_there
                    waiting_for_a_result_to_come
                    awaiting_a_result
                    waiting_for_a_result_in_vain
                    forget_spares_the_unfinished
                    sweep_goes_by_age
                    the_first_value_of_a_step_stays
                    groups_are_saved
                ]
                log: [
                    positions_have_no_gaps
                    pages_are_bounded
                    an_unknown_task_has_no_log
                    an_ended_log_takes_no_more
                    waiting_for_a_record_to_come
                    waiting_for_the_feed_to_move
                    the_feed_has_every_record_in_order
                ]
                chord: [
                    parts_count_once_and_complete_once
                    parts_come_in_the_order_of_their_index
                    a_chord_opens_with_its_header
                    opening_twice_changes_nothing
                    a_part_of_no_chord_is_ignored
                    an_incomplete_chord_does_not_fire
                    a_chord_fires_once
                    racing_fires_fire_once
                    racing_parts_complete_once
                    what_a_crash_left_behind_is_listed
                ]
                transact: [
                    a_settlement_is_one_step
                    a_retry_is_one_step
                    every_fate_of_a_delivery
                    nothing_is_written_without_the_lease
                    nothing_is_written_without_the_chord
                    neighbours_are_independent
                    racing_settlements_settle_once
                    a_finished_task_sent_again_starts_over
                    the_unfenced_is_unconditional
                ]
                catalog: [
                    what_is_unknown_is_not_listed
                    the_newest_task_comes_first
                    pages_show_each_task_once
                    every_state_is_shown
                    a_run_has_a_worker_and_its_times
                    who_revokes_does_not_run
                    runs_that_end_no_task_are_attempts
                    what_was_put_off_was_not_attempted
                    attempts_are_bounded
                    tags_find_their_tasks
                    messages_ahead_are_counted
                    the_newest_progress_is_told
                    a_record_has_the_message
                    a_task_sent_again_keeps_its_number
                    the_forgotten_is_not_listed
                    a_clock_set_back_hides_no_task
                ]
                listing: [
                    random_lists_agree_with_a_model
                ]
                random: [
                    random_moves_keep_the_rules
                ]
            }
    };
    (@cases $how:ident $(($cases:ident))? |$clock:ident| $make:expr; $($module:ident: [$($case:ident)*])*) => {
        $crate::store_suite! { @module $how $(($cases))? |$clock| $make; $($module: [$($case)*])* }
    };
    (@module each |$clock:ident| $make:expr; $($module:ident: [$($case:ident)*])*) => {
        $($crate::store_suite! { @each |$clock| $make; $module: [$($case)*] })*
    };
    (@module at_once($cases:ident) |$clock:ident| $make:expr; $($module:ident: [$($case:ident)*])*) => {
        $($crate::store_suite! { @at_once($cases) |$clock| $make; $module: [$($case)*] })*
    };
    (@each |$clock:ident| $make:expr; $module:ident: [$($case:ident)*]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let clock = $crate::testing::ManualClock::new();
                let $clock = clock.shared();
                let subject = $crate::testing::conformance::Subject::from($make);
                $crate::testing::conformance::$module::$case(subject.store(), &clock).await;
            }
        )*
    };
    (@at_once($cases:ident) |$clock:ident| $make:expr; $module:ident: [$($case:ident)*]) => {
        $(
            $cases.add(stringify!($case), async {
                let clock = $crate::testing::ManualClock::new();
                let $clock = clock.shared();
                let subject = $crate::testing::conformance::Subject::from($make);
                $crate::testing::conformance::$module::$case(subject.store(), &clock).await;
            });
        )*
    };
}

/// All cases of the suite, for one test: where what the stores need is dear to start. Each needs a store of its own all the
/// same, as under a prefix of its own.
#[derive(Default)]
pub struct Cases<'c>(Vec<(&'static str, Case<'c>)>);

type Case<'c> = Pin<Box<dyn Future<Output = ()> + 'c>>;

/// So many cases run at the same time.
const CASES_AT_ONCE: usize = 16;

impl<'c> Cases<'c> {
    /// One more.
    pub fn add(&mut self, name: &'static str, case: impl Future<Output = ()> + 'c) {
        self.0.push((name, Box::pin(case)));
    }

    /// Runs all of them.
    ///
    /// # Panics
    /// When one of them fails, with its name, once the others are done.
    pub async fn run(self) {
        let caught = self.0.into_iter().map(|(name, case)| async move {
            AssertUnwindSafe(case).catch_unwind().await.is_err().then_some(name)
        });
        let ended: Vec<_> =
            futures_util::stream::iter(caught).buffer_unordered(CASES_AT_ONCE).collect().await;
        let failed: Vec<&str> = ended.into_iter().flatten().collect();
        assert!(failed.is_empty(), "these cases fail: {failed:?}");
    }
}

impl std::fmt::Debug for Cases<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A store under test, and what must live as long as it.
pub struct Subject {
    store: Store,
    _guard: Box<dyn Any + Send + Sync>,
}

impl Subject {
    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Subject").field(&self.store).finish()
    }
}

impl From<Store> for Subject {
    fn from(store: Store) -> Self {
        Self { store, _guard: Box::new(()) }
    }
}

impl<G: Send + Sync + 'static> From<(Store, G)> for Subject {
    fn from((store, guard): (Store, G)) -> Self {
        Self { store, _guard: Box::new(guard) }
    }
}

/// How long deliveries are held unless a case says otherwise.
const LEASE: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);
/// For calls that something else must end; only a store that forgets to wake waits so long, and fails.
const FOREVER: Duration = Duration::from_secs(3600);

/// Ends a case that nothing wakes.
async fn woken<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), call).await.expect("something should have woken this call")
}

/// Runs `call` and, once it has had every chance to begin its wait, `event`.
async fn meanwhile<T>(call: impl Future<Output = T>, event: impl Future<Output = ()>) -> T {
    let later = async {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        event.await;
    };
    woken(async { tokio::join!(call, later).0 }).await
}

fn id(text: &str) -> TaskId {
    TaskId::from(text)
}

fn ids(texts: &[&str]) -> Vec<TaskId> {
    texts.iter().copied().map(TaskId::from).collect()
}

fn queue(text: &str) -> QueueName {
    QueueName::from(text)
}

fn worker(text: &str) -> WorkerName {
    WorkerName::from(text)
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

/// A message for the queue `q`, due now.
fn message(task_id: &str) -> Routed {
    let head = format!(
        r#"{{"content-encoding":"utf-8","content-type":"application/json","headers":{{"task":"t","id":"{task_id}"}},"properties":{{}}}}"#
    );
    Routed {
        task_id: id(task_id),
        task: "t".into(),
        queue: queue("q"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: RawMessage { head: head.into(), body: Bytes::from_static(b"[[],{},{}]") },
    }
}

fn on(queue_name: &str, priority: u8, task_id: &str) -> Routed {
    Routed { queue: queue(queue_name), priority, ..message(task_id) }
}

/// Messages as one caller sends them at once.
pub fn batch_of(size: usize, task: &str, queue_name: &str) -> Vec<Routed> {
    let ids = BatchIds::random();
    let message = |task_id: &TaskId| {
        let headers = protocol::Headers {
            lang: "rust".to_owned(),
            task: task.to_owned(),
            id: task_id.to_string(),
            ..protocol::Headers::default()
        };
        let properties = protocol::Properties::new(task_id.as_str(), queue_name);
        let message = protocol::Message { headers, properties, body: protocol::Body::default() };
        Routed {
            task: task.into(),
            message: message.encode().unwrap(),
            ..on(queue_name, 0, task_id.as_str())
        }
    };
    (0..size).map(|_| message(&ids.next())).collect()
}

/// Publishes to the queue `q`, in this order.
async fn publish(store: &Store, task_ids: &[&str]) {
    let messages = task_ids.iter().map(|task_id| message(task_id)).collect();
    assert!(store.broker.publish(messages).await.unwrap().is_empty(), "{task_ids:?} are new");
}

fn request(queues: &[&str], limit: usize, wait: Duration) -> Reserve {
    let queues = queues.iter().copied().map(QueueName::from).collect();
    Reserve { worker: worker("w"), queues, limit, lease: LEASE, wait, stop: CancellationToken::new() }
}

async fn reserve_from(store: &Store, queues: &[&str], limit: usize) -> Vec<Delivery> {
    store.broker.reserve(&request(queues, limit, Duration::ZERO)).await.unwrap()
}

/// Reserves all there is on `q`.
async fn reserve(store: &Store) -> Vec<Delivery> {
    reserve_from(store, &["q"], 100).await
}

/// Reserves the one message there is on `q`.
async fn reserve_one(store: &Store) -> Delivery {
    let mut deliveries = reserve(store).await;
    assert_eq!(deliveries.len(), 1, "{deliveries:?}");
    deliveries.remove(0)
}

/// Publishes one message to `q`, and reserves it.
async fn held(store: &Store, task_id: &str) -> Delivery {
    publish(store, &[task_id]).await;
    reserve_one(store).await
}

fn tags(deliveries: &[Delivery]) -> Vec<DeliveryTag> {
    deliveries.iter().map(|delivery| delivery.tag.clone()).collect()
}

fn task_ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.task_id.as_str()).collect()
}

async fn ack(store: &Store, delivery: &Delivery) {
    let lost = store.broker.ack(std::slice::from_ref(&delivery.tag)).await.unwrap();
    assert!(lost.is_empty(), "{delivery:?} is held");
}

async fn place(store: &Store, task_id: &str) -> Option<Place> {
    let mut places = store.broker.locate(&[id(task_id)]).await.unwrap();
    assert_eq!(places.len(), 1);
    places.remove(0)
}

async fn phase(store: &Store, task_id: &str) -> Option<Phase> {
    place(store, task_id).await.map(|place| place.phase)
}

/// A state with nothing else.
fn meta(task_id: &str, state: State) -> ResultMeta {
    ResultMeta {
        task_id: id(task_id),
        state,
        result: json("1"),
        traceback: None,
        children: None,
        date_done: None,
        group_id: None,
        parent_id: None,
        extended: None,
    }
}

fn result(task_id: &str, state: State) -> Record {
    Record { results: vec![meta(task_id, state)], ..Record::default() }
}

async fn fetch(store: &Store, task_id: &str) -> Option<ResultMeta> {
    let mut metas = store.backend.fetch(&[id(task_id)]).await.unwrap();
    assert_eq!(metas.len(), 1);
    metas.remove(0)
}

async fn state(store: &Store, task_id: &str) -> Option<State> {
    fetch(store, task_id).await.map(|meta| meta.state)
}

async fn record(store: &Store, record: Record) -> Recorded {
    let mut recorded = store.backend.record(vec![record]).await.unwrap();
    assert_eq!(recorded.len(), 1);
    recorded.remove(0)
}

async fn commit(store: &Store, transaction: Transaction) -> Outcome {
    let mut outcomes = store.transact.commit(vec![transaction]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// What a transaction that completes no chord and sends nothing twice comes to.
fn committed() -> Outcome {
    Outcome::Committed { ready: vec![], duplicates: vec![] }
}

fn written() -> Recorded {
    Recorded::Written { ready: vec![] }
}

fn line(task_id: &str, event: &str, data: &str) -> LogRecord {
    LogRecord { task_id: id(task_id), event: event.into(), data: json(data) }
}

/// The log of a task as `event data` each.
async fn log_of(store: &Store, task_id: &str) -> Option<Vec<String>> {
    let page = store.backend.log(&id(task_id), 0, 1000).await.unwrap()?;
    for (entry, position) in page.entries.iter().zip(1..) {
        assert_eq!(entry.position, position);
    }
    Some(page.entries.iter().map(|entry| format!("{} {}", entry.event, entry.data)).collect())
}
