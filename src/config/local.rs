//! What a node keeps on its local disk, and how it checks what it reads.

use std::path::PathBuf;

use serde_json::Value;

use super::{bad, shorten, DiskCacheConfig, Fields, JournalConfig, JournalSync, VerifyReads};
use crate::error::Result;

impl Fields<'_> {
    /// A flag, or the word `always`. Text is taken for a flag, too: the environment has no other.
    pub(super) fn verify_reads(&self) -> Result<VerifyReads> {
        let name = "verifyReads";
        let wrong = |value: &Value| Self::wrong_type(name, value, "true, false or \"always\"");
        let Some(value) = self.0.get(name) else {
            return Ok(VerifyReads::default());
        };
        match value {
            Value::Bool(true) => Ok(VerifyReads::Network),
            Value::Bool(false) => Ok(VerifyReads::Never),
            Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
                "" | "true" | "1" | "yes" | "on" => Ok(VerifyReads::Network),
                "false" | "0" | "no" | "off" => Ok(VerifyReads::Never),
                "always" => Ok(VerifyReads::Always),
                _ => Err(wrong(value)),
            },
            _ => Err(wrong(value)),
        }
    }

    fn journal_sync(&self) -> Result<JournalSync> {
        match self.text("journalSync")? {
            None | Some("put") => Ok(JournalSync::Put),
            Some("sync") => Ok(JournalSync::Sync),
            Some(other) => Err(bad(format!(
                "journalSync is {:?}, expected \"put\" or \"sync\"",
                shorten(other)
            ))),
        }
    }

    pub(super) fn journal(&self) -> Result<Option<JournalConfig>> {
        let sync = self.journal_sync()?;
        let Some(path) = self.text("journalPath")? else {
            return Ok(None);
        };
        Ok(Some(JournalConfig {
            path: PathBuf::from(path),
            max_bytes: self.number("journalMaxBytes", 4 << 30)?,
            sync,
            full_timeout: self.seconds("journalFullSeconds", 600)?,
            idle_flush: self.seconds("packIdleFlushSeconds", 30)?,
            max_age: self.seconds("packMaxAgeSeconds", 300)?,
            drain_timeout: self.seconds("drainTimeoutSeconds", 30)?,
            drain_partial: self.flag("drainPartialPacks", true)?,
        }))
    }

    pub(super) fn disk_cache(&self) -> Result<Option<DiskCacheConfig>> {
        let Some(path) = self.text("cachePath")? else {
            return Ok(None);
        };
        Ok(Some(DiskCacheConfig {
            path: PathBuf::from(path),
            max_bytes: self.number("cacheBytes", 10 << 30)?,
        }))
    }
}
