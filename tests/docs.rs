//! The documents agree with the code: the README's table of keys is the parser's, every link
//! between documents leads to a target, and every metric and make target they name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use walrusds::config::KEYS;
use walrusds::METRICS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// README.md and its like, and everything in docs/.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in [root().to_owned(), root().join("docs")] {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    for name in [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/architecture.md",
        "docs/benchmarks.md",
        "docs/operations.md",
    ] {
        assert!(found.contains(&root().join(name)), "{name} is missing");
    }
    found
}

/// The lines outside of fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The line without its `code`.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// The text between backquotes, and the lines of fenced code.
fn code(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push(line.trim());
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// The names that GitHub gives to a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let count = seen.entry(slug.clone()).or_default();
        anchors.insert(match *count {
            0 => slug,
            n => format!("{slug}-{n}"),
        });
        *count += 1;
    }
    anchors
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let line = without_code(line);
        for part in line.split("](").skip(1) {
            found.push(part.split(')').next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// The rows of the table whose first heading is `first`, cell by cell.
fn table(text: &str, first: &str) -> Vec<Vec<String>> {
    let head = format!("| {first} |");
    let rows: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with(&head))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim().trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table that begins with {head}");
    rows
}

#[test]
fn the_readmes_table_is_what_the_parser_knows() {
    let rows = table(&read(&root().join("README.md")), "key");
    let expected: Vec<Vec<String>> = KEYS
        .iter()
        .map(|key| {
            let default = match key.default {
                "" => "–".to_owned(),
                text if text.contains(' ') => text.to_owned(),
                text => format!("`{text}`"),
            };
            vec![format!("`{}`", key.name), default, key.doc.to_owned()]
        })
        .collect();
    for (row, want) in rows.iter().zip(&expected) {
        assert_eq!(row, want);
    }
    assert_eq!(rows.len(), expected.len(), "number of keys");
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        for link in links(&read(&document)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = match link.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (link.as_str(), None),
            };
            let target = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            let fine = match anchor {
                _ if !target.exists() => false,
                Some(anchor) => anchors(&read(&target)).contains(anchor),
                None => true,
            };
            if !fine {
                let shown = document.strip_prefix(root()).unwrap();
                broken.push(format!("{}: {link}", shown.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_metric_is_described() {
    let described = table(&read(&root().join("docs/metrics.md")), "metric");
    let known: Vec<_> = METRICS
        .iter()
        .map(|metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            let name = format!("`{}`", metric.exported_name());
            vec![name, kind, metric.help.to_owned(), labels.join(", ")]
        })
        .collect();
    assert_eq!(described, known);
}

/// Engines on which no test has run are named as not supported wherever they are named, and by the
/// pages of those who look for an engine.
#[test]
fn engines_without_tests_are_named_as_not_supported() {
    let mut naming = BTreeSet::new();
    for document in documents() {
        let text = read(&document);
        for line in text.lines() {
            let named = ["YugabyteDB", "CockroachDB"].map(|engine| line.contains(engine));
            if named == [false, false] {
                continue;
            }
            assert!(
                named == [true, true] && line.contains("not supported"),
                "{}: {line}",
                document.display()
            );
            naming.insert(document.strip_prefix(root()).unwrap().to_owned());
        }
    }
    for page in ["docs/growing-the-index.md", "docs/operations.md"] {
        assert!(naming.contains(Path::new(page)), "{page}");
    }
}

#[test]
fn make_targets_exist() {
    let makefile = read(&root().join("Makefile"));
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter_map(|line| line.strip_prefix(".PHONY: "))
        .collect();
    for document in documents() {
        let text = read(&document);
        for code in code(&text) {
            let Some(rest) = code.trim_start_matches("$ ").strip_prefix("make ") else {
                continue;
            };
            let target = rest.split_whitespace().next().unwrap_or_default();
            assert!(
                targets.contains(target),
                "{}: `{code}`: there is no such target",
                document.display()
            );
        }
    }
}

/// The contract of the C ABI tells what a write and a close mean with a journal, by keys that
/// exist.
#[test]
fn the_c_contract_tells_of_the_journal() {
    let header = read(&root().join("include/walrusds.h"));
    let comment = |function: &str| {
        let (before, _) = header.split_once(&format!("int32_t {function}(")).unwrap();
        let comment = before.rsplit("/*").next().unwrap();
        comment.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let abi = read(&root().join("docs/abi.md"));
    for (function, keys) in [
        ("walrusds_put", ["journalPath", "journalSync"]),
        ("walrusds_close", ["journalPath", "drainTimeoutSeconds"]),
    ] {
        for key in keys {
            assert!(KEYS.iter().any(|known| known.name == key), "{key}");
            let named = format!("`{key}`");
            assert!(comment(function).contains(&named), "{function}: {key}");
            assert!(abi.contains(&named), "docs/abi.md: {key}");
        }
    }
}

/// Every command of `walrusds` that a document names exists, and no list of limits says that what
/// exists is missing.
#[test]
fn commands_exist() {
    let verbs: BTreeSet<_> = std::fs::read_dir(root().join("cli/tests/help"))
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            Some(path.file_stem()?.to_str()?.to_owned())
        })
        .collect();
    assert!(verbs.contains("status"), "{verbs:?}");
    for document in documents() {
        let text = read(&document);
        for code in code(&text) {
            let Some(rest) = code.trim_start_matches("$ ").strip_prefix("walrusds ") else {
                continue;
            };
            let verb = rest.split_whitespace().next().unwrap_or_default();
            let is_verb = verb.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
            assert!(
                !is_verb || verb.starts_with('-') || verbs.contains(verb),
                "{}: `{code}`: there is no such command",
                document.display()
            );
        }
    }
    for document in ["README.md", "CHANGELOG.md"] {
        let text = read(&root().join(document)).to_lowercase();
        for denial in [
            "no operator's command",
            "api alone as yet",
            "not in kubo's prometheus endpoint",
            "no car and quilt packs",
        ] {
            assert!(!text.contains(denial), "{document}: {denial}");
        }
    }
}

#[test]
fn helpers_read_markdown_as_github_does() {
    let text = "# A title, *so* `x`!\n## Same\n```\n# no heading\n[no](link.md)\n```\n## Same\n[a](b.md#c) `[n](o)` [d](e)";
    let expected = ["a-title-so-x", "same", "same-1"].map(String::from);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    assert_eq!(links(text), ["b.md#c", "e"]);
    assert_eq!(
        code("a `make x` b\n```sh\nmake y\n```"),
        ["make x", "make y"]
    );
}

/// The names of metrics in a text, without the ending of a histogram's line.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text
        .split(|c| !word(c))
        .filter(|w| w.starts_with("walrusds_"));
    let histograms = METRICS
        .iter()
        .filter(|m| m.kind == walrusds::MetricKind::Histogram);
    let histograms: BTreeSet<_> = histograms.map(|m| m.exported_name()).collect();
    let family = |name: &str| {
        let endings = ["_bucket", "_sum", "_count"].into_iter();
        let mut families = endings.filter_map(|ending| name.strip_suffix(ending));
        let family = families.find(|family| histograms.contains(*family));
        family.unwrap_or(name).to_owned()
    };
    names.map(family).collect()
}

#[test]
fn dashboard_alerts_and_runbook_name_real_metrics() {
    let known: BTreeSet<_> = METRICS.iter().map(|m| m.exported_name()).collect();
    for (file, least) in [
        ("contrib/grafana/walrusds.json", 40),
        ("contrib/prometheus/walrusds.rules.yml", 10),
        ("docs/runbook.md", 5),
    ] {
        let named = metrics_in(&read(&root().join(file)));
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
        assert!(named.len() >= least, "{file} names only {named:?}");
    }
    assert_eq!(
        metrics_in("rate(walrusds_upload_fill_ratio_bucket[5m]) / walrusds_x_count"),
        BTreeSet::from(["walrusds_upload_fill_ratio", "walrusds_x_count"].map(String::from))
    );
}

#[test]
fn every_alert_has_its_entry_in_the_runbook() {
    let rules = read(&root().join("contrib/prometheus/walrusds.rules.yml"));
    let values = |key: &str| -> Vec<String> {
        let lines = rules.lines().map(str::trim);
        let values = lines.filter_map(|line| line.strip_prefix(key));
        values.map(|value| value.trim().to_owned()).collect()
    };
    let (alerts, entries) = (values("- alert:"), values("runbook:"));
    assert!(!alerts.is_empty());
    let headings = anchors(&read(&root().join("docs/runbook.md")));
    let expected: Vec<_> = alerts
        .iter()
        .map(|alert| format!("docs/runbook.md#{}", alert.to_lowercase()))
        .collect();
    assert_eq!(entries, expected);
    for alert in &alerts {
        assert!(headings.contains(&alert.to_lowercase()), "{alert}");
    }
    let mut known: BTreeSet<_> = alerts.iter().map(|alert| alert.to_lowercase()).collect();
    known.insert("runbook".to_owned());
    assert_eq!(headings, known, "an entry without an alert");
}
