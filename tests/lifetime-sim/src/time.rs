//! The simulated time.
//!
//! Everything that a node waits for by a timer of tokio, and what its [`Clock`] shows, follows one
//! time that this module moves: slowly while the node works (20 ms for each real millisecond, so
//! that its pauses and retries take their course, while its time limits are far away), and by leaps
//! when nothing is under way. Answers of the network, statements of the index and programs take
//! real time, in which the simulated one hardly moves. So a busy machine slows the simulation down
//! and changes nothing in it.
//!
//! Leases in the index follow the database's clock, and do not run out in the simulation: see
//! `Backend::bury`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use walrus_devnet::BlockingDevnet;
use walrusds::clock::Clock;

const TICK: Duration = Duration::from_millis(1);
const PER_TICK: Duration = Duration::from_millis(20);
/// Nothing is under way when nothing was seen for so many ticks of real time, and then for so many
/// more, during each of which some simulated time passes: together longer than a node pauses
/// between two attempts of one request.
const QUIET_TICKS: u32 = 16;
const PAUSE_TICKS: u32 = 15;
const PER_PAUSE_TICK: Duration = Duration::from_secs(2);

/// A clock that shows the simulated time, or a time ahead of it.
pub struct SimClock {
    wall: Mutex<SystemTime>,
    ahead: Mutex<Duration>,
}

impl SimClock {
    /// A clock that is right and begins here.
    pub fn at(wall: SystemTime) -> SimClock {
        SimClock {
            wall: Mutex::new(wall),
            ahead: Mutex::default(),
        }
    }

    /// The true time.
    pub fn wall(&self) -> SystemTime {
        *self.wall.lock()
    }

    /// Lets the clock go wrong (or right, with zero).
    pub fn set_ahead(&self, ahead: Duration) {
        *self.ahead.lock() = ahead;
    }

    async fn pass(&self, time: Duration) {
        *self.wall.lock() += time;
        advance(time).await;
    }
}

impl Clock for SimClock {
    fn now(&self) -> SystemTime {
        *self.wall.lock() + *self.ahead.lock()
    }
}

/// A runtime whose timers stand still until the time is moved.
#[cfg(feature = "virtual-time")]
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let builder = builder.enable_all().start_paused(true);
    builder.build().expect("a runtime")
}

#[cfg(feature = "virtual-time")]
async fn advance(time: Duration) {
    tokio::time::advance(time).await;
}

/// Without the feature this program is only checked by the compiler.
#[cfg(not(feature = "virtual-time"))]
pub fn runtime() -> tokio::runtime::Runtime {
    panic!("built without the feature virtual-time: run scripts/lifetime-sim.sh")
}

#[cfg(not(feature = "virtual-time"))]
async fn advance(_time: Duration) {}

/// The flow of the time in one life of a node.
#[derive(Clone)]
pub struct Flow {
    clock: Arc<SimClock>,
    net: Arc<BlockingDevnet>,
    ticks: watch::Receiver<u64>,
    /// The thread that gives the beat.
    beater: Arc<Mutex<Option<PathBuf>>>,
}

impl Flow {
    /// Lets the time flow on the current runtime.
    pub fn start(clock: &Arc<SimClock>, net: &Arc<BlockingDevnet>) -> Flow {
        let (beat, mut beats) = mpsc::unbounded_channel();
        // tokio moves a time that stands still by itself, unless a blocking task is running.
        let beater = Arc::new(Mutex::new(None));
        let itself = Arc::clone(&beater);
        tokio::task::spawn_blocking(move || {
            *itself.lock() = this_thread();
            while beat.send(()).is_ok() {
                std::thread::sleep(TICK);
            }
        });
        let (count, ticks) = watch::channel(0);
        let flow = Flow {
            clock: Arc::clone(clock),
            net: Arc::clone(net),
            ticks,
            beater,
        };
        let clock = Arc::clone(clock);
        tokio::spawn(async move {
            while beats.recv().await.is_some() {
                while beats.try_recv().is_ok() {}
                clock.pass(PER_TICK).await;
                count.send_modify(|n| *n += 1);
            }
        });
        flow
    }

    /// Waits for about a millisecond of real time.
    pub async fn tick(&mut self) {
        let _ = self.ticks.changed().await;
    }

    /// The number of requests that the network has seen.
    pub fn requests(&self) -> u64 {
        self.net.stats().by_op.values().sum()
    }

    /// Waits until nothing is under way.
    pub async fn settle(&mut self) {
        let (mut quiet, mut seen) = (0, 0);
        while quiet < QUIET_TICKS + PAUSE_TICKS {
            self.tick().await;
            if quiet >= QUIET_TICKS {
                self.clock.pass(PER_PAUSE_TICK).await;
            }
            let stats = self.net.stats();
            let requests = stats.by_op.values().sum();
            let still = stats.in_flight == 0 && requests == seen && !self.is_busy();
            quiet = if still { quiet + 1 } else { 0 };
            seen = requests;
        }
    }

    /// Moves the time on to this moment. What falls due in between happens then, and is waited for:
    /// a leap never cuts work short that it has set off.
    pub async fn leap_to(&mut self, then: SystemTime) {
        self.settle().await;
        if let Ok(left) = then.duration_since(self.clock.wall()) {
            self.clock.pass(left).await;
        }
        self.settle().await;
    }

    /// Whether another thread of this process works or waits for a processor, or a program runs
    /// that it has started.
    fn is_busy(&self) -> bool {
        let idle = [self.beater.lock().clone(), this_thread()];
        let tasks = std::fs::read_dir("/proc/self/task");
        tasks.into_iter().flatten().flatten().any(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file));
            if read("children").is_ok_and(|children| !children.trim().is_empty()) {
                return true;
            }
            let name = Some(PathBuf::from(task.file_name()));
            // The state comes after the name, which ends with the last parenthesis.
            let stat = read("stat").unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            !idle.contains(&name) && state.starts_with(['R', 'D'])
        })
    }
}

/// The number of the thread that asks, as `/proc` names it.
fn this_thread() -> Option<PathBuf> {
    let link = std::fs::read_link("/proc/thread-self").ok()?;
    link.file_name().map(PathBuf::from)
}
