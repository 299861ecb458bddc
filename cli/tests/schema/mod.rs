//! The JSON of the program is that of docs/command.md: every field is described there with its
//! type, and every field that is described is there.
//!
//! A line of a block `schema COMMAND` has a path, a type and the meaning. A path ends with `[]` for
//! the members of an array. A type is one of JSON's (`integer` for a whole number), `map` for an
//! object with any names, and may end with `|null`. A path that begins with `?` may be missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

/// The paths of a command, with their types.
type Fields = BTreeMap<String, Field>;

#[derive(Debug)]
struct Field {
    types: Vec<String>,
    optional: bool,
}

fn documented() -> &'static BTreeMap<String, Fields> {
    static ALL: OnceLock<BTreeMap<String, Fields>> = OnceLock::new();
    ALL.get_or_init(|| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command.md");
        parse(&std::fs::read_to_string(file).expect("docs/command.md"))
    })
}

fn parse(text: &str) -> BTreeMap<String, Fields> {
    let mut all: BTreeMap<String, Fields> = BTreeMap::new();
    let mut command: Option<String> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("```schema ") {
            command = Some(name.trim().to_owned());
            all.entry(name.trim().to_owned()).or_default();
        } else if line.starts_with("```") {
            command = None;
        } else if let Some(fields) = command.as_ref().and_then(|name| all.get_mut(name)) {
            let mut words = line.split_whitespace();
            let (Some(path), Some(types), Some(_)) = (words.next(), words.next(), words.next())
            else {
                panic!("a line of a schema needs a path, a type and a meaning: {line:?}");
            };
            let field = Field {
                types: types.split('|').map(str::to_owned).collect(),
                optional: path.starts_with('?'),
            };
            let path = path.trim_start_matches('?').to_owned();
            assert!(fields.insert(path, field).is_none(), "twice: {line:?}");
        }
    }
    all
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Compares an output with the document.
#[track_caller]
pub fn saw(json: &Value) {
    let command = json["command"].as_str().expect("the name of the command");
    let part = match json.get("result") {
        Some(result) => (command, result),
        None => ("error", &json["error"]),
    };
    let fields = documented().get(part.0);
    let fields = fields.unwrap_or_else(|| panic!("docs/command.md has no schema {}", part.0));
    let mut wrong = Vec::new();
    compare("", part.1, fields, &mut wrong);
    assert!(
        wrong.is_empty(),
        "docs/command.md, schema {}:\n{}",
        part.0,
        wrong.join("\n")
    );
}

fn compare(path: &str, value: &Value, fields: &Fields, wrong: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                member(&path, value, fields, wrong);
            }
            let inside = |at: &str| -> Option<String> {
                let rest = match path {
                    "" => at,
                    _ => at.strip_prefix(path)?.strip_prefix('.')?,
                };
                (!rest.contains(['.', '['])).then(|| rest.to_owned())
            };
            for (at, field) in fields {
                let name = inside(at).filter(|name| !map.contains_key(name));
                if let Some(name) = name.filter(|_| !field.optional) {
                    wrong.push(format!("{path}: {name} is described and is not there"));
                }
            }
        }
        Value::Array(list) => {
            let path = format!("{path}[]");
            list.iter()
                .for_each(|value| member(&path, value, fields, wrong));
        }
        _ => {}
    }
}

fn member(path: &str, value: &Value, fields: &Fields, wrong: &mut Vec<String>) {
    let found = type_of(value);
    let Some(field) = fields.get(path) else {
        wrong.push(format!("{path} {found} is not described"));
        return;
    };
    let is = |name: &str| field.types.iter().any(|of| of == name);
    match found {
        "object" if is("map") => {}
        "integer" if is("number") => {}
        _ if is(found) => compare(path, value, fields, wrong),
        _ => wrong.push(format!(
            "{path} is {found}, and described as {:?}",
            field.types
        )),
    }
}

#[test]
fn differences_are_found_in_both_directions() {
    let text = "```schema x\na integer one\nb array many\nb[] object each\nb[].c string|null c\n?d map any\n```\n";
    let all = parse(text);
    let check = |json: Value| {
        let mut wrong = Vec::new();
        compare("", &json, &all["x"], &mut wrong);
        wrong
    };
    use serde_json::json;
    assert_eq!(
        check(json!({"a": 1, "b": [{"c": null}], "d": {"any": 1}})),
        [""; 0]
    );
    assert_eq!(check(json!({"a": 1.5, "b": [], "e": 1})).len(), 2);
    assert_eq!(check(json!({"b": [{"f": 1}]})).len(), 3);
}
