//! What `--help` says at 80 columns, as it is committed in `help/`. `UPDATE=1` writes it anew.

use std::path::Path;
use std::process::Command;

const COLUMNS: usize = 80;

fn help(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrusds"));
    command.env_clear().env("COLUMNS", COLUMNS.to_string());
    let output = command.args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// The commands that the help names.
fn commands(help: &str) -> Vec<String> {
    let (_, after) = help
        .split_once("\nCommands:\n")
        .expect("a list of commands");
    let list = after.lines().take_while(|line| !line.is_empty());
    let name = |line: &str| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    list.filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(name)
        .collect()
}

#[test]
fn help_is_what_is_committed_and_fits_a_terminal() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let main = help(&[]);
    let commands = commands(&main);
    assert!(commands.len() >= 11, "{commands:?}");
    let all = commands
        .iter()
        .map(|name| (format!("{name}.txt"), help(&[name])));
    let all: Vec<(String, String)> = all.chain([("walrusds.txt".to_owned(), main)]).collect();
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for (name, text) in &all {
        let wide = text.lines().find(|line| line.chars().count() > COLUMNS);
        assert_eq!(wide, None, "{name} is wider than {COLUMNS} columns");
        let file = dir.join(name);
        if update {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&file, text).unwrap();
        } else if std::fs::read_to_string(&file).ok().as_ref() != Some(text) {
            wrong.push(format!("{name} is now:\n{text}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "run with UPDATE=1, and read the difference\n{}",
        wrong.join("\n")
    );
    let known: Vec<&String> = all.iter().map(|(name, _)| name).collect();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            known.contains(&&name),
            "there is no command for help/{name}"
        );
    }
}
