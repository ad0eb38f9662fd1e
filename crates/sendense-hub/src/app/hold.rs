//! What keeps a point from being deleted: changed in the repository first, then in the catalog's copy.

use super::delete::refused;
use super::{App, Caller};
use crate::core::blocking;
use crate::fault::{OrProblem, Result, invalid};
use crate::maintenance::Use;
use sendense_api::{Backup, Role, UpdateBackup};
use sendense_repo::Hold;
use sendense_types::{BackupId, BackupStatus, Problem, ProblemCode, Timestamp};

impl App {
    /// Protects a point, holds it until a date, or lets it go. Who may make points may keep them; to let one go earlier takes
    /// the right to delete it.
    pub async fn update_backup(&self, caller: &Caller, id: &BackupId, change: UpdateBackup) -> Result<Backup> {
        caller.require(Role::Operator)?;
        let now = self.core.now();
        if change.hold_until.flatten().is_some_and(|until| until <= now) {
            return Err(invalid("hold_until lies in the past"));
        }
        let row = self.core.catalog.backups().get(id).await.or_problem()?;
        if row.status != BackupStatus::Completed {
            let details = format!("{id} is {}", row.status);
            return Err(Problem::new(ProblemCode::Conflict, "the backup holds no point", details));
        }
        let repository = self.core.repositories.by_id(&self.core, &row.repository_id, Use::Write).await?;
        let (vm, point, who) = (row.vm_context_id, id.clone(), format!("hold by {}", caller.identity));
        let (asked, may_release) = (caller.clone(), caller.require(Role::Admin).is_ok());
        let (app, id) = (self.clone(), id.clone());
        self.to_the_end(async move {
            let changed = blocking(move || {
                let mut released = false;
                let hold = repository.change_hold(
                    &vm,
                    &point,
                    |hold| {
                        let wanted = wanted(*hold, change);
                        released = is_less(wanted, *hold, now) && !may_release;
                        if !released {
                            *hold = wanted;
                        }
                    },
                    &who,
                    now,
                );
                hold.map(|hold| (hold, released))
            });
            let (hold, refused_release) = changed.await?.map_err(|error| refused(&error))?;
            if refused_release {
                asked.require(Role::Admin)?;
            }
            app.core.catalog.backups().set_hold(&id, hold.protected, hold.until).await.or_problem()?;
            app.get_backup(&id).await
        })
        .await
    }
}

fn wanted(hold: Hold, change: UpdateBackup) -> Hold {
    Hold { protected: change.protected.unwrap_or(hold.protected), until: change.hold_until.unwrap_or(hold.until) }
}

/// True when a point could be deleted earlier than before.
fn is_less(wanted: Hold, hold: Hold, now: Timestamp) -> bool {
    (hold.protected && !wanted.protected) || hold.until.is_some_and(|until| until > now && wanted.until < Some(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_keep_longer_is_not_to_let_go() {
        let now = Timestamp::from_micros(0);
        let hold =
            |protected, days: Option<i64>| Hold { protected, until: days.map(|days| now.plus_seconds(86_400 * days)) };
        for (wanted, held, less) in [
            (hold(true, None), hold(false, None), false),
            (hold(false, Some(2)), hold(false, Some(1)), false),
            (hold(false, None), hold(true, None), true),
            (hold(true, Some(1)), hold(true, Some(2)), true),
            (hold(true, None), hold(false, Some(2)), true),
            (hold(false, None), hold(false, Some(-1)), false),
        ] {
            assert_eq!(is_less(wanted, held, now), less, "{held} -> {wanted}");
        }
    }
}
