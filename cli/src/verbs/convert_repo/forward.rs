//! From flatfs to Walrus.

use serde_json::{Map, Value};
use walrusds::admin::flatfs::Flatfs;
use walrusds::admin::import::{self, FlatfsBlocks, Trouble};
use walrusds::config::IndexConfig;
use walrusds::datastore::Inspection;
use walrusds::Config;

use super::super::init::settings;
use super::report::{Price, Report, Room};
use super::state::{Phase, Standing, State, To};
use super::survey::{self, Sum};
use super::switch::switch;
use super::{copy, free_bytes, room, Args, Repo, RESUME};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::kubo::lock::RepoLock;
use crate::kubo::spec;
use crate::output::count;
use crate::progress::Unit;

/// What the index on this disk takes for a block, about (bytes).
const ROW: u64 = 400;

pub async fn run(args: &Args, context: &Context, mut repo: Repo) -> Result<Exit, Failure> {
    repo.settle()?;
    let entry = repo.entry()?;
    if spec::kind(&entry) == "walrusds" {
        return converted(context, &repo);
    }
    let under_way = repo.under_way(To::Walrusds)?.cloned();
    let standing = match &under_way {
        Some(state) => state.standing(&repo.dir)?,
        None => {
            repo.fits(&entry)?;
            Standing::Before
        }
    };
    let flatfs = repo.flatfs(&entry)?;
    let (settings, config) = settings_of(args, context, &repo, under_way.as_ref()).await?;
    let mut report = Report::new(&repo.dir, To::Walrusds);
    if !args.yes {
        plan(context, &repo, &config, &flatfs, &mut report).await?;
        report.print(context)?;
        return Ok(Exit::Fine);
    }
    let source = survey::count_flatfs(context, &flatfs)?;
    if let IndexConfig::Sqlite(path) = &config.clone().resolve(&repo.dir).index {
        let dir = path.parent().unwrap_or(&repo.dir);
        room(dir, source.blocks.saturating_mul(ROW))?;
    }
    let mut state = match under_way {
        Some(state) => state,
        None => {
            let state = State::new(To::Walrusds, entry, spec::walrusds_entry(&settings));
            state.save(&repo.dir)?;
            state
        }
    };
    // The first copy needs no lock: the node works on. Between the two files there is no node.
    let first = match standing {
        Standing::Before => Some(copied(context, &config, &repo, &flatfs).await?),
        _ => None,
    };
    let held = RepoLock::take(&repo.dir, "what there is was copied, but ")?;
    state.standing(&repo.dir)?;
    let last = copied(context, &config, &repo, &flatfs).await?;
    let look = Inspection::open(config.clone(), &repo.dir);
    let look = context.or_stop(RESUME, look).await?;
    let compared = survey::compare(context, &flatfs, &look).await;
    let closed = look.close().await;
    let compared = compared?;
    closed?;
    if compared.not_in_index.number > 0 {
        return Err(Failure::Failed(format!(
            "blocks of the flatfs are not on Walrus after all was copied: {}; nothing was switched: run the same command \
             again, and if that does not help, `walrusds doctor`",
            compared.not_in_index.text()
        )));
    }
    switch(&repo.dir, &mut state, &held, &mut |_| Ok(()))?;
    drop(held);
    report.applied = true;
    report.phase = "switched";
    report.source = Some(compared.both);
    report.only_there = Some(compared.not_in_flatfs.number);
    finish(&mut report, first.as_ref(), &last, &config);
    if compared.not_in_flatfs.number > 0 {
        report.notes.push(format!(
            "{} blocks are on Walrus and not in the flatfs: other nodes of the index have put them, or this one has \
             removed them since they were copied (the next `ipfs repo gc` removes these)",
            count(compared.not_in_flatfs.number)
        ));
    }
    report.next = remains(&repo);
    report.print(context)?;
    Ok(Exit::Fine)
}

/// The command again, for a repo that is on Walrus.
fn converted(context: &Context, repo: &Repo) -> Result<Exit, Failure> {
    repo.under_way(To::Walrusds)?;
    let last = repo.state.as_ref().filter(|state| state.to == To::Walrusds);
    if last.is_none() {
        return Err(Failure::Failed(format!(
            "{} uses walrusds already: there is no flatfs to convert",
            repo.dir.display()
        )));
    }
    repo.has_switched()?;
    let mut report = Report::new(&repo.dir, To::Walrusds);
    report.applied = true;
    report.phase = "switched";
    report.next = remains(repo);
    report.print(context)?;
    Ok(Exit::Fine)
}

fn remains(repo: &Repo) -> Vec<String> {
    let path = repo.dir.display();
    vec![
        format!("IPFS_PATH={path} ipfs daemon     (an ipfs with walrusds built in, or the plugin in {path}/plugins)"),
        format!("IPFS_PATH={path} ipfs repo verify"),
        format!("walrusds --repo {path} convert-repo --remove-old     (shows it; with --yes it removes the flatfs)"),
    ]
}

/// The settings of the datastore to come: of the first run, or as they are given now.
async fn settings_of(
    args: &Args,
    context: &Context,
    repo: &Repo,
    under_way: Option<&State>,
) -> Result<(Map<String, Value>, Config), Failure> {
    let given = settings::given(&args.settings, context)?;
    let Some(stored) = under_way.and_then(|state| spec::settings(&state.new)) else {
        return settings::complete(given, args.force, context, &repo.dir).await;
    };
    let off =
        |key: &str, value: &Value| ["journalPath", "cachePath"].contains(&key) && value == "off";
    let other = given.iter().find(|(key, value)| match stored.get(*key) {
        Some(stored) => stored != *value,
        None => !off(key, value),
    });
    if let Some((key, _)) = other {
        return Err(Failure::Failed(format!(
            "a conversion of {} with other settings is under way: {key} differs. Leave the settings out to go on with \
             those of the first run, or forget that conversion (--cancel)",
            repo.dir.display()
        )));
    }
    let config = settings::checked(&stored)?;
    Ok((stored, config))
}

/// Copies what the index lacks. Blocks that cannot be copied end the conversion.
async fn copied(
    context: &Context,
    config: &Config,
    repo: &Repo,
    flatfs: &Flatfs,
) -> Result<import::Report, Failure> {
    let done = copy::to_walrus(context, config, &repo.dir, flatfs).await?;
    if done.left_out() == 0 {
        return Ok(done);
    }
    let mut text = format!(
        "{} blocks of the flatfs are damaged or cannot be copied, so nothing was switched",
        count(done.left_out())
    );
    let kinds = [
        (
            Trouble::Damaged,
            done.damaged,
            "are damaged: `ipfs repo verify` names all of them; fetch them anew, or remove their files, which hold nothing \
             of use",
        ),
        (
            Trouble::Unreadable,
            done.unreadable,
            "cannot be read: make their files readable, and keep them, as they may be good",
        ),
        (
            Trouble::Refused,
            done.refused,
            "cannot be stored: keep their files. A repo that needs these blocks has to stay on flatfs",
        ),
    ];
    for (trouble, sum, what) in kinds {
        if sum.blocks == 0 {
            continue;
        }
        text.push_str(&format!("; {} {what}", count(sum.blocks)));
        if let Some(named) = done.named.iter().find(|named| named.trouble == trouble) {
            let path = flatfs.path_of(&named.key);
            let path = path.map_or(named.key.clone(), |path| path.display().to_string());
            text.push_str(&format!(" (the first: {path}: {})", named.why));
        }
    }
    text.push_str(". Then run the same command again");
    Err(Failure::Failed(text))
}

fn finish(
    report: &mut Report,
    first: Option<&import::Report>,
    last: &import::Report,
    config: &Config,
) {
    let runs = || first.into_iter().chain([last]);
    let stored = || runs().map(|run| run.stored);
    report.copied = Some(Sum {
        blocks: stored().map(|sum| sum.blocks).sum(),
        bytes: stored().map(|sum| sum.bytes).sum(),
    });
    let known = first.unwrap_or(last).known;
    report.present = Some(Sum {
        blocks: known.blocks,
        bytes: known.bytes,
    });
    let frost = runs().map(|run| run.cost).sum();
    report.price = Some(Price {
        packs: runs().map(|run| run.packs).sum(),
        units: runs().map(|run| run.units).sum(),
        epochs: config.epochs,
        frost,
        known: frost > 0,
    });
}

/// What the command would do.
async fn plan(
    context: &Context,
    repo: &Repo,
    config: &Config,
    flatfs: &Flatfs,
    report: &mut Report,
) -> Result<(), Failure> {
    let opened = Inspection::open(config.clone(), &repo.dir);
    let opened = async { Ok::<_, Failure>(opened.await.ok()) };
    let look = context.or_stop(RESUME, opened).await?;
    let sum = |sum: import::Sum| Sum {
        blocks: sum.blocks,
        bytes: sum.bytes,
    };
    let source = match look {
        Some(look) => {
            let mut progress = context.progress("counting", Unit::Bytes);
            let mut on = |at: &import::Progress| progress.at(at.done.bytes);
            let source = Box::new(FlatfsBlocks::new(flatfs.clone())?);
            let options = import::Options::default();
            let looked = import::look(&look, source, &options, &mut on, &context.stop).await;
            let prices = look.prices().await;
            let closed = look.close().await;
            let looked = looked?;
            closed?;
            report.present = Some(sum(looked.known));
            report.copied = Some(sum(looked.stored));
            report.price = Some(price(looked.packs, looked.units, prices, config));
            sum(looked.found)
        }
        None => {
            let source = survey::count_flatfs(context, flatfs)?;
            report.present = Some(Sum::default());
            report.copied = Some(source);
            let prices = walrusds::admin::prices(config).await;
            let full = config.pack_target_size_bytes.max(1);
            let shards = u16::try_from(config.n_shards).unwrap_or(u16::MAX);
            let units = |len| walrusds::walrus::cost::units(len, shards).unwrap_or(0);
            let rest = source.bytes % full;
            let packs = source.bytes.div_ceil(full);
            let units = source.bytes / full * units(full) + if rest > 0 { units(rest) } else { 0 };
            report.price = Some(price(packs, units, prices, config));
            source
        }
    };
    report.source = Some(source);
    if let IndexConfig::Sqlite(path) = &config.clone().resolve(&repo.dir).index {
        report.room = Some(Room {
            needed: source.blocks.saturating_mul(ROW),
            free: free_bytes(path.parent().unwrap_or(&repo.dir))?,
        });
    }
    if repo
        .state
        .as_ref()
        .is_some_and(|state| state.phase != Phase::Switched)
    {
        report
            .notes
            .push("A conversion is under way, and --yes goes on with it.".to_owned());
    }
    report.notes.push(
        "The daemon may run while blocks are copied; for the switch it must be stopped. The old blocks stay until \
         --remove-old."
            .to_owned(),
    );
    Ok(())
}

fn price(
    packs: u64,
    units: u64,
    (prices, known): (walrusds::walrus::cost::Prices, bool),
    config: &Config,
) -> Price {
    let per_unit = prices
        .storage
        .saturating_mul(u64::from(config.epochs))
        .saturating_add(prices.write);
    Price {
        packs,
        units,
        epochs: config.epochs,
        frost: units.saturating_mul(per_unit),
        known,
    }
}
