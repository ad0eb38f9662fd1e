//! One suite, three databases: each case gets a fresh database and may open it as often as it likes.

mod cases {
    pub mod backups;
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
    backups: a_backup_lives_from_begin_to_deletion;
}
