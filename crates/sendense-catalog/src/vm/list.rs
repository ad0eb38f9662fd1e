//! The list of machines, page by page.

use super::{VmContext, Vms};
use crate::error::Result;
use crate::{Page, entity, value};
use sea_orm::sea_query::Query;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use sendense_types::SourceId;

/// Which machines; what is `None` does not restrict. All are combined with AND.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmFilter {
    /// Exactly this name.
    pub vm_name: Option<String>,
    /// Of this source.
    pub source_id: Option<SourceId>,
    /// With this identity, which is one machine's in a source.
    pub instance_uuid: Option<String>,
    /// Those that bear this word.
    pub tag: Option<String>,
    /// Those that discoveries see (`true`), or do not see any more (`false`).
    pub present: Option<bool>,
}

impl Vms<'_> {
    /// Machines by name and id, with the number of all that match.
    pub async fn list(&self, filter: &VmFilter, page: Page) -> Result<(Vec<VmContext>, u64)> {
        use entity::vm_contexts::Column;
        let rows = select(filter)
            .order_by_asc(Column::VmName)
            .order_by_asc(Column::VmContextId)
            .limit(page.limit())
            .offset(page.offset)
            .all(self.0.pool())
            .await?;
        let total = value::count(select(filter), Column::VmContextId, self.0.pool()).await?;
        Ok((self.with_parts(rows).await?, total))
    }
}

fn select(filter: &VmFilter) -> Select<entity::vm_contexts::Entity> {
    use entity::vm_contexts::Column;
    let mut select = entity::vm_contexts::Entity::find();
    if let Some(name) = &filter.vm_name {
        select = select.filter(Column::VmName.eq(name));
    }
    if let Some(source_id) = &filter.source_id {
        select = select.filter(Column::SourceId.eq(source_id.as_str()));
    }
    if let Some(identity) = &filter.instance_uuid {
        select = select.filter(Column::InstanceUuid.eq(identity));
    }
    if let Some(tag) = &filter.tag {
        use entity::vm_tags::{Column as TagColumn, Entity as Tags};
        let bearers =
            Query::select().column(TagColumn::VmContextId).from(Tags).and_where(TagColumn::Tag.eq(tag)).take();
        select = select.filter(Column::VmContextId.in_subquery(bearers));
    }
    match filter.present {
        Some(true) => select = select.filter(Column::VanishedAt.is_null()),
        Some(false) => select = select.filter(Column::VanishedAt.is_not_null()),
        None => {}
    }
    select
}
