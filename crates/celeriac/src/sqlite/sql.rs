//! The SQL of the store: one statement a file, whose first lines say what it takes and gives.

macro_rules! queries {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) const $name: &str = include_str!(concat!("queries/", $file, ".sql"));)*

        /// Every statement by the name of its file, so that opening can prove that the layout fits all of them.
        pub(super) const ALL: &[(&str, &str)] = &[$(($file, $name)),*];
    };
}

queries! {
    CHORD_BODY = "chord_body";
    CHORD_COUNT = "chord_count";
    CHORD_DROP = "chord_drop";
    CHORD_FIND = "chord_find";
    CHORD_OPEN = "chord_open";
    CHORD_PART_PUT = "chord_part_put";
    CHORD_PARTS = "chord_parts";
    CHORD_PARTS_DROP = "chord_parts_drop";
    CHORDS_OLD = "chords_old";
    CHORDS_READY = "chords_ready";
    COUNTER_LOAD = "counter_load";
    COUNTER_STORE = "counter_store";
    DEAD_PAGE = "dead_page";
    DEAD_PUT = "dead_put";
    DEAD_TAKE = "dead_take";
    DELAYED_CLEAR = "delayed_clear";
    DELAYED_DUE = "delayed_due";
    DELAYED_NEXT = "delayed_next";
    DELAYED_OVERDUE = "delayed_overdue";
    DELAYED_PUT = "delayed_put";
    DELAYED_TAKE = "delayed_take";
    FEED_END = "feed_end";
    FEED_PAGE = "feed_page";
    GROUP_FIND = "group_find";
    GROUP_SAVE = "group_save";
    GROUPS_DROP_OLD = "groups_drop_old";
    LEASE_ANY_EXPIRED = "lease_any_expired";
    LEASE_BEGIN = "lease_begin";
    LEASE_DROP = "lease_drop";
    LEASE_END = "lease_end";
    LEASE_EXPIRED = "lease_expired";
    LEASE_EXTEND = "lease_extend";
    LEASE_HELD = "lease_held";
    LEASE_PUT = "lease_put";
    LEASE_REVOKE = "lease_revoke";
    LEASE_REVOKED = "lease_revoked";
    LEASE_TAKE = "lease_take";
    LIVE = "live";
    LOG_APPEND = "log_append";
    LOG_BOUNDS = "log_bounds";
    LOG_DROP = "log_drop";
    LOG_END = "log_end";
    LOG_LAST = "log_last";
    LOG_PAGE = "log_page";
    LOG_TRIM = "log_trim";
    PLACE = "place";
    QUEUE_ADD = "queue_add";
    QUEUE_COUNT = "queue_count";
    QUEUE_FIND = "queue_find";
    QUEUE_NAME = "queue_name";
    QUEUE_STATUS = "queue_status";
    READY_ANY = "ready_any";
    READY_CLEAR = "ready_clear";
    READY_CUT = "ready_cut";
    READY_LEASE = "ready_lease";
    READY_PEEK = "ready_peek";
    READY_PUT = "ready_put";
    READY_TAKE = "ready_take";
    RESULT_AGE = "result_age";
    RESULT_DROP = "result_drop";
    RESULT_FETCH = "result_fetch";
    RESULT_FINISHED = "result_finished";
    RESULT_PUT = "result_put";
    RESULT_REOPEN = "result_reopen";
    RESULT_SETTLE = "result_settle";
    RESULT_SLICE = "result_slice";
    RESULT_STATE = "result_state";
    STEP_DROP = "step_drop";
    STEP_FIND = "step_find";
    STEP_PUT = "step_put";
    TASK_AGAIN = "task_again";
    TASK_BARE = "task_bare";
    TASK_DROP = "task_drop";
    TASK_ID = "task_id";
    TASK_INSERT = "task_insert";
    TASK_LOOK = "task_look";
    TASK_MESSAGE = "task_message";
    TASK_MOVE = "task_move";
    TASK_SEQ = "task_seq";
    WAITING_IDS = "waiting_ids";
    WAITING_SETTLE = "waiting_settle";
}
