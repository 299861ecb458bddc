//! The fuzz targets, without their drivers: libFuzzer (`tests/fuzz/src/main.rs`, `make fuzz`) and
//! the replay of the committed inputs (`tests/fuzz_corpus.rs`, part of `cargo test`) call these
//! functions. A target panics when a property that it checks does not hold.

#[path = "targets/abi.rs"]
mod abi;
#[path = "targets/answers.rs"]
mod answers;
#[path = "targets/blocks.rs"]
mod blocks;
#[path = "targets/car.rs"]
mod car;
#[path = "targets/config.rs"]
mod config;
#[path = "targets/journal.rs"]
mod journal;
#[path = "../testkit/src/mem.rs"]
#[allow(dead_code)]
mod mem;

/// Takes one input and asserts the properties of the target.
pub type Target = fn(&[u8]);

/// A target by its name, which is also that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config::any_text),
    ("secrets", config::secrets_stay_secret),
    ("keys", blocks::keys_and_values),
    ("rows", blocks::absurd_rows),
    ("answers", answers::answers_of_servers),
    ("car", car::rows_of_blobs),
    ("journal", journal::damaged_files),
    ("abi", abi::calls),
];

/// A directory in memory where there is such a place: with every write synced, a target would do
/// little but wait for the disk.
fn directory() -> tempfile::TempDir {
    let made = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a directory for files")
}

/// Takes an input apart; past its end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Small, large or odd.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => {
                let mut bytes = [0; 8];
                let given = self.bytes(8);
                bytes[..given.len()].copy_from_slice(given);
                u64::from_le_bytes(bytes)
            }
            254 => u64::MAX,
            253 => i64::MAX as u64,
            252 => i64::MIN as u64,
            251 => u64::from(u32::MAX),
            small => u64::from(small),
        }
    }

    /// Up to 255 bytes.
    fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.bytes(len)
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()].clone()
    }
}
