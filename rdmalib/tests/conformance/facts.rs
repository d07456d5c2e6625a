//! The list of facts.

mod connecting;
mod ending;
mod faults;
mod mapping;
mod moving;
mod refusing;
mod waiting;

use crate::Fixture;

/// A fact: panics if it does not hold.
pub type Fact = fn(&Fixture);

macro_rules! conformance {
    ($($module:ident: [$($fact:ident),* $(,)?]),* $(,)?) => {
        /// Every fact, by name.
        pub const ALL: &[(&str, Fact)] = &[$($((
            concat!(stringify!($module), "::", stringify!($fact)),
            $module::$fact as Fact,
        ),)*)*];
    };
}

conformance! {
    moving: [
        a_write_lands_before_its_completion,
        a_write_that_comes_with_its_completion_lands_where_it_belongs,
        writes_that_come_with_their_completions_land_in_order,
        a_large_write_is_whole_when_its_completion_comes,
        completions_come_in_posting_order,
        immediate_data_arrives_unchanged,
        a_message_lands_in_the_receive_that_was_posted_first,
        a_read_brings_the_peers_bytes,
        atomics_return_the_old_value,
        atomics_are_atomic_between_two_processes,
        a_write_of_nothing_still_announces_itself,
        inline_data_may_be_reused_at_once,
        requests_posted_as_a_list_are_carried_out_in_order,
        memory_registered_after_connecting_is_reachable,
        starting_processes_leaves_memory_where_it_is,
        unsignaled_requests_do_not_complete,
        one_completion_queue_serves_several_queue_pairs,
        both_halves_work_in_two_threads,
        messages_that_cross_arrive_in_order_and_whole,
    ],
    refusing: [
        a_wrong_key_changes_no_memory,
        a_key_wider_than_any_that_is_handed_out_changes_no_memory,
        a_key_of_another_domain_changes_no_memory,
        a_freed_region_cannot_be_reached,
        an_address_outside_of_the_region_changes_no_memory,
        a_write_that_comes_with_its_completion_is_refused_like_any_other,
        a_missing_right_fails_the_request,
        a_read_into_protected_memory_fails,
        a_receive_into_protected_memory_is_refused,
        a_misaligned_atomic_is_refused,
        a_message_longer_than_its_receive_fails_both_sides,
        an_unsignaled_request_that_fails_completes,
        a_full_send_queue_is_an_error_not_a_wait,
        a_full_receive_queue_is_an_error,
        too_much_inline_data_is_refused,
        memory_of_another_domain_cannot_be_posted,
        objects_of_two_devices_do_not_fit_together,
        a_completion_queue_cannot_overflow,
        nothing_is_posted_before_connecting,
        an_empty_region_is_refused,
    ],
    mapping: [
        what_is_written_through_a_mapping_is_what_the_owner_reads,
        a_mapping_shows_what_the_owner_writes,
        memory_registered_after_connecting_can_be_mapped,
        a_mapping_is_used_only_for_what_it_was_asked_for,
        a_mapping_that_the_key_does_not_allow_is_refused_and_harms_nothing,
        a_mapping_may_be_made_while_requests_wait,
        a_mapping_outlives_key_and_connection,
        what_is_mapped_of_a_domains_last_region_stays_as_it_was,
        nothing_is_mapped_without_a_connection,
    ],
    waiting: [
        a_write_without_a_receive_fails_if_told_not_to_wait,
        a_write_without_a_receive_waits_for_one,
        retries_for_a_receive_run_out,
        requests_behind_one_that_waits_keep_their_order,
        an_armed_queue_wakes_its_sleeper,
        solicited_completions_alone_wake_who_waits_for_them,
        a_waker_ends_a_wait,
        a_wait_ends_at_its_timeout,
        a_sleeper_is_woken_by_its_own_process,
        no_event_is_slept_through,
        no_event_is_slept_through_by_who_stayed_awake,
    ],
    ending: [
        a_peers_close_ends_a_poll,
        a_peers_close_ends_a_sleep,
        a_peers_exit_ends_a_poll,
        a_peers_exit_ends_a_sleep,
        a_peers_kill_ends_a_poll,
        a_peers_kill_ends_a_sleep,
        a_peers_kill_in_the_middle_of_a_large_write_ends_a_poll,
        what_arrived_before_the_end_is_delivered_first,
        an_end_right_after_accepting_is_noticed,
        after_the_end_everything_posted_is_flushed,
        a_queue_pair_that_ends_before_it_is_connected_flushes_too,
        after_a_disconnect_the_peer_writes_nothing,
        a_failed_request_ends_both_sides,
        a_waiting_request_is_flushed_at_the_end,
        an_end_leaves_no_descriptor_behind,
    ],
    connecting: [
        private_data_travels_both_ways,
        too_much_private_data_is_refused,
        a_rejection_carries_private_data,
        a_dropped_request_is_a_rejection,
        connecting_where_nobody_listens_is_refused,
        connecting_to_who_does_not_answer_times_out,
        an_address_has_one_listener,
        a_listener_gives_its_address_back,
        several_clients_connect_at_once,
        the_same_two_connect_again_and_again,
        a_connection_is_made_once,
        what_arrives_during_an_accept_keeps_its_order,
        objects_show_themselves_in_one_short_line,
    ],
    faults: [
        a_dropped_request_succeeds_and_never_arrives,
        a_late_request_arrives_while_its_poster_sleeps,
        everything_behind_a_late_request_stays_behind_it,
        inline_data_of_a_late_request_may_be_reused_at_once,
        a_duplicate_arrives_twice_and_completes_once,
        a_queue_without_room_for_both_sends_a_duplicate_once,
        late_requests_fill_the_send_queue,
        a_truncated_request_arrives_cut,
        a_disconnect_is_told_after_what_arrived_before,
        late_requests_are_flushed_at_the_end,
        a_late_request_ends_with_its_queue_pair,
        a_freed_region_serves_a_late_request,
        a_request_that_is_refused_late_is_flushed,
        requests_that_were_refused_have_no_number,
        a_script_may_come_before_the_connection_and_be_replaced,
        the_same_seed_makes_the_same_faults,
        a_variable_injects_into_every_queue_pair_of_a_process,
        a_wrong_variable_is_told_when_a_device_is_opened,
    ],
}
