//! Column and table builders that mean the same in every database.
//!
//! Text is compared byte by byte, and trailing blanks count: MariaDB's default collation would make `VM1` and `vm1` one
//! machine. Indexed text has a length, because InnoDB's keys end at 3072 bytes.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

/// Characters of an id (`sendense_types` allows 64 bytes).
pub const ID_CHARS: u32 = 64;
/// Characters of a word of an enum.
pub const WORD_CHARS: u32 = 24;
/// Characters of a name (`sendense_types` allows 255 bytes).
pub const NAME_CHARS: u32 = 255;

/// An id that must be there.
pub fn id(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).string_len(ID_CHARS).not_null().take()
}
/// An id that may be absent.
pub fn id_opt(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).string_len(ID_CHARS).null().take()
}
/// A word of an enum.
pub fn word(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).string_len(WORD_CHARS).not_null().take()
}
/// A word that may be absent.
pub fn word_opt(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).string_len(WORD_CHARS).null().take()
}
/// A name.
pub fn name(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).string_len(NAME_CHARS).not_null().take()
}
/// Free text, not indexed.
pub fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().not_null().take()
}
/// Free text that may be absent.
pub fn text_opt(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().null().take()
}
/// A moment, size or counter.
pub fn big(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().not_null().take()
}
/// A moment that may be absent.
pub fn big_opt(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().null().take()
}
/// A small number.
pub fn int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).integer().not_null().take()
}
/// Yes or no.
pub fn flag(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).boolean().not_null().take()
}
/// JSON.
pub fn json(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).json().not_null().take()
}
/// JSON that may be absent.
pub fn json_opt(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).json().null().take()
}
/// Bytes that may be absent.
pub fn bytes_opt(name: &'static str, bytes_max: u32) -> ColumnDef {
    ColumnDef::new(name).var_binary(bytes_max).null().take()
}
/// Bytes.
pub fn bytes(name: &'static str, bytes_max: u32) -> ColumnDef {
    ColumnDef::new(name).var_binary(bytes_max).not_null().take()
}

/// A reference to another table's key. Deleting what is referred to is refused, unless `on_delete` says otherwise.
pub fn foreign(
    columns: &[&'static str],
    target: &'static str,
    target_columns: &[&'static str],
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    let mut key = ForeignKey::create();
    for column in columns {
        key.from_col(*column);
    }
    for column in target_columns {
        key.to_col(*column);
    }
    key.to_tbl(target).on_delete(on_delete).on_update(ForeignKeyAction::Restrict).take()
}

/// Creates a table unless it exists.
pub async fn create(
    manager: &SchemaManager<'_>,
    name: &'static str,
    columns: Vec<ColumnDef>,
    primary: &[&'static str],
    foreign: Vec<ForeignKeyCreateStatement>,
) -> Result<(), DbErr> {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    for column in columns {
        table.col(column);
    }
    let mut key = Index::create();
    for column in primary {
        key.col(*column);
    }
    table.primary_key(&mut key);
    for (number, mut key) in foreign.into_iter().enumerate() {
        table.foreign_key(key.name(format!("fk_{name}_{number}")).from_tbl(name));
    }
    if manager.get_database_backend() == DbBackend::MySql {
        table.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_nopad_bin");
    }
    manager.create_table(table.take()).await
}

/// Adds a column to a table unless it has it. One that must be there needs a default, for the rows that are there already.
pub async fn add_column(manager: &SchemaManager<'_>, table: &'static str, mut column: ColumnDef) -> Result<(), DbErr> {
    let name = column.get_column_name();
    if manager.has_column(table, name).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(table).add_column(&mut column).take()).await
}

/// Removes a column unless it is gone.
pub async fn drop_column(manager: &SchemaManager<'_>, table: &'static str, column: &'static str) -> Result<(), DbErr> {
    if !manager.has_column(table, column).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(table).drop_column(column).take()).await
}

/// Creates an index unless it exists.
pub async fn index(
    manager: &SchemaManager<'_>,
    table: &'static str,
    name: &'static str,
    columns: &[&'static str],
    unique: bool,
) -> Result<(), DbErr> {
    if manager.has_index(table, name).await? {
        return Ok(());
    }
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(*column);
    }
    if unique {
        index.unique();
    }
    manager.create_index(index.take()).await
}

/// Removes an index unless it is gone.
pub async fn drop_index(manager: &SchemaManager<'_>, table: &'static str, name: &'static str) -> Result<(), DbErr> {
    if !manager.has_index(table, name).await? {
        return Ok(());
    }
    manager.drop_index(Index::drop().name(name).table(table).to_owned()).await
}
