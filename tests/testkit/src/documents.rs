//! The project's documents, for tests that do what these say.

use std::path::Path;

/// A document, by its path in the project.
pub fn read(document: &str) -> String {
    let project = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    std::fs::read_to_string(project.join(document)).expect(document)
}

/// The blocks of a document in a language that hold a text.
pub fn blocks(document: &str, language: &str, text: &str) -> Vec<String> {
    let document = read(document);
    let begin = format!("```{language}\n");
    let blocks = document.split(&begin).skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    let blocks = blocks.filter(|block| block.contains(text));
    blocks.map(str::to_owned).collect()
}

/// The one block of a document in a language that holds a text.
pub fn block(document: &str, language: &str, text: &str) -> String {
    let mut found = blocks(document, language, text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found.remove(0)
}
