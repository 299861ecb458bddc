//! `renew`: a round of renewal by hand.

use std::fmt::Write as _;

use serde::Serialize;
use walrusds::plan::Plan;
use walrusds::Round;

use super::plan;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{frost, things};
use crate::progress::Unit;
use crate::work;

/// Renews what is due now; without --yes only shows the plan
///
/// Takes the lease under which nodes renew, so two never do it at the same time, and pays: with
/// the publisher's wallet, and for extensions with that of walrusCommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Carries the plan out and pays for it
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether the plan was carried out.
    applied: bool,
    /// The plan before it; `None` if none could be made.
    plan: Option<Plan>,
    /// What was done.
    done: Option<Round>,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let (_, inspection) = context.inspect().await?;
    let plan = plan::read(context, &inspection).await;
    let known = inspection.config().walrus_command.is_some();
    inspection.close().await?;
    if !args.yes {
        let plan = plan?;
        let text = plan::shown(&plan, false, known);
        let report = Report {
            applied: false,
            plan: Some(plan),
            done: None,
        };
        context.print(&report, || {
            format!("{text}Nothing was done. walrusds renew --yes carries it out.\n")
        })?;
        return Ok(Exit::Fine);
    }
    let plan = match plan {
        Ok(plan) => Some(plan),
        // The round learns the epoch by its first store.
        Err(Failure::Failed(why)) => {
            context.note(why);
            None
        }
        Err(e) => return Err(e),
    };
    let store = work::open(context).await?;
    let mut progress = context.progress("renewing", Unit::Things("blobs"));
    if let Some(plan) = &plan {
        progress.total(plan.totals.all.blobs);
    }
    let done = || {
        let round = store.round();
        Some(round.renewed + round.repacked + round.failed)
    };
    let resume = "what was renewed stays so; run walrusds renew --yes again for the rest";
    let round = store.renew_once(context.stop.clone().cancelled_owned());
    let round = work::attend(context, &store, progress, resume, done, round).await?;
    let report = Report {
        applied: true,
        plan,
        done: Some(round),
    };
    // Nothing can be said of blobs whose end is not known.
    let blind = report.plan.is_none() && round.renewed + round.repacked + round.failed == 0;
    context.print(&report, || match blind {
        true => "Nothing was due, as far as the ends of storage are known.\n".to_owned(),
        false => outcome(&round),
    })?;
    Ok(Exit::findings(round.failed > 0 || blind))
}

/// What a round has done, in a few lines.
pub fn outcome(round: &Round) -> String {
    let mut text = String::new();
    let mut line = |n: u64, what: &str| {
        if n > 0 {
            let _ = writeln!(text, "{} {what}", things(n, "blob", "blobs"));
        }
    };
    line(round.renewed, "renewed");
    line(round.extended, "of these extended on the chain");
    line(round.repacked, "repacked");
    line(round.deleted, "without live blocks deleted on the chain");
    if round.failed > 0 {
        let failures = things(round.failed, "failure", "failures");
        let _ = writeln!(
            text,
            "{failures}: the lines above say why, and the same command tries again"
        );
    }
    if text.is_empty() && round.stores == 0 {
        return "Nothing was due.\n".to_owned();
    }
    let _ = writeln!(
        text,
        "{} paid for {}",
        frost(round.frost),
        things(round.stores, "store", "stores")
    );
    text
}
