//! Which blobs are due: those whose storage ends within the lead.
//!
//! The end epoch of a blob is the network's answer, and the epochs that were seen since tell ever
//! more sharply when it begins. `expires_at` is an estimate that was made once, by the machine's
//! clock at the moment of the store: it is years off where that clock was. So it counts only for
//! blobs whose end epoch is not known, and while no epoch was seen.

use std::time::Duration;

use super::{RenewalParts, MIN_RENEWAL_EPOCHS};
use crate::index::RenewItem;

/// The last end epoch that may begin within the lead. `None` if no epoch was seen, or the length of
/// epochs is not known.
pub(crate) fn last_due(parts: &RenewalParts) -> Option<u64> {
    let now = parts.clock.now();
    parts.epoch_clock.ends_within(now, parts.lead)
}

/// The cheapest way is tried again and again until this part of the lead is left (a quarter). Then
/// whatever else helps is paid for.
const LAST: u32 = 4;

/// Whether a blob with this end epoch can no longer wait for the cheapest way: the last part of the
/// lead has come, or the next round may come too late. Yes, if its end is not known.
pub(super) fn is_urgent(parts: &RenewalParts, end_epoch: i64) -> bool {
    due_within(parts, end_epoch, last_rounds(parts, LAST, 1))
}

/// How long so many rounds may take that are begun at this interval: half a round more, since a
/// round takes time itself.
pub(crate) fn time_of_rounds(interval: Duration, rounds: u32) -> Duration {
    interval.saturating_mul(2 * rounds + 1) / 2
}

/// The last part of the lead, but not less than `rounds` rounds take.
pub(super) fn last_rounds(parts: &RenewalParts, part: u32, rounds: u32) -> Duration {
    time_of_rounds(parts.interval, rounds).max(parts.lead / part)
}

/// Whether a blob with this end epoch may end within this time. Yes, if its end is not known.
pub(super) fn due_within(parts: &RenewalParts, end_epoch: i64, time: Duration) -> bool {
    let end = u64::try_from(end_epoch).ok().filter(|end| *end > 0);
    let now = parts.clock.now();
    let soon = parts.epoch_clock.ends_within(now, time);
    end.zip(soon).is_none_or(|(end, soon)| end <= soon)
}

/// Whether a blob that is due by its `expires_at`, or was due when it was listed, is due by its end
/// epoch, too. Yes, if that is not known.
pub(super) fn is_due(parts: &RenewalParts, item: &RenewItem) -> bool {
    let end = u64::try_from(item.end_epoch).ok().filter(|end| *end > 0);
    end.is_none_or(|end| ends_soon(parts, end))
}

/// Whether storage up to this epoch may end within the lead. No, if a renewal would bring nothing:
/// the lead may be longer than the time that a renewal buys.
pub(super) fn ends_soon(parts: &RenewalParts, end: u64) -> bool {
    let Some(last) = last_due(parts) else {
        return true;
    };
    let bought = parts.uploader.options.epochs.max(MIN_RENEWAL_EPOCHS);
    let present = parts.epoch_clock.now_epoch(parts.clock.now());
    let until = present.map(|(_, most)| most.saturating_add(bought.into()));
    end <= last && until.is_none_or(|until| end < until)
}
