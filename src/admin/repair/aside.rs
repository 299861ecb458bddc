//! What is in files that the journal has set aside, and whether they may be deleted.
//!
//! Such a file has damaged blocks, and whole ones that were on Walrus, replaced or deleted when it
//! was set aside. So nothing is needed of it if Walrus gives every block of the index, and each of
//! its whole blocks has a row or waits in the journal.

use super::super::check;
use super::sources::Sources;
use super::Told;
use crate::error::Result;
use crate::index::Index;
use crate::journal::Contents;

/// Keys that are looked up together.
const TOGETHER: usize = 1000;

/// Whether a check has read every block of the index from Walrus. One byte of each blob, which a
/// check asks for by itself, does not tell whether the others are right.
pub(super) fn proves_all_sound(options: &check::Options, found: &check::Summary) -> bool {
    let all = options.only.is_none()
        && options.from.after.is_empty()
        && options.from.data == check::Data::Read(check::Sample::All)
        && found.stopped.is_none();
    all && found.cursor.errors == 0
}

/// Tells of each file what is in it. `sound`: Walrus gives every block of the index.
///
/// # Errors
/// Those of the index.
pub(super) async fn tell(
    sources: &Sources,
    index: &dyn Index,
    sound: bool,
    on: &mut (dyn FnMut(Told) + Send),
) -> Result<()> {
    for contents in sources.aside.contents() {
        let elsewhere = count_elsewhere(sources, index, &contents.whole).await?;
        let again = count_elsewhere(sources, index, &contents.damaged).await?;
        on(Told::Source(words(&contents, elsewhere, again, sound)));
    }
    Ok(())
}

/// How many of the keys have a row or wait in the journal.
async fn count_elsewhere(sources: &Sources, index: &dyn Index, keys: &[String]) -> Result<usize> {
    let mut count = 0;
    for keys in keys.chunks(TOGETHER) {
        let rows = index.get_many(keys).await?;
        let known = keys.iter().zip(rows);
        count += known
            .filter(|(key, row)| row.is_some() || sources.in_journal(key))
            .count();
    }
    Ok(count)
}

/// `elsewhere`, `again`: how many of its whole and of its damaged blocks have a row or wait in the
/// journal.
fn words(contents: &Contents, elsewhere: usize, again: usize, sound: bool) -> String {
    let (whole, damaged) = (contents.whole.len(), contents.damaged.len());
    let alone = whole - elsewhere;
    let mut text = format!(
        "{} was set aside by the journal. Blocks in it: {whole} whole ({elsewhere} of them in the index or \
         waiting in the journal), {damaged} damaged ({again} of them stored again or waiting)",
        contents.path.display()
    );
    if !contents.understood {
        text += ", and bytes that cannot be told to be blocks";
    }
    if contents.listed > 0 {
        text += &format!(
            ". Lost on this disk, and neither put again nor deleted since: {} (the file DAMAGED beside it names them)",
            contents.listed
        );
    }
    text += match (sound, alone) {
        (false, _) => {
            ". Keep it until `walrusds repair --read-data`, without --blob and --resume, finds no errors"
        }
        (true, 0) if contents.listed > 0 || !contents.understood => {
            ". No whole block is found there alone: it may be deleted, unless you want to examine what is damaged"
        }
        (true, 0) => ". Nothing in it is needed: it may be deleted",
        (true, _) => {
            ". The other whole blocks were deleted since, or the index has lost their rows (a restore from a backup): \
             if it has not, the file may be deleted"
        }
    };
    text
}
