//! The cost of a process: wall time, CPU seconds, peak memory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use rustix::process::{waitid, Pid, WaitId, WaitIdOptions};

/// The interval between reads of the peak, which is lost when a process ends.
const SAMPLING: Duration = Duration::from_millis(10);

/// The cost of one piece of work.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds.
    pub wall: f64,
    /// Seconds of user and system time of the `ipfs` process.
    pub cpu: f64,
    /// Peak resident memory of the `ipfs` process (MiB).
    pub rss: f64,
}

/// Runs a command to its end; it must succeed. Its output goes to `stdout`, else nowhere.
pub fn command(mut command: Command, scratch: &Path, stdout: Option<File>) -> Result<Cost> {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let what = format!("ipfs {}", args.join(" "));
    let errors = scratch.join("stderr");
    command
        .stdin(Stdio::null())
        .stdout(stdout.map_or_else(Stdio::null, Stdio::from))
        .stderr(File::create(&errors)?);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| what.clone())?;
    let pid = Pid::from_child(&child);
    let ended = AtomicBool::new(false);
    let cost = thread::scope(|scope| -> Result<Cost> {
        let peak = scope.spawn(|| {
            let mut peak = 0.0;
            while !ended.load(Ordering::Acquire) {
                peak = peak_rss(pid).unwrap_or(peak);
                thread::sleep(SAMPLING);
            }
            peak
        });
        // Left as a zombie for a moment: its times can still be read.
        let waited = waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        let wall = started.elapsed().as_secs_f64();
        ended.store(true, Ordering::Release);
        waited?;
        Ok(Cost {
            wall,
            cpu: cpu_seconds(pid)?,
            rss: peak.join().unwrap_or_default(),
        })
    })?;
    let status = child.wait()?;
    if !status.success() {
        let said = fs::read_to_string(&errors).unwrap_or_default();
        bail!("{what} ended with {status}:\n{}", said.trim());
    }
    Ok(cost)
}

/// The cost of `work` to a process that runs before and after it.
pub fn process<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let pid = Pid::from_raw(pid as i32).context("a process ID")?;
    // Begin the peak anew (proc(5)).
    fs::write(format!("/proc/{}/clear_refs", pid.as_raw_nonzero()), "5")
        .context("resetting the peak memory")?;
    let before = cpu_seconds(pid)?;
    let started = Instant::now();
    let done = work()?;
    let cost = Cost {
        wall: started.elapsed().as_secs_f64(),
        cpu: cpu_seconds(pid)? - before,
        rss: peak_rss(pid).context("no peak memory in /proc")?,
    };
    Ok((cost, done))
}

/// User and system time of all threads so far, in steps of a clock tick (10 ms).
fn cpu_seconds(pid: Pid) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // The second field is a name in parentheses and may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks = |field: usize| -> Result<f64> {
        let text = fields.get(field - 3).context("a short /proc/PID/stat")?;
        Ok(text.parse::<u64>()? as f64)
    };
    Ok((ticks(14)? + ticks(15)?) / rustix::param::clock_ticks_per_second() as f64)
}

/// Peak resident memory (MiB); `None` once the process has ended.
fn peak_rss(pid: Pid) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Flushes pending writes to the disk, so that no stage pays for the one before.
pub fn settle() {
    rustix::fs::sync();
}

/// Reads a file, or the files of a directory, so that the kernel has them in memory.
pub fn warm(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            warm(&entry?.path())?;
        }
        return Ok(());
    }
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// Makes the kernel forget files it keeps in memory; `false` without the right to.
pub fn drop_page_cache() -> bool {
    settle();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
