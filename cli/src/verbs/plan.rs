//! `plan`: what renewal would do now, and its price.

use walrusds::datastore::Inspection;
use walrusds::plan::Plan;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::count;

/// Blobs that are shown without `--all`.
const SHOWN: usize = 20;

/// Shows what renewal would do now: each blob that is due, the way, the price
///
/// Nothing is changed and nothing is paid. The JSON has every blob.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shows every blob, not only the most urgent 20
    #[arg(long)]
    all: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (_, inspection) = context.inspect().await?;
    let plan = read(context, &inspection).await?;
    let known = inspection.config().walrus_command.is_some();
    context.print(&plan, || {
        let mut text = shown(&plan, args.all, known);
        if plan.totals.all.blobs > 0 {
            text.push_str(
                "walrusds renew --yes carries it out; a node that renews does so by itself.\n",
            );
        }
        text
    })?;
    inspection.close().await?;
    Ok(Exit::Fine)
}

/// The plan.
pub async fn read(context: &Context, inspection: &Inspection) -> Result<Plan, Failure> {
    let plan = context
        .or_stop("nothing was changed", inspection.plan())
        .await?;
    context.notes(inspection);
    plan.ok_or_else(|| {
        Failure::Failed(match inspection.config().epoch_duration.is_zero() {
            true => "there is no plan, as the length of an epoch is not configured: add \"network\": \"mainnet\" (or \
                     \"testnet\") to the entry of walrusds in Datastore.Spec"
                .to_owned(),
            false => "there is no plan, as the present epoch is not known: a node that renews notes it in its first \
                      round after a store, and walrusCommand (docs/operations.md) tells it at once"
                .to_owned(),
        })
    })
}

/// The plan as a table. `known`: the chain tells the prices.
pub fn shown(plan: &Plan, all: bool, known: bool) -> String {
    let mut cut = plan.clone();
    let hidden = match all {
        true => 0,
        false => plan.decisions.len().saturating_sub(SHOWN),
    };
    cut.decisions.truncate(plan.decisions.len() - hidden);
    let mut text = cut.to_string();
    if hidden > 0 {
        let hidden = count(hidden as u64);
        text.push_str(&format!(
            "{hidden} more blobs are in the sums and not shown (plan --all).\n"
        ));
    }
    if !known && plan.totals.all.frost > 0 {
        text.push_str(
            "The prices are those of Walrus' documentation: walrusCommand is not configured.\n",
        );
    }
    text
}
