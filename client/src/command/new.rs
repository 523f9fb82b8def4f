//! `potluck new NAME --lang python|c|rust`: a folder with a small job that builds and runs.
//!
//! Owns: which files a new job has (they are in this program), and that the folder is there whole or
//! not at all. Never: touches the network, the state folder or anything that exists already. Called
//! by [`crate::cli`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use potluck_protocol::fault::Fault;
use thiserror::Error;

use crate::output::eprintln_prose;

/// The name that the templates carry; a new job's name takes its place.
const PLACEHOLDER: &str = "my-job";
/// The longest name: it is a folder, a file and a package.
const MAX_NAME: usize = 64;
/// The page that all languages share, with the places that each fills.
const README: &str = include_str!("../../templates/README.md");

/// Flags of `potluck new`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  potluck new my-job --lang python
  potluck new jobs/count-words --lang c && make -C jobs/count-words

Exit status: 0 ok, 2 usage, 5 local state.")]
pub struct NewArgs {
    /// The folder to make; its last part is the job's name
    #[arg(value_name = "NAME")]
    pub folder: PathBuf,
    /// The language of the job
    #[arg(long, value_enum)]
    pub lang: Language,
}

/// What a job can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Python, by componentize-py
    Python,
    /// C, by zig and wasm-tools
    C,
    /// Rust, by cargo for wasm32-wasip2
    Rust,
}

/// Why there is no new folder; nothing was written, or what was written is removed. Fault: see each.
#[derive(Debug, Error)]
pub enum NewError {
    /// The name cannot be a folder's, a file's and a package's at once. Fault: renter.
    #[error("`{name}` cannot be a job's name: {why}")]
    BadName {
        /// What was given, cut to 80 characters.
        name: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Something of that name is there. Fault: renter.
    #[error("{} exists already", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// The folder that should hold the new one is missing. Fault: renter.
    #[error("there is no folder {}", path.display())]
    NoParent {
        /// Which.
        path: PathBuf,
    },
    /// The system refused. Fault: this machine.
    #[error("cannot make {}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl NewError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        if matches!(self, Self::Io { .. }) { "io" } else { "usage" }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        if matches!(self, Self::Io { .. }) { Fault::Local } else { Fault::Renter }
    }

    /// What was lost (nothing) and what to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::BadName { .. } => "nothing was written; choose a name like my-job",
            Self::Exists { .. } => "nothing was written; choose another name, or remove it first",
            Self::NoParent { .. } => "nothing was written; make that folder first",
            Self::Io { .. } => "nothing is left of the new folder; choose one that you may write to",
        }
        .into()
    }
}

/// One file of a new job.
struct Template {
    /// Below the folder.
    path: &'static str,
    /// What is in it, with [`PLACEHOLDER`] for the name.
    text: &'static str,
}

macro_rules! template {
    ($path:literal, $source:literal) => {
        Template { path: $path, text: include_str!(concat!("../../templates/", $source)) }
    };
    ($path:literal) => {
        // The world is the sandbox's; a renter's program carries its text and nothing else of it.
        Template { path: $path, text: include_str!(concat!("../../../sandbox/", $path)) }
    };
}

/// What every job has beside its README.
const COMMON: &[Template] =
    &[template!(".gitignore", "gitignore"), template!("wit/job.wit"), template!("wit/deps/wasi-nn.wit")];

const PYTHON: &[Template] = &[
    template!("app.py", "python/app.py"),
    template!("requirements.txt", "python/requirements.txt"),
    template!("Makefile", "python/Makefile"),
];

const C: &[Template] = &[
    template!("main.c", "c/main.c"),
    template!("bindings/job.h", "c/bindings/job.h"),
    template!("bindings/job.c", "c/bindings/job.c"),
    template!("bindings/world.c", "c/bindings/world.c"),
    template!("requirements.txt", "c/requirements.txt"),
    template!("Makefile", "c/Makefile"),
];

const RUST: &[Template] = &[
    template!("src/lib.rs", "rust/src/lib.rs"),
    template!("Cargo.toml", "rust/Cargo.toml"),
    template!("Makefile", "rust/Makefile"),
];

impl Language {
    /// What people call it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Python => "Python",
            Self::C => "C",
            Self::Rust => "Rust",
        }
    }

    fn own(self) -> &'static [Template] {
        match self {
            Self::Python => PYTHON,
            Self::C => C,
            Self::Rust => RUST,
        }
    }

    /// The parts of the README that differ: how to build, and what the files are.
    fn pages(self) -> (&'static str, &'static str) {
        match self {
            Self::Python => (
                include_str!("../../templates/python/build.md"),
                include_str!("../../templates/python/files.md"),
            ),
            Self::C => {
                (include_str!("../../templates/c/build.md"), include_str!("../../templates/c/files.md"))
            }
            Self::Rust => {
                (include_str!("../../templates/rust/build.md"), include_str!("../../templates/rust/files.md"))
            }
        }
    }

    fn readme(self) -> String {
        let (build, files) = self.pages();
        README
            .replace("{language}", self.title())
            .replace("{build}", build.trim_end())
            .replace("{files}", files.trim_end())
    }
}

/// Runs the command and says what to do with the folder.
///
/// # Errors
/// When the folder cannot be made.
pub fn run(args: &NewArgs) -> Result<(), NewError> {
    let made = make(&args.folder, args.lang)?;
    let (folder, name) = (args.folder.display(), made.name);
    eprintln_prose(&format!(
        "made {folder}: a job in {}, {} files\n  \
         build   make -C {folder}\n  \
         run     potluck exec {folder}/{name}.wasm --input FILE --model chat=smollm2-135m\n  \
         read    {folder}/README.md",
        args.lang.title(),
        made.files,
    ));
    Ok(())
}

/// A folder that was made.
struct Made {
    name: String,
    files: usize,
}

fn make(folder: &Path, lang: Language) -> Result<Made, NewError> {
    let name = name_of(folder)?;
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
            return Err(NewError::Exists { path: folder.to_owned() });
        }
        Err(source) => {
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            return Err(match parent {
                Some(parent) if !parent.exists() => NewError::NoParent { path: parent.to_owned() },
                _ => NewError::Io { path: folder.to_owned(), source },
            });
        }
    }
    let files = fill(folder, &name, lang).inspect_err(|_| {
        // The folder was not there before `create_dir`: all that is in it is ours.
        let _ = fs::remove_dir_all(folder);
    })?;
    Ok(Made { name, files })
}

fn fill(folder: &Path, name: &str, lang: Language) -> Result<usize, NewError> {
    let readme = lang.readme();
    let templates = COMMON.iter().chain(lang.own()).map(|template| (template.path, template.text));
    let mut files = 0;
    for (path, text) in templates.chain([("README.md", readme.as_str())]) {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text.replace(PLACEHOLDER, name)))
            .map_err(|source| NewError::Io { path: path.clone(), source })?;
        files += 1;
    }
    Ok(files)
}

/// The job's name: the last part of its folder.
fn name_of(folder: &Path) -> Result<String, NewError> {
    let last = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let why = if !last.starts_with(|first: char| first.is_ascii_lowercase()) {
        "it must begin with a letter from a to z"
    } else if last.len() > MAX_NAME {
        "it has more than 64 characters"
    } else if !last.bytes().all(fits) {
        "it may hold small letters, digits and hyphens only"
    } else if last.ends_with('-') {
        "it must not end with a hyphen"
    } else {
        return Ok(last.into_owned());
    };
    Err(NewError::BadName { name: last.chars().take(80).collect(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Language; 3] = [Language::Python, Language::C, Language::Rust];

    /// A folder of this test's own, removed when it ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("potluck-new-{}-{test}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_job_is_made_under_its_own_name() {
        let scratch = Scratch::new("made");
        for lang in ALL {
            let folder = scratch.0.join(format!("count-{}", lang.title().to_lowercase()));
            let made = make(&folder, lang).unwrap();
            assert!(made.files >= 7, "{}", made.files);
            for file in ["README.md", "Makefile", ".gitignore", "wit/job.wit", "wit/deps/wasi-nn.wit"] {
                let text = fs::read_to_string(folder.join(file)).unwrap();
                assert!(!text.contains(PLACEHOLDER) && !text.contains("{build}"), "{file}: {text}");
            }
            let makefile = fs::read_to_string(folder.join("Makefile")).unwrap();
            assert!(makefile.contains(&format!("NAME := {}\n", made.name)), "{makefile}");
        }
    }

    #[test]
    fn all_languages_share_the_readme() {
        let headings = |lang: Language| -> Vec<String> {
            lang.readme().lines().filter(|line| line.starts_with('#')).map(str::to_owned).collect()
        };
        for lang in ALL {
            assert_eq!(headings(lang), headings(Language::Python));
            assert!(lang.readme().contains(lang.title()));
            for place in ["{language}", "{build}", "{files}"] {
                assert!(README.contains(place) && !lang.readme().contains(place), "{place}");
            }
        }
    }

    #[test]
    fn what_exists_is_left_alone() {
        let scratch = Scratch::new("exists");
        let folder = scratch.0.join("mine");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("notes"), "dear to me").unwrap();
        let why = make(&folder, Language::C).map(|made| made.files).unwrap_err();
        assert!(matches!(why, NewError::Exists { .. }), "{why}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(folder.join("notes")).unwrap(), "dear to me");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let scratch = Scratch::new("refused");
        let missing = scratch.0.join("nowhere").join("my-job");
        assert!(
            matches!(make(&missing, Language::C), Err(NewError::NoParent { path }) if path.ends_with("nowhere"))
        );
        fs::write(scratch.0.join("file"), "").unwrap();
        let below_a_file = make(&scratch.0.join("file").join("my-job"), Language::C);
        let why = below_a_file.map(|made| made.files).unwrap_err();
        assert!(matches!(why, NewError::Io { .. }), "{why}");
        assert_eq!((why.code(), why.fault()), ("io", Fault::Local));
    }

    #[test]
    fn a_name_must_do_as_folder_file_and_package() {
        for good in ["a", "my-job", "jobs/x9", "/tmp/word-count/"] {
            assert!(name_of(Path::new(good)).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "/", "..", "9lives", "My-Job", "a_b", "a b", "a-", "-a", "naïve", "a.b", &long] {
            let why = name_of(Path::new(bad)).unwrap_err();
            assert_eq!((why.code(), why.fault()), ("usage", Fault::Renter), "{bad}");
        }
    }

    /// The parts of a world that bindings are made from: all but its comments.
    fn bare(wit: &str) -> String {
        let lines = wit.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.flat_map(|line| line.split_whitespace().chain(["\n"])).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_c_bindings_know_every_function_of_the_world() {
        let wit = bare(include_str!("../../../sandbox/wit/job.wit"));
        let header = include_str!("../../templates/c/bindings/job.h");
        let (mut interface, mut found) = (String::new(), 0);
        for line in wit.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("interface ") {
                interface = rest.trim_end_matches(" {").replace('-', "_");
            } else if line.starts_with("world ") {
                interface.clear();
            } else if let Some((name, _)) = line.split_once(": func").or(line.split_once(": static func")) {
                let name = name.replace('-', "_");
                let declared = header.lines().any(|line| {
                    line.starts_with("extern ")
                        && line.contains(&interface)
                        && line.contains(&format!("_{name}("))
                });
                assert!(interface.is_empty() || declared, "{interface}.{name} is in job.wit, not in job.h");
                found += 1;
            }
        }
        assert!(found >= 10, "only {found} functions were found in the world");
    }
}
