//! The house rules, as tests: who may depend on whom, what every source file opens with, how long
//! it may be, and what stands at the top of the repository.
//!
//! Owns: the structure of the workspace. Never: judges behaviour. Run by `make test`; each failure
//! names the file and the rule.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

const ROOMS: [&str; 6] = ["protocol", "sandbox", "node", "miner", "client", "tests"];
const MAX_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn toml_of(path: &Path) -> Table {
    fs::read_to_string(path).unwrap().parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(room: &str) -> Table {
    toml_of(&root().join(room).join("Cargo.toml"))
}

/// Names of the packages in the given dependency tables, also those per target.
fn dependencies(manifest: &Table, kinds: &[&str]) -> BTreeSet<String> {
    let mut tables: Vec<&Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut names = BTreeSet::new();
    for table in tables {
        for kind in kinds {
            let Some(entries) = table.get(*kind).and_then(Value::as_table) else { continue };
            for (key, entry) in entries {
                names.insert(entry.get("package").and_then(Value::as_str).unwrap_or(key).to_owned());
            }
        }
    }
    names
}

const ALL_KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                into.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for room in ROOMS {
        walk(&root().join(room), &mut found);
    }
    assert!(found.len() > 30, "the walk found only {} sources", found.len());
    found
}

#[test]
fn the_workspace_has_the_six_rooms() {
    let workspace = toml_of(&root().join("Cargo.toml"));
    let members: Vec<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(members, ROOMS);
}

#[test]
fn rooms_depend_only_on_the_rooms_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("protocol", &[][..]),
        ("sandbox", &["protocol"][..]),
        ("node", &["protocol"][..]),
        ("miner", &["protocol", "node", "sandbox"][..]),
        ("client", &["protocol", "node"][..]),
        ("tests", &["protocol", "node", "sandbox", "miner", "client"][..]),
    ]);
    for room in ROOMS {
        for name in dependencies(&manifest(room), &ALL_KINDS) {
            if let Some(other) = name.strip_prefix("potluck-") {
                assert!(allowed[room].contains(&other), "{room} may not depend on {other}");
            }
        }
    }
}

#[test]
fn the_dependencies_that_shape_the_house_have_one_door() {
    let door = |name: &str| -> Option<&str> {
        if name.starts_with("libp2p") || name == "sled" {
            Some("node")
        } else if ["candle", "tokenizers", "cudarc", "wasmtime", "minijinja"]
            .iter()
            .any(|p| name.starts_with(p))
        {
            Some("sandbox")
        } else {
            None
        }
    };
    for room in ROOMS {
        for name in dependencies(&manifest(room), &ALL_KINDS) {
            // A story plays a peer of another version, which no code of ours can be.
            let plays_a_stranger = room == "tests" && name == "libp2p";
            if let Some(door) = door(&name).filter(|_| !plays_a_stranger) {
                assert_eq!(room, door, "{room} uses {name}, which is reached through {door} only");
            }
        }
    }
}

#[test]
fn protocol_has_no_io_clock_or_randomness() {
    let used = dependencies(&manifest("protocol"), &["dependencies", "build-dependencies"]);
    for banned in
        ["tokio", "libp2p", "sled", "rand", "rand_core", "getrandom", "rustix", "futures", "tempfile"]
    {
        assert!(!used.contains(banned), "protocol depends on {banned}");
    }
    for path in sources().iter().filter(|path| path.starts_with(root().join("protocol/src"))) {
        let text = fs::read_to_string(path).unwrap();
        for banned in ["std::fs", "std::net", "std::io", "std::thread", "SystemTime", "Instant::now"] {
            assert!(!text.contains(banned), "{} uses {banned}", path.display());
        }
    }
}

#[test]
fn rooms_take_versions_and_lints_from_the_workspace() {
    for room in ROOMS {
        let manifest = manifest(room);
        let inherits = |entry: &Value| entry.get("workspace").and_then(Value::as_bool) == Some(true);
        assert!(manifest.get("lints").is_some_and(inherits), "{room} does not inherit the lints");
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            assert!(manifest["package"].get(key).is_some_and(inherits), "{room}: {key} is its own");
        }
        for kind in ALL_KINDS {
            for (name, entry) in manifest.get(kind).and_then(Value::as_table).into_iter().flatten() {
                assert!(inherits(entry), "{room}: {name} names its own version");
            }
        }
    }
}

#[test]
fn the_renter_ships_without_engine_or_guest_runtime() {
    let lock = toml_of(&root().join("Cargo.lock"));
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        // A dependency reads `name`, or `name version` where a name has several versions.
        let needs = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        let needs = needs.map(|need| need.as_str().unwrap().split(' ').next().unwrap().to_owned());
        edges.entry(name).or_default().extend(needs);
    }
    let mut reached = BTreeSet::new();
    let mut queue = vec!["potluck-client".to_owned()];
    while let Some(name) = queue.pop() {
        if reached.insert(name.clone()) {
            queue.extend(
                edges.get(&name).unwrap_or_else(|| panic!("Cargo.lock lacks {name}")).iter().cloned(),
            );
        }
    }
    assert!(reached.contains("libp2p"), "the walk went nowhere");
    for name in &reached {
        let heavy =
            ["candle", "wasmtime", "cranelift", "cudarc", "tokenizers", "potluck-sandbox", "potluck-miner"];
        assert!(!heavy.iter().any(|prefix| name.starts_with(prefix)), "potluck would ship {name}");
    }
}

#[test]
fn every_source_opens_with_its_room_card() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let card: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let words = card.iter().map(|line| line.split_whitespace().count() - 1).sum::<usize>();
        assert!(words >= 12, "{} does not open with a //! card that says what it owns", path.display());
    }
}

#[test]
fn no_source_is_longer_than_a_sitting() {
    for path in sources() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines; at most {MAX_LINES}", path.display());
    }
}

#[test]
fn no_source_waits_without_a_bound_or_leaves_work_for_later() {
    // Written in halves, so that this file does not break its own rule.
    let banned = [
        ["unbounded", "_channel("].concat(),
        ["mpsc::", "unbounded("].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
        ["dbg", "!("].concat(),
    ];
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{} uses {word}", path.display());
        }
        for (number, line) in text.lines().enumerate() {
            let lint =
                line.trim_start().strip_prefix("#[allow(").or(line.trim_start().strip_prefix("#![allow("));
            let reasoned = lint.is_none_or(|rest| rest.contains("reason") || !rest.contains(')'));
            assert!(reasoned, "{}:{}: an allow without a reason", path.display(), number + 1);
        }
    }
}

#[test]
fn the_top_of_the_repository_holds_only_what_belongs_there() {
    let allowed = [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "Makefile",
        "README.md",
        "SECURITY.md",
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // `target` is ignored by git: somebody built without the Makefile.
        let known = name.starts_with('.') || name == "target" || ROOMS.contains(&name.as_str());
        assert!(known || allowed.contains(&name.as_str()), "{name} does not belong at the top");
    }
    for name in allowed {
        assert!(root().join(name).is_file(), "{name} is missing");
    }
}
