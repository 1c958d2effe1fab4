//! The import rule: `error, bytes, text, cache <- device <- container, volume, encryption, filesystem` (siblings,
//! never each other) `<- forest <- stack <- fuse, cli <- main`, and what else is kept in one place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each module, and those of the crate that it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("error", BASE),
    ("bytes", BASE),
    ("text", BASE),
    ("cache", BASE),
    ("digest", BASE),
    ("device", &["error", "bytes", "text", "cache", "device"]),
    ("check", &["error", "device", "digest"]),
    ("container", &["error", "bytes", "text", "cache", "device", "digest", "check", "container"]),
    ("volume", &["error", "bytes", "text", "cache", "device", "check", "volume"]),
    ("encryption", &["error", "bytes", "text", "cache", "device", "encryption"]),
    ("filesystem", &["error", "bytes", "text", "cache", "device", "digest", "check", "filesystem"]),
    ("forest", &["error", "bytes", "text", "cache", "device", "filesystem", "forest"]),
    (
        "stack",
        &[
            "error",
            "bytes",
            "text",
            "cache",
            "device",
            "check",
            "container",
            "volume",
            "encryption",
            "filesystem",
            "forest",
            "stack",
        ],
    ),
    // Any tree can be mounted: how it came about is not the adapter's business.
    ("fuse", &["error", "bytes", "text", "cache", "digest", "filesystem", "fuse"]),
];
const BASE: &[&str] = &["error", "bytes", "text", "cache"];

struct Source {
    /// Below src/.
    path: String,
    /// Without comments, and without the tests at the end.
    code: String,
    head: String,
}

impl Source {
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap()
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let top = crate::program::project().join("src");
    let mut paths = Vec::new();
    walk(&top, &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let lines =
            text.lines().take_while(|line| *line != "mod tests {").filter(|line| !line.trim().starts_with("//"));
        let code = lines.map(|line| line.split(" // ").next().unwrap()).collect::<Vec<_>>().join("\n");
        let path = path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
        Source { path, code, head: text.lines().next().unwrap_or_default().to_owned() }
    };
    let sources: Vec<Source> = paths.iter().map(read).collect();
    assert!(sources.len() > 50, "src/ was not found");
    sources
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// What follows each `start` in `code`: one name, or several in braces.
fn named_after<'a>(code: &'a str, start: &str) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(start) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + start.len()..];
        match rest.strip_prefix('{') {
            None => names.extend(words(rest).next()),
            Some(list) => {
                let list = &list[..list.find("};").unwrap()];
                let mut depth = 0;
                for piece in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        names.extend(words(piece).next());
                    }
                    depth += piece.matches('{').count();
                    depth -= piece.matches('}').count();
                }
            }
        }
    }
    names
}

#[test]
fn nothing_names_what_lies_above_it_or_beside_it() {
    let mut checked = 0;
    for source in sources() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == source.module()) else {
            assert!(matches!(source.module(), "main" | "lib" | "cli"), "{}: in which layer is it?", source.path);
            continue;
        };
        for name in named_after(&source.code, "crate::") {
            checked += 1;
            assert!(allowed.contains(&name), "src/{} names crate::{name}, which is not below it", source.path);
        }
    }
    assert!(checked > 200, "only {checked} imports were found");
    let parsed = named_after("use crate::{a, b::{c, d}, e};\nfn f() { crate::g::h(); mycrate::i() }", "crate::");
    assert_eq!(parsed.into_iter().collect::<Vec<_>>(), ["a", "b", "e", "g"]);
}

#[test]
fn the_command_line_crates_are_named_only_by_the_commands() {
    for source in sources().iter().filter(|source| !matches!(source.module(), "main" | "cli")) {
        for word in words(&source.code) {
            assert!(!["clap", "anyhow", "indicatif", "env_logger"].contains(&word), "src/{} names {word}", source.path);
        }
    }
}

#[test]
fn the_adapter_names_no_format() {
    let formats = |folder: &str| -> Vec<String> {
        let of = |source: &Source| source.path.strip_prefix(folder)?.strip_suffix(".rs").map(str::to_owned);
        let is_format = |source: &&Source| source.code.contains(" FORMAT:") || source.code.contains(" SYSTEM:");
        sources().iter().filter(is_format).filter_map(of).filter(|name| !name.contains('/')).collect()
    };
    let formats = [formats("filesystem/"), formats("volume/"), formats("container/")].concat();
    assert!(formats.len() > 8, "only these formats were found: {formats:?}");
    for source in sources().iter().filter(|source| source.module() == "fuse") {
        for word in words(&source.code) {
            assert!(!formats.iter().any(|format| format == word), "src/{} names {word}", source.path);
        }
    }
}

#[test]
fn errors_become_numbers_in_one_place() {
    for source in sources().iter().filter(|source| source.path != "fuse/errno.rs") {
        for line in source.code.lines() {
            let maps = line.contains("Error::") && line.split("=>").nth(1).is_some_and(|to| to.contains(" Errno::"));
            assert!(!maps, "src/{} maps an error to a number: {line}", source.path);
        }
        if source.module() != "cli" {
            let damage = words(&source.code).find(|word| ["UCLEAN", "EUCLEAN", "EOPNOTSUPP"].contains(word));
            assert_eq!(damage, None, "src/{}", source.path);
        }
    }
}

#[test]
fn no_code_is_unsafe() {
    for source in sources() {
        assert!(words(&source.code).all(|word| word != "unsafe"), "src/{}", source.path);
        if matches!(source.path.as_str(), "lib.rs" | "main.rs") {
            assert!(source.code.contains("#![forbid(unsafe_code)]"), "src/{}", source.path);
        }
    }
}

#[test]
fn every_file_says_first_what_it_is() {
    for source in sources() {
        assert!(source.head.starts_with("//! "), "src/{} starts with {:?}", source.path, source.head);
    }
}
