//! `status`: the state of the datastore.

use serde::Serialize;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{pairs, whole, whole_bytes};

/// Shows the state: blocks, blobs, waste, prices, what ends when
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Debug, Serialize)]
struct Report {
    config: String,
    blocks: i64,
    bytes: i64,
}

pub async fn run(_args: Args, context: &Context) -> Result<Exit, Failure> {
    brief(context).await
}

/// The state in ten lines.
pub async fn brief(context: &Context) -> Result<Exit, Failure> {
    let (source, inspection) = context.inspect().await?;
    let usage = inspection.index().usage().await?;
    let report = Report {
        config: source.found,
        blocks: usage.blocks,
        bytes: usage.bytes,
    };
    context.print(&report, || {
        pairs(&[
            ("config", report.config.clone()),
            ("blocks", whole(report.blocks)),
            ("bytes", whole_bytes(report.bytes)),
        ])
    })?;
    inspection.close().await?;
    Ok(Exit::Fine)
}
