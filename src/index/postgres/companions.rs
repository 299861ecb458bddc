//! The data beside the rows (leases, the running total, notes), and the methods of the index as a
//! whole.

use std::time::Duration;

use async_trait::async_trait;

use super::call::Repeat;
use super::query::Param;
use super::{read, usage, PostgresIndex};
use crate::error::Result;
use crate::index::keys::check_text;
use crate::index::{
    new_identity, Fact, Index, Leases, Notes, Replica, Staging, Totals, Usage, IDENTITY,
    LONGEST_LEASE,
};

#[async_trait]
impl Leases for PostgresIndex {
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let call = self.call("taking a lease")?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let params = [
            Param::Text(name.to_owned()),
            Param::Text(owner.to_owned()),
            Param::Float(ttl.min(LONGEST_LEASE).as_secs_f64()),
        ];
        let query = &self.inner.sql.try_lease;
        let rows = self.inner.ask(&call, query, params.into()).await?;
        Ok(!rows.is_empty())
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let call = self.call("giving a lease back")?;
        check_text("name of the lease", name)?;
        check_text("owner of the lease", owner)?;
        let params = [Param::Text(name.to_owned()), Param::Text(owner.to_owned())].into();
        let query = &self.inner.sql.release_lease;
        self.inner.ask(&call, query, params).await.map(drop)
    }
}

#[async_trait]
impl Totals for PostgresIndex {
    async fn usage(&self) -> Result<Usage> {
        let call = self.call("reading the running total")?;
        let query = &self.inner.sql.usage;
        let rows = self.inner.look_up(&call, query, [].into()).await?;
        let usage = read(call.what, &rows, usage)?;
        Ok(usage.into_iter().next().unwrap_or_default())
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        let mut call = self.call("adding to the running total")?;
        if delta == Usage::default() {
            return Ok(());
        }
        call.repeat = Repeat::Never;
        let params = [Param::Int(delta.blocks), Param::Int(delta.bytes)].into();
        let query = &self.inner.sql.add_usage;
        self.inner.ask(&call, query, params).await.map(drop)
    }
}

#[async_trait]
impl Notes for PostgresIndex {
    async fn note(&self, name: &str) -> Result<Option<String>> {
        let call = self.call("reading a note")?;
        check_text("name of a note", name)?;
        let params = [Param::Text(name.to_owned())].into();
        let rows = self
            .inner
            .look_up(&call, &self.inner.sql.note, params)
            .await?;
        let found = read(call.what, &rows, |row| row.try_get::<_, String>(0))?;
        Ok(found.into_iter().next())
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        let call = self.call("keeping a note")?;
        check_text("name of a note", name)?;
        check_text("note", text.unwrap_or_default())?;
        let (sql, name) = (&self.inner.sql, Param::Text(name.to_owned()));
        let changed = match text {
            Some(text) => {
                let params = [name, Param::Text(text.to_owned())].into();
                self.inner.change(&call, &sql.set_note, params).await
            }
            None => {
                self.inner
                    .change(&call, &sql.drop_note, [name].into())
                    .await
            }
        };
        changed.map(drop)
    }

    async fn notes(&self, prefix: &str, limit: usize) -> Result<Vec<(String, String)>> {
        let call = self.call("reading notes")?;
        check_text("beginning of the names of notes", prefix)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let params = [Param::Text(prefix.to_owned()), Param::Int(limit)].into();
        let query = &self.inner.sql.notes;
        let rows = self.inner.look_up(&call, query, params).await?;
        read(call.what, &rows, |row| {
            Ok((row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?))
        })
    }

    async fn identity(&self) -> Result<Option<String>> {
        let known = self.note(IDENTITY).await?;
        if known.is_some() || self.inner.rights.read_only().is_some() {
            return Ok(known);
        }
        let call = self.call("giving the table an identity")?;
        let params = [
            Param::Text(IDENTITY.to_owned()),
            Param::Text(new_identity()),
        ]
        .into();
        let query = &self.inner.sql.add_note;
        self.inner.change(&call, query, params).await?;
        self.note(IDENTITY).await
    }
}

#[async_trait]
impl Index for PostgresIndex {
    fn take_notice(&self) -> Option<String> {
        let near = self.near.as_ref().map(|near| near.index());
        let own = self.inner.opener.connector.take_notice();
        let own = own.or_else(|| self.inner.in_doubt.take_notice());
        own.or_else(|| near.and_then(PostgresIndex::take_notice))
    }

    fn only_reads(&self) -> Option<&'static str> {
        let known = self.inner.rights.read_only();
        if known.is_some() {
            self.recheck_rights();
        }
        known
    }

    fn unfinished_copy(&self) -> Option<&str> {
        self.inner.shape.copy.as_deref()
    }

    fn replica(&self) -> Option<&dyn Replica> {
        self.near.is_some().then_some(self)
    }

    fn staging(&self) -> Option<&dyn Staging> {
        self.inner.shape.staging.is_some().then_some(self)
    }

    async fn facts(&self) -> Result<Vec<Fact>> {
        self.server_facts().await
    }

    async fn close(&self) -> Result<()> {
        if let Some(near) = &self.near {
            near.index().close_all().await;
        }
        self.close_all().await;
        Ok(())
    }
}
