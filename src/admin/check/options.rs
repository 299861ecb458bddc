//! What a check looks at, and from where it goes on.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// What is read of each blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Data {
    /// Nothing: the index alone is looked at.
    None,
    /// One byte at the end of the last block: whether the blob is there, and long enough.
    #[default]
    Probe,
    /// Every block, and one byte of the blobs that are not chosen.
    Read(Sample),
}

/// The blobs that are chosen to be read. Whether a blob is chosen depends on its ID alone (and on
/// the seed), so that a check which goes on later chooses the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sample {
    /// All.
    All,
    /// So many of 10,000, other ones for each seed.
    Share {
        /// 1 to 10,000.
        of_10000: u32,
        /// Chooses which.
        seed: u64,
    },
    /// One of several groups, which together hold every blob.
    Group {
        /// 1 to `of`.
        number: u32,
        /// How many groups there are.
        of: u32,
    },
}

fn hash(seed: u64, blob_id: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_be_bytes());
    hasher.update(blob_id.as_bytes());
    let digest = hasher.finalize();
    digest[..8]
        .iter()
        .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

impl Sample {
    /// Reads `5%`, `0.5%` or `2/7`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] that says what is expected.
    pub fn parse(text: &str, seed: u64) -> Result<Sample> {
        let wrong = || {
            let text: String = text.chars().take(40).collect();
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{text:?} is no part of the blobs: expected a percentage such as 5% (at least 0.01%, at most 100%), or N/M such as 2/7 (group 2 of 7)"),
            )
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
            let of_10000 = (percent * 100.0).round();
            if !(1.0..=10_000.0).contains(&of_10000) {
                return Err(wrong());
            }
            return Ok(Sample::Share {
                of_10000: of_10000 as u32,
                seed,
            });
        }
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let number: u32 = number.trim().parse().map_err(|_| wrong())?;
        let of: u32 = of.trim().parse().map_err(|_| wrong())?;
        match number >= 1 && number <= of {
            true => Ok(Sample::Group { number, of }),
            false => Err(wrong()),
        }
    }

    /// Whether a blob is chosen.
    pub fn takes(self, blob_id: &str) -> bool {
        match self {
            Sample::All => true,
            Sample::Share { of_10000, seed } => hash(seed, blob_id) % 10_000 < u64::from(of_10000),
            Sample::Group { number, of } => {
                hash(0, blob_id) % u64::from(of.max(1)) == u64::from(number.saturating_sub(1))
            }
        }
    }
}

/// How far a check has come: what it reads, the last blob that it has finished with, and the
/// findings so far. Its text is one word without spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// What is read of each blob.
    pub data: Data,
    /// The last blob; empty at the beginning.
    pub after: String,
    /// Errors that were found so far.
    pub errors: u64,
    /// Warnings that were found so far.
    pub warnings: u64,
}

impl Cursor {
    /// The beginning.
    pub fn new(data: Data) -> Cursor {
        Cursor {
            data,
            after: String::new(),
            errors: 0,
            warnings: 0,
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("check1:")?;
        match self.data {
            Data::None => f.write_str("index")?,
            Data::Probe => f.write_str("probe")?,
            Data::Read(Sample::All) => f.write_str("all")?,
            Data::Read(Sample::Share { of_10000, seed }) => write!(f, "share-{of_10000}-{seed}")?,
            Data::Read(Sample::Group { number, of }) => write!(f, "group-{number}-{of}")?,
        }
        write!(f, ":{}:{}:{}", self.errors, self.warnings, self.after)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Cursor> {
        let wrong = || {
            let text: String = text.chars().take(100).collect();
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{text:?} is no cursor of a check: give the text that an interrupted check has printed after --resume"),
            )
        };
        let rest = text.trim().strip_prefix("check1:").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.splitn(4, ':').collect();
        let [data, errors, warnings, after] = parts[..] else {
            return Err(wrong());
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let small = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let words: Vec<&str> = data.split('-').collect();
        let sample = |part: String, seed: u64| Sample::parse(&part, seed).map_err(|_| wrong());
        let data = match words[..] {
            ["index"] => Data::None,
            ["probe"] => Data::Probe,
            ["all"] => Data::Read(Sample::All),
            ["share", of_10000, seed] => {
                let percent = f64::from(small(of_10000)?) / 100.0;
                Data::Read(sample(format!("{percent}%"), number(seed)?)?)
            }
            ["group", n, of] => Data::Read(sample(format!("{n}/{of}"), 0)?),
            _ => return Err(wrong()),
        };
        Ok(Cursor {
            data,
            after: after.to_owned(),
            errors: number(errors)?,
            warnings: number(warnings)?,
        })
    }
}

/// How a check is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What is read, and from where on.
    pub from: Cursor,
    /// Only this blob; all if it is `None`. The totals are not looked at then.
    pub only: Option<String>,
    /// Requests for data at a time, each of at most 16 MiB. Memory for data is bounded by these.
    pub parallel: usize,
    /// Blobs that end within this time are reported; `None`: within one epoch of the configuration.
    pub soon: Option<std::time::Duration>,
    /// After so many blobs in a row that could not be read the check stops.
    pub give_up_after: u64,
    /// If the totals differ from the rows, they are compared once more after this time: a running
    /// node writes its share of them every 5 s.
    pub settle: std::time::Duration,
}

setters! { Options {
    with_from(from: Cursor);
    with_only(only: Option<String>);
    with_parallel(parallel: usize);
    with_soon(soon: Option<std::time::Duration>);
    with_give_up_after(give_up_after: u64);
    with_settle(settle: std::time::Duration);
} }

impl Default for Options {
    fn default() -> Self {
        Options {
            from: Cursor::new(Data::default()),
            only: None,
            parallel: 8,
            soon: None,
            give_up_after: 32,
            settle: std::time::Duration::from_secs(7),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_blobs() {
        assert_eq!(
            Sample::parse("5%", 7).unwrap(),
            Sample::Share {
                of_10000: 500,
                seed: 7
            }
        );
        assert_eq!(
            Sample::parse("2/7", 0).unwrap(),
            Sample::Group { number: 2, of: 7 }
        );
        for wrong in [
            "", "5", "0%", "101%", "x%", "0/3", "4/3", "1/0", "1/", "-1%", "NaN%",
        ] {
            let error = Sample::parse(wrong, 0).unwrap_err();
            assert!(error.message().contains("expected a percentage"), "{error}");
        }
    }

    #[test]
    fn groups_hold_every_blob_once_and_shares_hold_their_share() {
        let ids: Vec<String> = (0..2000).map(|n| format!("blob{n}")).collect();
        for id in &ids {
            let groups = (1..=3).map(|number| Sample::Group { number, of: 3 });
            assert_eq!(groups.filter(|group| group.takes(id)).count(), 1);
        }
        let taken = |seed| {
            let sample = Sample::parse("25%", seed).unwrap();
            ids.iter().filter(|id| sample.takes(id)).count()
        };
        assert!((400..600).contains(&taken(1)), "{}", taken(1));
        assert!(Sample::parse("100%", 3).unwrap().takes("x"));
    }

    #[test]
    fn a_cursor_survives_its_text() {
        for data in [
            Data::None,
            Data::Probe,
            Data::Read(Sample::All),
            Data::Read(Sample::parse("0.5%", u64::MAX).unwrap()),
            Data::Read(Sample::parse("2/7", 0).unwrap()),
        ] {
            let cursor = Cursor {
                data,
                after: "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk".to_owned(),
                errors: 3,
                warnings: 4,
            };
            assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }
        for wrong in [
            "",
            "check2:all:0:0:",
            "check1:all:0:0",
            "check1:x:0:0:a",
            "check1:group-5-0:0:0:",
            "check1:group-0-0:0:0:a",
            "check1:group-3-2:0:0:a",
            "check1:share-99999-1:0:0:a",
            "check1:share-0-1:0:0:a",
            "check1:all:a:0:b",
        ] {
            let error = wrong.parse::<Cursor>().unwrap_err();
            assert!(error.message().contains("no cursor of a check"), "{error}");
        }
    }
}
