//! The modules stand as docs/architecture.md says: imports point downwards, and no files of a room
//! import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The directories of tests and their tools; they may import any module.
const FOR_TESTS: &[&str] = &["interleave", "schedules"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file without comments and without the part behind `#[cfg(test)]` at its end.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow `prefix` in the code, also in groups (`use crate::{a, b}`).
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        let letters = text
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_');
        letters.collect()
    };
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut first = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => first = true,
                        c if c.is_whitespace() => {}
                        _ if first => {
                            names.insert(word(&group[i..]));
                            first = false;
                        }
                        _ => {}
                    }
                }
            }
            None => {
                names.insert(word(rest));
            }
        }
    }
    names
}

/// The module of the crate that a file belongs to.
fn module(file: &Path) -> String {
    let path = file.strip_prefix(root().join("src")).unwrap();
    let first = path.components().next().unwrap().as_os_str();
    Path::new(first)
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

/// The lines of modules in docs/architecture.md, the highest first.
fn floors() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, after) = text.split_once("```floors\n").expect("the block of floors");
    let (block, _) = after.split_once("```").unwrap();
    let floor = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    block.lines().map(floor).collect()
}

#[test]
fn imports_point_downwards() {
    let floors = floors();
    let mut floor_of = BTreeMap::new();
    for (i, floor) in floors.iter().enumerate() {
        for module in floor {
            assert_eq!(floor_of.insert(module.clone(), i), None, "{module} twice");
        }
    }
    let files = files(&root().join("src"));
    let modules: BTreeSet<String> = files.iter().map(|f| module(f)).collect();
    let mut arrows = 0;
    let mut wrong = Vec::new();
    for file in &files {
        let from = module(file);
        if from == "lib" || FOR_TESTS.contains(&&*from) || file.ends_with("tests.rs") {
            continue;
        }
        let Some(floor) = floor_of.get(&from) else {
            panic!("docs/architecture.md gives {from} no floor");
        };
        for to in names_after(&code(file), "crate::") {
            if to == from || !modules.contains(&to) || FOR_TESTS.contains(&&*to) {
                continue;
            }
            arrows += 1;
            if floor_of.get(&to).is_none_or(|below| below <= floor) {
                wrong.push(format!("{}: {from} imports {to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(arrows > 100, "{arrows} imports were found");
    for module in floor_of.keys() {
        assert!(modules.contains(module), "there is no module {module}");
    }
}

#[test]
fn no_files_of_a_room_import_each_other_in_a_circle() {
    let mut rooms: BTreeMap<PathBuf, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let devnet = root().join("devnet/src");
    let all = [files(&root().join("src")), files(&devnet)].concat();
    for file in all {
        let room = file.parent().unwrap().to_owned();
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if room == root().join("src") || ["lib", "main", "mod", "tests"].contains(&&*name) {
            continue;
        }
        let prefix = if room == devnet { "crate::" } else { "super::" };
        let imports = names_after(&code(&file), prefix);
        rooms.entry(room).or_default().insert(name, imports);
    }
    let mut arrows = 0;
    for (room, mut files) in rooms {
        let names: BTreeSet<String> = files.keys().cloned().collect();
        for imports in files.values_mut() {
            imports.retain(|name| names.contains(name));
            arrows += imports.len();
        }
        // Repeatedly removes files without imports among the rest, until no file is left, or a
        // circle.
        loop {
            let free: Vec<String> = files
                .iter()
                .filter(|(_, imports)| imports.iter().all(|name| !files.contains_key(name)))
                .map(|(name, _)| name.clone())
                .collect();
            if free.is_empty() {
                break;
            }
            for name in free {
                files.remove(&name);
            }
        }
        assert!(
            files.is_empty(),
            "a circle in {}: {files:?}",
            room.display()
        );
    }
    assert!(arrows > 40, "{arrows} imports were found");
}
