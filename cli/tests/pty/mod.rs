//! A terminal for a program under test, as a person has it: a width, keys, Ctrl-C.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcsetwinsize, Winsize};

/// A program that runs on a terminal.
pub struct Terminal {
    keys: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    reader: std::thread::JoinHandle<()>,
    columns: u16,
    /// The answers, which the terminal shows as they are typed.
    typed: Vec<String>,
}

/// What a program has written until its end.
pub struct Ended {
    pub code: i32,
    pub text: String,
    columns: u16,
    typed: Vec<String>,
}

impl Terminal {
    /// Starts the command with these arguments on a terminal of so many columns. (`setsid` of
    /// util-linux makes that the terminal from which its signals come.)
    pub fn start(columns: u16, home: &Path, variables: &[(&str, &str)], args: &[&str]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&name);
        let side = || Stdio::from(open().expect(&name));
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_walrusds")])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TERM", "xterm-256color")
            .env("HOME", home)
            .env("IPFS_PATH", home)
            .envs(variables.iter().copied())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid of util-linux");
        let keys = File::from(master);
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let reader = {
            let (mut screen, seen) = (keys.try_clone().unwrap(), Arc::clone(&seen));
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                // An error is the end: the program has let go of the terminal.
                while let Ok(n @ 1..) = screen.read(&mut piece) {
                    seen.lock().unwrap().extend(&piece[..n]);
                }
            })
        };
        Terminal {
            keys,
            seen,
            child,
            reader,
            columns,
            typed: Vec::new(),
        }
    }

    /// What the program has written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until the program has written this, after what it had written when `types` was called
    /// last.
    pub async fn shows(&self, from: usize, part: &str) {
        let until = std::time::Instant::now() + testkit::PATIENCE;
        loop {
            let text = self.text();
            if text.get(from..).is_some_and(|text| text.contains(part)) {
                return;
            }
            let late = std::time::Instant::now() > until;
            assert!(
                !late && !self.reader.is_finished(),
                "{part:?} never came: {text}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Types keys. Returns where the text that comes then begins.
    pub fn types(&mut self, keys: impl AsRef<[u8]>) -> usize {
        let from = self.text().len();
        self.keys.write_all(keys.as_ref()).unwrap();
        from
    }

    /// Answers a question that has come since `from`. Returns where the text after the answer
    /// begins.
    pub async fn answers(&mut self, from: usize, question: &str, answer: &str) -> usize {
        self.shows(from, question).await;
        self.typed.push(answer.to_owned());
        self.types(format!("{answer}\n"))
    }

    /// Waits for the end of the program.
    pub async fn ended(self) -> Ended {
        let Terminal {
            keys,
            seen,
            mut child,
            reader,
            columns,
            typed,
        } = self;
        let wait = move || {
            let code = child.wait().unwrap().code().unwrap_or(-1);
            reader.join().unwrap();
            drop(keys);
            code
        };
        let code = tokio::task::spawn_blocking(wait).await.unwrap();
        let text = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
        Ended {
            code,
            text,
            columns,
            typed,
        }
    }
}

impl Ended {
    /// It has ended with this code, and has written what a person can read: the terminal breaks no
    /// word in two, and nothing is coloured. (A bar fills its line with blanks, so that the next
    /// text begins a new one.)
    #[track_caller]
    pub fn well(&self, code: i32) -> &Ended {
        assert_eq!(self.code, code, "{}", self.text);
        assert!(!self.text.contains("panicked"), "{}", self.text);
        for line in self.text.split(['\r', '\n']) {
            let mut line = plain(line);
            // An answer may be as long as the person likes.
            for answer in self.typed.iter().filter(|answer| !answer.is_empty()) {
                line = line.replacen(answer, "", 1);
            }
            let line: Vec<char> = line.chars().collect();
            let broken = |at: usize| line[at - 1] != ' ' && line[at] != ' ';
            let columns = usize::from(self.columns);
            let mut ends = (columns..line.len()).step_by(columns);
            let text: String = line.iter().collect();
            assert!(!ends.any(broken), "{columns} columns: {text}");
        }
        self
    }

    #[track_caller]
    pub fn says(&self, part: &str) -> &Ended {
        // A long line is wrapped, with the next one indented.
        let words: Vec<&str> = self.text.split_whitespace().collect();
        assert!(words.join(" ").contains(part), "{part:?}: {}", self.text);
        self
    }
}

/// A line without the sequences that move the cursor or erase. Others, such as colours, are none
/// that the command may write.
fn plain(line: &str) -> String {
    let (mut plain, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once('\x1b') {
        plain.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic());
        let end = end.unwrap_or_else(|| panic!("a sequence without an end: {line:?}"));
        let known = matches!(
            &after[end..=end],
            "A" | "B" | "G" | "H" | "J" | "K" | "h" | "l"
        );
        assert!(after.starts_with('[') && known, "{line:?}");
        rest = &after[end + 1..];
    }
    // What the terminal itself shows for Ctrl-C.
    (plain + rest).replace("^C", "")
}
