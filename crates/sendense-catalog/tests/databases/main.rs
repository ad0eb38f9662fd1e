//! One suite, three databases: each case gets a fresh database and may open it as often as it likes.
//!
//! What only one database can show (the plans of SQLite's statements) is tested beside the code.

mod cases {
    pub mod adopt;
    pub mod backups;
    pub mod chains;
    pub mod essentials;
    pub mod model;
    pub mod nodes;
    pub mod open;
    pub mod schedules;
    pub mod small;
    pub mod sources;
    pub mod task_model;
    pub mod tasks;
    pub mod verify;
    pub mod vms;
}
mod fixture;
mod support;

macro_rules! suite {
    ($($module:ident: $($case:ident),+;)+) => {
        suite!(@database sqlite, $($module: $($case),+;)+);
        suite!(@database mariadb, $($module: $($case),+;)+);
        suite!(@database postgres, $($module: $($case),+;)+);
    };
    (@database $database:ident, $($module:ident: $($case:ident),+;)+) => {
        mod $database {$(
            mod $module {$(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::cases::$module::$case(crate::support::TestDb::$database().await).await;
                }
            )+}
        )+}
    };
}

suite! {
    open: migrating_twice_is_migrating_once, hubs_that_start_together_migrate_once,
        a_catalog_from_before_holds_is_migrated,
        a_catalog_from_before_tasks_lost_their_deadline_is_migrated, a_catalog_from_before_tags_is_migrated,
        what_was_committed_is_there_after_reopening, a_call_that_is_dropped_is_all_or_nothing,
        references_hold_on_every_connection, a_counter_that_is_wrong_is_right_after_a_start;
    small: a_deployment_has_one_id, epochs_are_given_once, a_lease_has_one_owner, settings_are_kept,
        tokens_are_found_until_revoked, the_journal_keeps_what_may_exist, a_day_has_one_sample_and_a_year_is_kept,
        the_newest_reports_are_kept;
    essentials: they_make_another_catalog_of_the_same, a_catalog_in_use_takes_none;
    nodes: a_code_lets_one_node_in_once, a_node_is_found_until_it_is_revoked;
    sources: names_are_unique_and_exact, a_source_goes_and_its_points_stay, a_repository_in_use_stays;
    vms: numbers_of_disks_stay, machines_vanish_and_return, names_are_compared_exactly, what_is_told_twice_is_refused,
        an_imported_machine_is_bound, a_machine_that_is_a_mere_name_is_bound_at_its_path_only, lists_are_paged,
        tags_stay_with_a_machine, a_machine_that_gives_way_leaves_its_tags, of_eight_that_hang_tags_at_once_none_is_lost,
        policies_see_what_lists_tell;
    tasks: two_hundred_tasks_are_claimed_once_each, a_late_holder_is_fenced_off, tasks_of_dead_hubs_are_found,
        a_cancel_reaches_the_holder, logs_are_bounded_and_lose_nothing, tasks_are_listed, old_tasks_are_forgotten;
    backups: a_backup_lives_from_begin_to_deletion, of_eight_that_begin_one_wins, a_machine_of_two_sources_is_one,
        a_failed_backup_frees_the_machine, steps_out_of_order_are_refused, a_plan_is_checked, what_keeps_a_point_is_told, filters_are_combined,
        a_list_agrees_with_its_number_while_points_come_and_go, what_a_turn_is_decided_by_agrees_with_lists;
    chains: a_point_that_is_needed_stays, a_chain_follows_its_links, tokens_of_the_newest_points_are_in_use,
        a_new_disk_begins_a_chain, a_merged_point_leaves_its_successor, a_copy_leaves_a_point_to_the_other,
        moved_points_take_along_what_is_known_of_them, the_longest_chains_agree_with_each_chain;
    adopt: adopting_is_idempotent, a_published_point_overrules_a_failed_row, adopted_points_form_their_chains,
        a_bound_disk_number_is_not_rebound;
    schedules: policies_are_kept_while_schedules_need_them, an_occurrence_is_handled_once,
        of_eight_hubs_one_carries_an_occurrence_out, an_execution_of_a_dead_hub_is_taken_over,
        of_eight_people_that_ask_at_once_one_is_heard, a_machine_is_begun_once,
        only_what_waits_is_left_out, old_executions_are_forgotten,
        a_look_reads_what_runs_and_whose_turn_is_next, each_schedule_tells_what_ended_last,
        what_stands_in_the_way_of_one_machine_leaves_the_others_alone;
    verify: what_was_found_is_kept_with_the_point, what_was_found_of_files_that_were_replaced_is_not_kept, a_failed_attempt_is_no_point_to_verify,
        the_oldest_proof_is_found_first, what_is_late_for_the_longest_is_found_first, a_deep_proof_outlasts_looks_at_rest,
        what_a_point_took_over_is_no_younger_in_it, a_machine_that_nobody_looked_at_waits_since_its_first_point,
        what_waited_before_there_were_first_looks_is_due_as_it_was, what_goes_unproved_hands_its_waiting_on, what_an_earlier_release_made_waits_since_it_was_made, a_point_that_became_a_full_is_proved_as_its_chain_was,
        points_of_a_policy_are_found_by_themselves, all_that_a_point_builds_on_is_found;
    model: random_work_agrees_with_a_model;
    task_model: random_lives_of_tasks_agree_with_a_model;
}

/// What is tested of [`sendense_catalog::Catalog::open`] without a database.
mod refused {
    use sendense_catalog::{Catalog, Kind};

    #[tokio::test]
    async fn urls_that_cannot_work() {
        for url in ["", "catalog.db", "oracle://x/y", "sqlite::memory:", "sqlite://:memory:"] {
            let error = Catalog::open(url).await.expect_err(url);
            assert_eq!(error.kind(), Kind::Internal, "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn a_database_that_is_not_there() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().display();
        for url in [format!("sqlite://{path}/no/such.db?mode=rwc"), format!("mysql://root@localhost/x?socket={path}/s")]
        {
            let error = Catalog::open(&url).await.expect_err(&url);
            assert_eq!(error.kind(), Kind::Unavailable, "{url}: {error}");
        }
    }
}
