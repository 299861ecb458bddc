//! The data beside the rows: leases, the running total, notes.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rusqlite::{params, OptionalExtension};

use super::{to_micros, SqliteIndex};
use crate::error::Result;
use crate::index::keys::check_text;
use crate::index::{new_identity, Index, Leases, Notes, Totals, Usage, IDENTITY, LONGEST_LEASE};

#[async_trait]
impl Leases for SqliteIndex {
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let pass = self.gate.enter()?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let (name, owner) = (name.to_owned(), owner.to_owned());
        self.write("taking a lease", pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let after = |time: Duration| {
                now.saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
            };
            let (until, longest) = (after(ttl.min(LONGEST_LEASE)), after(LONGEST_LEASE));
            let taken = connection
                .prepare_cached(&sql.try_lease)?
                .execute(params![name, owner, until, now, longest])?;
            Ok(taken > 0)
        })
        .await
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let pass = self.gate.enter()?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let (name, owner) = (name.to_owned(), owner.to_owned());
        self.write("giving a lease back", pass, move |connection, sql| {
            connection
                .prepare_cached(&sql.release_lease)?
                .execute(params![name, owner])?;
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Totals for SqliteIndex {
    async fn usage(&self) -> Result<Usage> {
        let pass = self.gate.enter()?;
        self.quick("reading the running total", pass, |connection, sql| {
            let usage = connection.prepare_cached(&sql.usage)?.query_row([], |row| {
                Ok(Usage {
                    blocks: row.get(0)?,
                    bytes: row.get(1)?,
                })
            });
            Ok(usage.optional()?.unwrap_or_default())
        })
        .await
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        let pass = self.gate.enter()?;
        if delta == Usage::default() {
            return Ok(());
        }
        self.write(
            "adding to the running total",
            pass,
            move |connection, sql| {
                connection
                    .prepare_cached(&sql.add_usage)?
                    .execute(params![delta.blocks, delta.bytes])?;
                Ok(())
            },
        )
        .await
    }
}

#[async_trait]
impl Notes for SqliteIndex {
    async fn note(&self, name: &str) -> Result<Option<String>> {
        let pass = self.gate.enter()?;
        let name = name.to_owned();
        self.quick("reading a note", pass, move |connection, sql| {
            let mut note = connection.prepare_cached(&sql.note)?;
            note.query_row([&name], |row| row.get(0)).optional()
        })
        .await
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        let pass = self.gate.enter()?;
        check_text("name of a note", name)?;
        check_text("note", text.unwrap_or_default())?;
        let (name, text) = (name.to_owned(), text.map(str::to_owned));
        self.write("keeping a note", pass, move |connection, sql| {
            match &text {
                Some(text) => connection
                    .prepare_cached(&sql.set_note)?
                    .execute([&name, text])?,
                None => connection
                    .prepare_cached(&sql.drop_note)?
                    .execute([&name])?,
            };
            Ok(())
        })
        .await
    }

    async fn notes(&self, prefix: &str, limit: usize) -> Result<Vec<(String, String)>> {
        let pass = self.gate.enter()?;
        let prefix = prefix.to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.quick("reading notes", pass, move |connection, sql| {
            let mut notes = connection.prepare_cached(&sql.notes)?;
            let each = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let rows = notes.query_map(params![prefix, limit], each)?;
            rows.collect()
        })
        .await
    }

    async fn identity(&self) -> Result<Option<String>> {
        let known = self.note(IDENTITY).await?;
        if known.is_some() || self.only_reads().is_some() {
            return Ok(known);
        }
        let new = new_identity();
        let pass = self.gate.enter()?;
        self.write(
            "giving the table an identity",
            pass,
            move |connection, sql| {
                let mut add = connection.prepare_cached(&sql.add_note)?;
                add.execute([IDENTITY, &new])
            },
        )
        .await?;
        self.note(IDENTITY).await
    }
}
