//! Where a publisher's bearer token comes from.
//!
//! A publisher with JWT switched on uses a token up (its `jti`) as soon as it passes, *before* the
//! upload: after a 429, a 5xx or a timeout the same token is refused. So a token is obtained afresh
//! for every attempt and never kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::transport::one_line;
use crate::command::{self, Bounds, NoEnd};

/// How long the command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Shorter words are no secrets (bytes).
const SHORTEST_SECRET: usize = 4;
/// Longest token taken (bytes); stock HTTP servers refuse header lines beyond 8 to 16 KiB anyway.
const MAX_TOKEN: usize = 16 << 10;

/// Source of the `Authorization: Bearer` token that uploads carry. `Debug` shows neither the
/// command (it may hold a secret) nor a token.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// Uploads carry no token.
    #[default]
    None,
    /// A shell command (`sh -c`) that prints a fresh token; run once per attempt, killed after 30 s
    /// or when the call is cancelled.
    Command(String),
    /// A file that holds the token; read once per attempt.
    File(PathBuf),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::None => f.write_str("None"),
            Auth::Command(_) => f.write_str("Command(..)"),
            Auth::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Auth {
    /// A token for one attempt; `None` if no token is configured. `Err` is a reason without
    /// secrets.
    pub(crate) async fn token(&self) -> Result<Option<String>, String> {
        match self {
            Auth::None => Ok(None),
            Auth::Command(command) => run(command).await.map(Some),
            Auth::File(path) => {
                let shown = path.display();
                let text = read(path)
                    .await
                    .map_err(|e| format!("authTokenFile {shown}: {e}"))?;
                clean(&text)
                    .map(Some)
                    .map_err(|e| format!("authTokenFile {shown}: {e}"))
            }
        }
    }
}

async fn run(command: &str) -> Result<String, String> {
    let bounds = Bounds {
        time: COMMAND_TIMEOUT,
        output: MAX_TOKEN,
    };
    let ended = command::run("sh", &["-c", command], bounds)
        .await
        .map_err(|why| match why {
            NoEnd::Start(e) => format!("authTokenCommand: cannot start sh: {e}"),
            NoEnd::TimedOut(time) => {
                format!("authTokenCommand: no token within {} s", time.as_secs())
            }
            NoEnd::Io(e) => format!("authTokenCommand: {e}"),
        })?;
    let status = ended.status;
    if !status.success() {
        let mut said = String::from_utf8_lossy(&ended.last_words).into_owned();
        // A command that echoes its token on both streams must not put it into a log. A short word
        // may be a part of the token, and no longer word of which it is a part would be found then.
        let printed = String::from_utf8_lossy(&ended.output);
        let words = printed.split_whitespace();
        let mut words: Vec<&str> = words.filter(|word| word.len() >= SHORTEST_SECRET).collect();
        words.sort_unstable_by_key(|word| std::cmp::Reverse(word.len()));
        for word in words {
            said = said.replace(word, "[redacted]");
        }
        let said = one_line(&said, 200);
        let colon = if said.is_empty() { "" } else { ": " };
        return Err(format!("authTokenCommand: {status}{colon}{said}"));
    }
    let token = match ended.cut {
        true => Err(too_long()),
        false => clean(&ended.output),
    };
    token.map_err(|e| format!("authTokenCommand: {e}"))
}

/// The content of the file, as far as a token goes and one byte more.
async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut text = Vec::new();
    let mut token = file.take(MAX_TOKEN as u64 + 1);
    token.read_to_end(&mut text).await?;
    Ok(text)
}

fn too_long() -> String {
    format!("the token is longer than {MAX_TOKEN} bytes")
}

fn clean(text: &[u8]) -> Result<String, String> {
    if text.len() > MAX_TOKEN {
        return Err(too_long());
    }
    let text = std::str::from_utf8(text)
        .map_err(|_| "the token is not text".to_string())?
        .trim();
    if text.is_empty() {
        return Err("the token is empty".into());
    }
    if !text.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        return Err("the token holds blanks, control or non-ASCII characters".into());
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Auth {
        Auth::Command(text.into())
    }

    #[tokio::test]
    async fn command_output_is_trimmed() {
        let token = command("printf ' abc.def \\n\\n'").token().await;
        assert_eq!(token, Ok(Some("abc.def".into())));
        assert_eq!(Auth::None.token().await, Ok(None));
    }

    #[tokio::test]
    async fn failures_name_the_key_and_never_the_token() {
        for (text, part) in [
            ("true", "empty"),
            ("printf 'a\\001b'", "control"),
            ("printf 'a\\nb'", "control"),
            ("printf '\\377\\376'", "not text"),
            (
                "echo s3cret; echo wrong s3cret key >&2; exit 3",
                "wrong [redacted] key",
            ),
            (
                "echo a cret s3cret; echo wrong s3cret, a key >&2; exit 3",
                "wrong [redacted], a key",
            ),
            // The end of stderr that is kept begins within the token.
            (
                "echo s3cret; printf s3cret >&2; printf ' x%.0s' $(seq 2046) >&2; exit 3",
                "exit status: 3: x x",
            ),
            ("head -c 100000 /dev/zero | tr '\\0' a", "longer"),
        ] {
            let error = command(text).token().await.unwrap_err();
            assert!(error.starts_with("authTokenCommand: "), "{error}");
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("cret"), "{error}");
        }
        let missing = Auth::File("/nonexistent/token".into());
        let error = missing.token().await.unwrap_err();
        assert!(
            error.starts_with("authTokenFile /nonexistent/token: "),
            "{error}"
        );
    }

    #[test]
    fn debug_hides_the_command() {
        assert!(!format!("{:?}", command("mint --key s3cret")).contains("s3cret"));
    }
}
