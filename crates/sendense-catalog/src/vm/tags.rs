//! Words that people hang on machines, by which policies choose them.
//!
//! They are the catalog's own: no source tells them, no discovery changes them, and they stay with a machine through renames and
//! moves. Invariant: a machine bears each word once, and no more of them than [`TAGS_MAX`].

use super::{VmContext, Vms};
use crate::backup::lock_vm;
use crate::error::{Error, Result};
use crate::tx::Tx;
use crate::{entity, value};
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter};
use sendense_types::{Tag, VmContextId};
use std::collections::{BTreeSet, HashMap};

/// Words on one machine: more than a person can survey, and few enough to read them with every machine.
pub const TAGS_MAX: usize = 64;

impl Vms<'_> {
    /// Hangs words on a machine and takes others off. A word that is in both stays off.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] when it would bear too many.
    pub async fn change_tags(
        &self,
        id: &VmContextId,
        add: &BTreeSet<Tag>,
        remove: &BTreeSet<Tag>,
    ) -> Result<VmContext> {
        use entity::vm_tags::{Column, Entity};
        self.0
            .write(|tx| async move {
                lock_vm(&tx, id).await?;
                let words: Vec<&str> = remove.iter().map(Tag::as_str).collect();
                let off = Column::VmContextId.eq(id.as_str()).and(Column::Tag.is_in(words));
                Entity::delete_many().filter(off).exec(&*tx).await?;
                let own = borne(&tx, id.as_str()).await?;
                let new = add.difference(remove).map(Tag::as_str).filter(|word| !own.contains(*word));
                let new: Vec<&str> = new.collect();
                if own.len() + new.len() > TAGS_MAX {
                    return Err(Error::Invalid { field: "tags", reason: format!("a VM bears at most {TAGS_MAX}") });
                }
                hang(&tx, id.as_str(), new).await
            })
            .await?;
        self.get(id).await
    }

    /// The words of machines, by machine.
    pub(super) async fn tags_of(&self, ids: &[&str]) -> Result<HashMap<String, BTreeSet<Tag>>> {
        use entity::vm_tags::{Column, Entity};
        let rows = Entity::find().filter(Column::VmContextId.is_in(ids.iter().copied())).all(self.0.pool()).await?;
        let mut by_vm = HashMap::<String, BTreeSet<Tag>>::new();
        for row in rows {
            by_vm.entry(row.vm_context_id).or_default().insert(value::read("tag", &row.tag)?);
        }
        Ok(by_vm)
    }
}

/// The words on a machine that the caller has locked.
async fn borne(tx: &Tx, vm_context_id: &str) -> Result<BTreeSet<String>> {
    use entity::vm_tags::{Column, Entity};
    let rows = Entity::find().filter(Column::VmContextId.eq(vm_context_id)).all(&**tx).await?;
    Ok(rows.into_iter().map(|row| row.tag).collect())
}

/// Hangs words on a machine that does not bear them.
async fn hang(tx: &Tx, vm_context_id: &str, words: impl IntoIterator<Item = &str>) -> Result<()> {
    use entity::vm_tags::{Entity, Model};
    for word in words {
        let row = Model { vm_context_id: vm_context_id.to_owned(), tag: word.to_owned() };
        Entity::insert(row.into_active_model()).exec_without_returning(&**tx).await?;
    }
    Ok(())
}

/// Gives a machine the words of another one that turned out to be the same, as far as it has room for them.
pub(super) async fn inherit(tx: &Tx, from: &str, to: &str) -> Result<()> {
    let (theirs, own) = (borne(tx, from).await?, borne(tx, to).await?);
    let room = TAGS_MAX.saturating_sub(own.len());
    hang(tx, to, theirs.difference(&own).take(room).map(String::as_str)).await
}
