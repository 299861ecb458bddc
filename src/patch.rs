//! Patch IDs: the names of the members of a quilt.
//!
//! A quilt is a blob whose bytes are a matrix of symbols; a member of it has whole columns. Its
//! patch ID is base64url of the blob ID (32 bytes), a version, the first column and the column
//! after the last one (u16 LE each).

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;

const VERSION: u8 = 1;
const BLOB_ID: usize = 32;

/// The columns of a member: from `start` to before `end`, at least one. Column 0 belongs to the
/// index of the quilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    start: u16,
    end: u16,
}

impl Columns {
    /// `None` for columns that no member has.
    pub(crate) fn new(start: u16, end: u16) -> Option<Columns> {
        (0 < start && start < end).then_some(Columns { start, end })
    }

    /// The columns that a patch ID tells, if it is one of this blob.
    pub(crate) fn of(patch_id: &str, blob_id: &str) -> Option<Columns> {
        let id: [u8; BLOB_ID + 5] = URL_SAFE_NO_PAD.decode(patch_id).ok()?.try_into().ok()?;
        let (blob, rest) = id.split_at(BLOB_ID);
        let &[VERSION, a, b, c, d] = rest else {
            return None;
        };
        let columns = Columns::new(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        columns.filter(|_| decode(blob_id).is_some_and(|id| id == blob))
    }

    /// The patch ID of the member in these columns of a blob. `None` if the blob ID is none.
    pub(crate) fn patch_id(self, blob_id: &str) -> Option<String> {
        let mut id = decode(blob_id)?.to_vec();
        id.push(VERSION);
        id.extend_from_slice(&self.start.to_le_bytes());
        id.extend_from_slice(&self.end.to_le_bytes());
        Some(URL_SAFE_NO_PAD.encode(id))
    }

    pub(crate) fn start(self) -> u16 {
        self.start
    }

    pub(crate) fn end(self) -> u16 {
        self.end
    }

    /// These columns as an offset that no byte of a blob has, for a table without a column for
    /// patch IDs.
    pub(crate) fn as_offset(self) -> i64 {
        -1 - (i64::from(self.start) << 16 | i64::from(self.end))
    }

    /// The columns that such an offset stands for. `None` for all other offsets, and for negative
    /// ones that no writer of members has written.
    pub(crate) fn of_offset(offset: i64) -> Option<Columns> {
        let columns = u32::try_from((-1_i64).checked_sub(offset)?).ok()?;
        let (start, end) = (columns >> 16, columns & 0xffff);
        Columns::new(u16::try_from(start).ok()?, u16::try_from(end).ok()?)
    }
}

fn decode(blob_id: &str) -> Option<[u8; BLOB_ID]> {
    URL_SAFE_NO_PAD.decode(blob_id).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOB: &str = "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCw";

    #[test]
    fn a_patch_id_is_the_one_of_the_real_encoder() {
        let columns = Columns::new(2, 3).unwrap();
        let id = "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCwBAgADAA";
        assert_eq!(columns.patch_id(BLOB).as_deref(), Some(id));
        assert_eq!(Columns::of(id, BLOB), Some(columns));
        let other = "isJUV15Cqlr3O0HUFwK2cURUQ20sFo9Gt1BVOQ_3TZQ";
        let no_version = "hdLCZrle4H-71smk2IuGYKtmF3PdlF2v7jsQpFa4wCwCAgADAA";
        for (id, blob) in [(id, other), (no_version, BLOB), ("patch", BLOB), (id, "")] {
            assert_eq!(Columns::of(id, blob), None, "{id} of {blob}");
        }
        assert_eq!(columns.patch_id("quilt"), None);
    }

    #[test]
    fn other_offsets_stand_for_no_columns() {
        let least = -1 - (1 << 16 | 2);
        assert!(Columns::of_offset(least).is_some());
        for offset in [
            0,
            1,
            i64::MAX,
            -1,
            -5,
            -65_537,
            least + 1,
            -1 - (1 << 32),
            i64::MIN,
        ] {
            assert_eq!(Columns::of_offset(offset), None, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn columns_come_back(start in 0..=u16::MAX, end in 0..=u16::MAX) {
            match Columns::new(start, end) {
                None => prop_assert!(start == 0 || start >= end),
                Some(columns) => {
                    prop_assert!(columns.as_offset() < 0);
                    prop_assert_eq!(Columns::of_offset(columns.as_offset()), Some(columns));
                    let id = columns.patch_id(BLOB).unwrap();
                    prop_assert_eq!(id.len(), 50);
                    prop_assert_eq!(Columns::of(&id, BLOB), Some(columns));
                }
            }
        }
    }
}
