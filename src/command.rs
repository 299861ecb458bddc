//! Programs of the operator's that the engine runs: for a publisher's token, for the chain.
//!
//! A program runs without a shell (its caller may run one) in a process group of its own. When the
//! run is given up, because its time is over or because the task that waits for it is dropped, the
//! whole group is killed: the program may have started others. What it prints is read to the end,
//! so that a chatty program does not die of a closed pipe, but only so much is kept. Once the
//! program has ended, what it has left behind (an agent, a logger) does not hold up its answer.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{kill_process_group, Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How many bytes of the end of stderr are kept.
const LAST_WORDS: usize = 4 << 10;

/// How long the pipes of a program that has ended are read, if those that it left behind hold them.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// How long a run may take, and how many bytes of stdout are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) time: Duration,
    pub(crate) output: usize,
}

/// What is left of a program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// What it printed on stdout, from the beginning.
    pub(crate) output: Vec<u8>,
    /// It printed more than that.
    pub(crate) cut: bool,
    /// The end of what it printed on stderr.
    pub(crate) last_words: Vec<u8>,
}

/// The reason why a program did not come to its end.
#[derive(Debug)]
pub(crate) enum NoEnd {
    /// It could not be started.
    Start(io::Error),
    /// It took longer than this, and was killed.
    TimedOut(Duration),
    /// Its pipes or its end could not be read.
    Io(io::Error),
}

/// Runs a program to its end.
pub(crate) async fn run(program: &str, arguments: &[&str], bounds: Bounds) -> Result<Ended, NoEnd> {
    let ended = tokio::time::timeout(bounds.time, to_its_end(program, arguments, bounds.output));
    ended.await.unwrap_or(Err(NoEnd::TimedOut(bounds.time)))
}

async fn to_its_end(program: &str, arguments: &[&str], kept: usize) -> Result<Ended, NoEnd> {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(NoEnd::Start)?;
    let mut group = KillOnDrop(child.id());
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(NoEnd::Io(io::Error::other("no pipes to it")));
    };
    let (mut output, mut cut, mut last_words) = (Vec::new(), false, Vec::new());
    let status = {
        let printed = async {
            let out = first(out, kept, &mut output, &mut cut);
            tokio::join!(out, last(err, LAST_WORDS, &mut last_words)).0
        };
        tokio::pin!(printed);
        tokio::select! {
            printed = &mut printed => {
                printed.map_err(NoEnd::Io)?;
                child.wait().await.map_err(NoEnd::Io)?
            }
            status = child.wait() => {
                // Those that it left behind hold its pipes. They may hand on its words, or stay.
                if let Ok(printed) = tokio::time::timeout(LEFT_BEHIND, &mut printed).await {
                    printed.map_err(NoEnd::Io)?;
                }
                status.map_err(NoEnd::Io)?
            }
        }
    };
    group.0 = None;
    cut_front(&mut last_words, LAST_WORDS);
    Ok(Ended {
        status,
        output,
        cut,
        last_words,
    })
}

/// Ends the processes of a group, by the ID of its leader, which must not have been waited for.
struct KillOnDrop(Option<u32>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(leader) = leader.and_then(Pid::from_raw) {
            // The processes may have ended by themselves.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Keeps at most the last `most` bytes. It cuts between words where it can, as a part of a secret
/// could not be found in them any more.
fn cut_front(text: &mut Vec<u8>, most: usize) {
    let surplus = text.len().saturating_sub(most);
    if surplus == 0 {
        return;
    }
    let is_within_a_word = !text[surplus - 1].is_ascii_whitespace();
    text.drain(..surplus);
    let end = text.iter().position(u8::is_ascii_whitespace);
    if let Some(end) = end.filter(|_| is_within_a_word) {
        text.drain(..end);
    }
}

/// Reads to the end and keeps the first `most` bytes; `cut` tells whether there were more.
async fn first(
    mut from: impl AsyncRead + Unpin,
    most: usize,
    kept: &mut Vec<u8>,
    cut: &mut bool,
) -> io::Result<()> {
    (&mut from).take(most as u64).read_to_end(kept).await?;
    let mut more = [0; 8 << 10];
    while from.read(&mut more).await? > 0 {
        *cut = true;
    }
    Ok(())
}

/// Reads to the end and keeps at least the last `most` bytes.
async fn last(mut from: impl AsyncRead + Unpin, most: usize, kept: &mut Vec<u8>) -> io::Result<()> {
    while from.read_buf(kept).await? > 0 {
        if kept.len() > 2 * most {
            // One byte more tells whether the rest begins within a word.
            kept.drain(..kept.len() - most - 1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        time: Duration::from_secs(120),
        output: 10,
    };

    #[tokio::test]
    async fn output_is_kept_from_its_beginning_and_errors_from_their_end() {
        let script = "printf 0123456789; head -c 100000 /dev/zero | tr '\\0' a >&2; printf end >&2";
        let ended = run("sh", &["-c", script], BOUNDS).await.unwrap();
        assert_eq!((&*ended.output, ended.cut), (&b"0123456789"[..], false));
        assert_eq!(ended.last_words.len(), LAST_WORDS);
        assert!(ended.last_words.ends_with(b"aend"));
        let ended = run("sh", &["-c", "printf 01234567890; exit 3"], BOUNDS).await;
        let ended = ended.unwrap();
        assert!(ended.cut && ended.output == b"0123456789");
        assert_eq!(ended.status.code(), Some(3));
    }

    #[tokio::test]
    async fn arguments_are_no_shell_text() {
        let ended = run("printf", &["%s", "$HOME;"], BOUNDS).await.unwrap();
        assert_eq!(ended.output, b"$HOME;");
        let missing = run("/nonexistent/program", &[], BOUNDS).await.unwrap_err();
        assert!(matches!(missing, NoEnd::Start(e) if e.kind() == io::ErrorKind::NotFound));
    }

    /// A program that has ended has answered, although one that it left behind holds its pipes: a
    /// wrapper's logger, an agent.
    #[tokio::test]
    async fn what_a_program_leaves_behind_does_not_keep_its_answer() {
        let script = "sleep 1000 & printf done; printf words >&2";
        let began = std::time::Instant::now();
        let ended = run("sh", &["-c", script], BOUNDS).await.unwrap();
        assert!(began.elapsed() < BOUNDS.time / 2);
        assert_eq!(
            (&*ended.output, &*ended.last_words),
            (&b"done"[..], &b"words"[..])
        );
        assert!(ended.status.success());
    }

    /// The program has started another one, which would hold the pipe open for ever.
    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >'{}'; wait", file.display());
        let started = async {
            loop {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                if let Ok(pid) = text.trim().parse::<i32>() {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let arguments = ["-c", &*script];
        let pid = tokio::select! {
            ended = run("sh", &arguments, BOUNDS) => panic!("{ended:?}"),
            pid = started => pid,
        };
        // Killed: gone, or waiting to be reaped by a process that does not reap.
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let short = Bounds {
            time: Duration::from_millis(50),
            ..BOUNDS
        };
        let ended = run("sleep", &["1000"], short).await;
        assert!(matches!(ended, Err(NoEnd::TimedOut(time)) if time == short.time));
    }
}
