//! `potluck exec COMPONENT.wasm`: the renter's own program on somebody's machine.
//!
//! Owns: the verb's flags, the reading of component and input within their bounds, and where the
//! output goes. Never: runs or checks wasm (the provider's jailed worker does), searches or spends
//! (see [`crate::rent`]). Called by [`crate::cli`].

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use potluck_node::catalogue;
use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ExecSpec, Job, NamedModel};
use potluck_protocol::limits::{MAX_COMPONENT_BYTES, MAX_GUEST_INPUT_BYTES};
use potluck_protocol::unit::GpuMillis;

use crate::compose;
use crate::error::Failure;
use crate::output::Printer;
use crate::rent::{self, RentArgs, Request};
use crate::search::Wanted;
use crate::session::{Order, Payload};

/// The first bytes of every binary component: the magic, then the component model's version and layer.
const COMPONENT_MAGIC: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];

/// Flags of `potluck exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  potluck new my-job --lang python     a component to begin with
  potluck exec my-job.wasm --input notes.txt
  potluck exec nearest.wasm --input - --model chat=smollm2-135m --model embed=all-minilm-l6-v2 < job.json

The component's result goes to standard output, its log to standard error.
Exit status: 0 ok, 1 job failed, 2 usage, 3 no provider, 4 price or budget, 5 local state, 130 stopped.")]
pub struct ExecArgs {
    /// The component: binary wasm of the world potluck:job
    pub component: PathBuf,
    /// Its input; `-` reads standard input (default: no input)
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// A model it may call: NAME=HASH, NAME=MODEL or just a known MODEL; up to four
    #[arg(long = "model", value_name = "NAME=HASH")]
    pub models: Vec<String>,
    /// The longest it may take: its own time, its models' time and loading them together
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub max_seconds: u64,
    /// Memory it may have, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub max_memory: u32,
    /// Seed of its randomness: equal jobs run equally (default: drawn at random)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Write the result here instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What the job may cost, and whose machine it may run on.
    #[command(flatten)]
    pub rent: RentArgs,
}

/// Runs the command; what it prints goes through `printer`.
///
/// # Errors
/// The failure that the person is told of.
pub async fn run(args: ExecArgs, printer: &mut Printer) -> Result<(), Failure> {
    let begun = Instant::now();
    let request = request(&args)?;
    // Opened before anything is spent: a result that cannot be kept is not worth paying for.
    let keep = args.output.as_deref().map(|path| create(path).map(|file| (path, file))).transpose()?;
    let outcome = rent::rent(&args.rent.network, &request, begun, printer).await?;
    match keep {
        Some((path, mut file)) => file
            .write_all(&outcome.output)
            .and_then(|()| file.sync_all())
            .map_err(|source| Failure::Io { action: "write", path: path.to_owned(), source }),
        None => printer.result(&outcome.output).map_err(|source| Failure::Io {
            action: "write",
            path: PathBuf::from("standard output"),
            source,
        }),
    }
}

fn request(args: &ExecArgs) -> Result<Request, Failure> {
    let models = args.models.iter().map(|text| named(text)).collect::<Result<Vec<_>, _>>()?;
    let component = component(&args.component)?;
    let input = input(args.input.as_deref())?;
    let spec = ExecSpec {
        component: ContentHash::of(&component),
        component_bytes: u64::try_from(component.len()).unwrap_or(u64::MAX),
        input: ContentHash::of(&input),
        input_bytes: u32::try_from(input.len()).unwrap_or(u32::MAX),
        models,
        memory_mib: args.max_memory,
        seed: compose::seed(args.seed)?,
    };
    let wanted = Wanted::Component { component: spec.component, needs: spec.needs() };
    let job_bytes = Job::Exec(spec).to_bytes()?;
    let order = Order { job_bytes, payload: Some(Payload { component, input }) };
    let name = args.component.display().to_string();
    Request::new(&args.rent, name, wanted, order, Some(GpuMillis::new(args.max_seconds * 1_000)))
}

/// `NAME=HASH`, `NAME=MODEL`, or a known model under its own name.
fn named(text: &str) -> Result<NamedModel, Failure> {
    let (name, model) = text.split_once('=').unwrap_or((text, text));
    Ok(NamedModel { name: name.to_owned(), model: catalogue::resolve(model)? })
}

fn component(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = read_within(path, MAX_COMPONENT_BYTES, "the component is larger than 64 MiB")?;
    if bytes.starts_with(&COMPONENT_MAGIC) {
        return Ok(bytes);
    }
    let what =
        if bytes.starts_with(b"\0asm") { "a core wasm module, not a component" } else { "not binary wasm" };
    Err(usage(
        format!("{} is {what}", path.display()),
        "build a component of the world potluck:job; `potluck new my-job --lang python` shows how",
    ))
}

fn input(path: Option<&Path>) -> Result<Vec<u8>, Failure> {
    path.map_or_else(
        || Ok(Vec::new()),
        |path| read_within(path, u64::from(MAX_GUEST_INPUT_BYTES), "the input is larger than 8 MiB"),
    )
}

/// A whole file, or standard input for `-`; never more than `limit` bytes are held.
fn read_within(path: &Path, limit: u64, too_large: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(limit + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    };
    read.map_err(|source| Failure::Input { path: path.to_owned(), source })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(usage(too_large.into(), "make it smaller"));
    }
    Ok(bytes)
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|source| Failure::Input { path: path.to_owned(), source })
}

fn usage(message: String, hint: &str) -> Failure {
    Failure::Usage { message, hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_a_name_for_the_component() {
        let named = |text: &str| named(text).map(|model| model.name);
        assert_eq!(named("chat=smollm2-135m").unwrap(), "chat");
        assert_eq!(named("smollm2-135m").unwrap(), "smollm2-135m");
        let hash = ContentHash::of(b"m").to_string();
        assert_eq!(named(&format!("x={hash}")).unwrap(), "x");
        assert!(named("x=nobody-knows-this").is_err());
    }

    #[test]
    fn what_is_no_component_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.wasm");
        for (bytes, word) in [
            (&b"\0asm\x01\0\0\0"[..], "core wasm module"),
            (b"(component)", "not binary wasm"),
            (b"", "not binary wasm"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(component(&path).unwrap_err().to_string().contains(word));
        }
        assert!(matches!(component(&dir.path().join("none")), Err(Failure::Input { .. })));
        std::fs::write(&path, COMPONENT_MAGIC).unwrap();
        assert_eq!(component(&path).unwrap(), COMPONENT_MAGIC);
    }
}
