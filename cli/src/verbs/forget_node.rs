//! `forget-node`: a node that is gone for good is no longer shown.

use serde::Serialize;
use walrusds::admin;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::work;

/// Ends what status says of a node that is gone for good; without --yes only shows it
///
/// Each node notes itself in the index. A node that was not seen for long, while its journal held
/// blocks, is a finding of status: these blocks are on its disk alone. This removes the note, and
/// nothing else: no block is deleted, and a node that comes back notes itself again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node, as status names it; its first letters do, if no other node begins with them
    #[arg(value_name = "NODE")]
    node: String,
    /// Removes it
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether it was removed.
    applied: bool,
    /// The node.
    node: admin::NodeSeen,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (_, inspection) = context.inspect().await?;
    let nodes = admin::nodes(&inspection);
    let nodes = context.or_stop("nothing was changed", nodes).await?;
    inspection.close().await?;
    let mut meant = nodes
        .into_iter()
        .filter(|node| !args.node.is_empty() && node.node.starts_with(&args.node));
    let node = match (meant.next(), meant.count()) {
        (Some(node), 0) => node,
        (Some(_), more) => {
            return Err(Failure::Usage(format!(
                "{} nodes begin with {:?}: give more letters (walrusds status names them)",
                more + 1,
                args.node
            )))
        }
        (None, _) => {
            return Err(Failure::Failed(format!(
            "no node {:?} has noted itself in this index: walrusds status names those that have",
            args.node
        )))
        }
    };
    if args.yes {
        let store = work::open(context).await?;
        let forgotten = store.forget_node(&node.node).await;
        store.close().await?;
        forgotten?;
    }
    let report = Report {
        applied: args.yes,
        node,
    };
    context.print(&report, || text(&report))?;
    Ok(Exit::Fine)
}

fn text(report: &Report) -> String {
    let shown = super::status::node_line(&report.node);
    match report.applied {
        true => format!("{shown}\nIt is forgotten.\n"),
        false => {
            format!("{shown}\nNothing was done. The same command with --yes forgets it.\n")
        }
    }
}
