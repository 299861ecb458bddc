//! A thread that damages a read cache while it is in use: it cuts, overwrites and removes the
//! cache's files, and adds foreign ones. No such damage may make an answer wrong.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// The pause between two damages, in which the cache is filled again.
const PAUSE: Duration = Duration::from_millis(20);

/// Works until it is [stopped](Corruptor::stop).
pub struct Corruptor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Corruptor {
    pub fn start(cache: PathBuf, seed: u64) -> Corruptor {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut deeds = 0;
            while !stopped.load(Relaxed) {
                // A damage fails if the file does not exist; it is not counted.
                deeds += u64::from(damage(&cache, &mut rng).is_ok());
                std::thread::sleep(PAUSE);
            }
            deeds
        });
        Corruptor { stop, thread }
    }

    /// The number of damages.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("corruptor")
    }
}

fn damage(cache: &Path, rng: &mut StdRng) -> io::Result<()> {
    if rng.random_range(0..50) == 0 {
        return fs::remove_dir_all(cache);
    }
    if rng.random_range(0..20) == 0 {
        let path = cache.join(format!("{:010}.blocks", rng.random_range(0..100)));
        return fs::write(path, noise(rng));
    }
    let files = fs::read_dir(cache)?.filter_map(|entry| Some(entry.ok()?.path()));
    let files: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|e| e == "blocks"))
        .collect();
    let path = files.choose(rng).ok_or(io::ErrorKind::NotFound)?;
    let file = File::options().write(true).open(path)?;
    let at = rng.random_range(0..file.metadata()?.len().max(1));
    match rng.random_range(0..4) {
        0 => fs::remove_file(path),
        1 => file.set_len(at),
        _ => file.write_all_at(&noise(rng), at),
    }
}

fn noise(rng: &mut StdRng) -> Vec<u8> {
    let len = rng.random_range(1..2000);
    (0..len).map(|_| rng.random()).collect()
}
