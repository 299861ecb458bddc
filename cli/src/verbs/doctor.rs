//! `doctor`: whether everything is as a node needs it.

use std::io::{IsTerminal as _, Write as _};

use serde_json::{json, Value};
use walrusds::admin::doctor::{doctor, price_of_store, Diagnosis, Health, Options, SCHEMA};
use walrusds::Config;

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{frost, wrapped, wrapped_err};

/// Tests publishers, aggregators, database, disks, wallet and Kubo's settings
///
/// Each answer says what was found, why it matters, and the line that mends it. Nothing is changed
/// and nothing is paid for, but with --store one tiny blob is stored and read back, after its price
/// was shown. Exits with 3 if something will make trouble, with 1 if something does not work.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stores a tiny blob for one epoch and reads it back; shows the price and asks first
    #[arg(long)]
    store: bool,
    /// With --store: does not ask
    #[arg(long, short = 'y', requires = "store")]
    yes: bool,
}

pub(super) fn line(diagnosis: &Diagnosis) -> String {
    let sign = match diagnosis.health {
        Health::Good => "ok",
        Health::Advice => "advice",
        Health::Warning => "warning",
        _ => "BAD",
    };
    let mut text = wrapped(
        &format!("{sign:<8} {:<11} {}", diagnosis.part, diagnosis.what),
        21,
    );
    if !diagnosis.why.is_empty() {
        text.push_str(&wrapped(&format!("{:<20} why:  {}", "", diagnosis.why), 27));
    }
    if let Some(cure) = &diagnosis.cure {
        text.push_str(&wrapped(&format!("{:<20} cure: {cure}", ""), 27));
    }
    text
}

/// Kubo's configuration, if the settings came from there.
fn kubo(found: &str) -> Option<Value> {
    let text = std::fs::read_to_string(found).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    value.get("Datastore").is_some().then_some(value)
}

/// Shows the price of the tiny blob, and asks.
async fn agreed(config: &Config, yes: bool) -> Result<bool, Failure> {
    let price = price_of_store(config).await;
    let frost = match price.frost {
        Some(n) => format!("{} and gas", frost(n)),
        None => "the network's price is not known here; walrusCommand would tell it".to_owned(),
    };
    let said = format!(
        "A blob of 64 bytes for one epoch is billed as {} units ({frost}). The publisher's wallet pays.",
        price.units
    );
    if !yes && !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "--store asks before it pays, and there is no terminal to ask on: add --yes".to_owned(),
        ));
    }
    confirmed(&said, "Store it?", yes).await
}

/// Says what is about to be paid for, and asks on the terminal; with `yes` it does not ask.
pub(super) async fn confirmed(said: &str, question: &str, yes: bool) -> Result<bool, Failure> {
    let mut err = std::io::stderr();
    let _ = write!(err, "{}", wrapped_err(said, 0));
    if yes {
        return Ok(true);
    }
    let _ = write!(err, "{question} [y/N] ");
    let _ = err.flush();
    let mut line = OpenLine { open: true };
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = answer.await.ok().and_then(Result::ok).unwrap_or_default();
    // The answer ends the line, unless the input ended.
    line.open = answer.is_empty();
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A question whose line is ended before something else is said: Ctrl-C gives up the wait for the
/// answer.
struct OpenLine {
    open: bool,
}

impl Drop for OpenLine {
    fn drop(&mut self) {
        if self.open {
            let _ = writeln!(std::io::stderr());
        }
    }
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    let source = context.source()?;
    let config = source.config.clone();
    let store = match args.store {
        true => {
            context
                .or_stop("nothing was changed", agreed(&config, args.yes))
                .await?
        }
        false => false,
    };
    let options = Options::default()
        .with_store(store)
        .with_kubo(kubo(&source.found));
    let mut all: Vec<Diagnosis> = Vec::new();
    let asked = async {
        doctor(config, &source.repo, &options, &mut |diagnosis| {
            if !context.global.json {
                let _ = write!(std::io::stdout(), "{}", line(&diagnosis));
            }
            all.push(diagnosis);
        })
        .await
    };
    context.or_stop("nothing was changed", asked).await?;
    let worst = all.iter().map(|diagnosis| diagnosis.health).max();
    let of = |health| all.iter().filter(|d| d.health == health).count();
    let (bad, warnings, advice) = (of(Health::Bad), of(Health::Warning), of(Health::Advice));
    let result = json!({
        "schema": SCHEMA,
        "config": source.found,
        "worst": worst.unwrap_or(Health::Good).name(),
        "bad": bad,
        "warnings": warnings,
        "advice": advice,
        "diagnoses": all.iter().map(Diagnosis::to_json).collect::<Vec<_>>(),
    });
    let failure = (worst == Some(Health::Bad)).then(|| {
        Failure::Failed(format!(
            "{bad} of {} tests show something that does not work",
            all.len()
        ))
    });
    context.print_both(&result, failure.as_ref(), || {
        format!(
            "\n{} tests: {bad} bad, {warnings} warnings, {advice} pieces of advice.\n",
            all.len()
        )
    })?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(Exit::findings(worst == Some(Health::Warning))),
    }
}
