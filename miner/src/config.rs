//! `potluckd.toml`: what an owner may set, and its defaults.
//!
//! Owns: the file's keys, their defaults and the text that `init` writes. Never: guesses (an unknown
//! key is an error) or reads anything else. Called by the commands; flags override it there.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use potluck_node::net::Multiaddr;
use potluck_protocol::credit::{CreditPolicy, DEFAULT_CAP, DEFAULT_UNKNOWN_PEERS, NEW_PEER};
use potluck_protocol::limits::{MAX_GUEST_MEMORY_MIB, MAX_JOB_MS, MAX_OFFERED_MODELS};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate};
use potluck_sandbox::engine::DeviceChoice;
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// The file's name in the state folder.
pub const CONFIG_FILE: &str = "potluckd.toml";
/// The largest file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 65_536;

/// What the owner set, or the defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to listen on.
    #[serde(deserialize_with = "each_address")]
    pub listen: Vec<Multiaddr>,
    /// Addresses at which others reach this machine, when it cannot know them itself.
    #[serde(deserialize_with = "each_address")]
    pub external: Vec<Multiaddr>,
    /// Peers to join the network through.
    #[serde(deserialize_with = "each_address")]
    pub bootstrap: Vec<Multiaddr>,
    /// Models to serve: names of the catalogue or paths of model files.
    #[serde(deserialize_with = "models")]
    pub models: Vec<String>,
    /// Price of running.
    #[serde(deserialize_with = "price")]
    pub price: Rate,
    /// Does it run renters' components?
    pub guests: bool,
    /// Price of a component's own time.
    #[serde(deserialize_with = "price")]
    pub guest_price: Rate,
    /// Price of compiling a component and loading its models.
    #[serde(deserialize_with = "price")]
    pub load_price: Rate,
    /// The most memory a component may have, in MiB.
    #[serde(deserialize_with = "guest_memory")]
    pub guest_memory_mib: u32,
    /// What models run on.
    #[serde(deserialize_with = "device")]
    pub device: DeviceChoice,
    /// CPU threads of each worker; all cores when absent.
    #[serde(deserialize_with = "threads")]
    pub threads: Option<usize>,
    /// Jobs that may wait for one model, besides the one that runs.
    #[serde(deserialize_with = "queue")]
    pub queue: usize,
    /// The most that one renter may owe; ten hours at `price` when absent.
    #[serde(deserialize_with = "amount")]
    pub credit_limit: Option<NanoCredit>,
    /// What a renter may owe that never paid, in seconds of work at `price`.
    #[serde(deserialize_with = "new_peer_credit")]
    pub new_peer_credit: u64,
    /// The most that all renters together may owe that never paid; 20 times one's share when absent.
    #[serde(deserialize_with = "amount")]
    pub unknown_credit_limit: Option<NanoCredit>,
    /// The longest job, in seconds of worker time.
    #[serde(deserialize_with = "max_job_seconds")]
    pub max_job_seconds: u64,
}

const DEFAULT_LISTEN: [&str; 2] = ["/ip4/0.0.0.0/udp/4611/quic-v1", "/ip4/0.0.0.0/tcp/4611"];
const DEFAULT_MODEL: &str = "smollm2-135m";
const DEFAULT_PRICE: &str = "0.04";
const DEFAULT_GUEST_PRICE: &str = "0.01";
const DEFAULT_LOAD_PRICE: &str = "0.01";
const DEFAULT_GUEST_MEMORY_MIB: u32 = 1_024;
const DEFAULT_QUEUE: usize = 4;
const MAX_QUEUE: usize = 64;
/// In the template, as examples.
const SAMPLE_CREDIT_LIMIT: &str = "$0.40";
const SAMPLE_UNKNOWN_CREDIT_LIMIT: &str = "$0.01";
const DEFAULT_NEW_PEER_SECONDS: u64 = NEW_PEER.get() / 1_000;
/// The most work, in seconds, that is lent to a renter that never paid: ten hours.
pub const MAX_NEW_PEER_SECONDS: u64 = 36_000;
const DEFAULT_MAX_JOB_SECONDS: u64 = 3_600;

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN.iter().filter_map(|text| text.parse().ok()).collect(),
            external: Vec::new(),
            bootstrap: Vec::new(),
            models: vec![DEFAULT_MODEL.into()],
            price: Rate::from_dollars_per_hour(DEFAULT_PRICE).unwrap_or_default(),
            guests: true,
            guest_price: Rate::from_dollars_per_hour(DEFAULT_GUEST_PRICE).unwrap_or_default(),
            load_price: Rate::from_dollars_per_hour(DEFAULT_LOAD_PRICE).unwrap_or_default(),
            guest_memory_mib: DEFAULT_GUEST_MEMORY_MIB,
            device: DeviceChoice::Auto,
            threads: None,
            queue: DEFAULT_QUEUE,
            credit_limit: None,
            new_peer_credit: DEFAULT_NEW_PEER_SECONDS,
            unknown_credit_limit: None,
            max_job_seconds: DEFAULT_MAX_JOB_SECONDS,
        }
    }
}

/// Why the file cannot be used. Fault: local (the owner's file).
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no such file.
    #[error("{}: larger than {MAX_CONFIG_BYTES} bytes; this is not a potluckd.toml", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it; names the key.
        message: String,
    },
}

impl Config {
    /// Reads the state folder's file; the defaults when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or at its first wrong line.
    pub fn load(state_dir: &Path) -> Result<Self, ConfigError> {
        let path = state_dir.join(CONFIG_FILE);
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        if length > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge { path });
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// How much is lent to whom.
    #[must_use]
    pub fn credit(&self) -> CreditPolicy {
        let new_peer = GpuMillis::new(self.new_peer_credit.saturating_mul(1_000));
        let share = self.price.amount(new_peer).get();
        let all = NanoCredit::new(share.saturating_mul(DEFAULT_UNKNOWN_PEERS));
        CreditPolicy {
            rate: self.price,
            new_peer,
            cap: self.credit_limit.unwrap_or_else(|| self.price.amount(DEFAULT_CAP)),
            unknown_cap: self.unknown_credit_limit.unwrap_or(all),
        }
    }

    /// Reads the text of a file; `path` is for errors.
    ///
    /// # Errors
    /// At the first wrong line.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or("");
            ConfigError::Line {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                message: message_with_key(text, start, error.message()),
            }
        })
    }
}

/// The parser's message, with the key in front when it does not name it itself.
fn message_with_key(text: &str, at: usize, message: &str) -> String {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
    match line.split_once('=') {
        Some((key, _)) if !message.contains(key.trim()) => format!("`{}`: {message}", key.trim()),
        _ => message.to_owned(),
    }
}

fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text(&'static str);
    impl de::Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }
    parse(&deserializer.deserialize_str(Text(what))?).map_err(de::Error::custom)
}

fn price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
    parsed(deserializer, "dollars per hour in quotes, like \"0.04\"", |text| {
        Rate::from_dollars_per_hour(text).map_err(|error| error.to_string())
    })
}

fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NanoCredit>, D::Error> {
    parsed(deserializer, "dollars in quotes, like \"$0.40\"", |text| {
        NanoCredit::from_dollars(text).map(Some).map_err(|error| error.to_string())
    })
}

fn new_peer_credit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    whole(deserializer, 0, MAX_NEW_PEER_SECONDS)
}

fn device<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceChoice, D::Error> {
    parsed(deserializer, "\"auto\", \"cpu\" or \"cuda:N\"", parse_device)
}

/// Reads `auto`, `cpu` or `cuda:N`.
///
/// # Errors
/// What was expected, for people.
pub fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| format!("`{}` is not auto, cpu or cuda:N", text.escape_debug())),
    }
}

fn each_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Multiaddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_address(text).map_err(de::Error::custom)).collect()
}

/// Reads an address such as `/ip4/203.0.113.7/udp/4611/quic-v1/p2p/12D3KooW…`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_address(text: &str) -> Result<Multiaddr, String> {
    Multiaddr::from_str(text).map_err(|error| {
        format!("`{}` is not an address like /ip4/203.0.113.7/tcp/4611 ({error})", text.escape_debug())
    })
}

fn models<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let models = Vec::<String>::deserialize(deserializer)?;
    if models.is_empty() || models.len() > MAX_OFFERED_MODELS {
        return Err(de::Error::custom(format!("name 1 to {MAX_OFFERED_MODELS} models")));
    }
    Ok(models)
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D, low: u64, high: u64) -> Result<u64, D::Error> {
    let value = u64::deserialize(deserializer)?;
    if !(low..=high).contains(&value) {
        return Err(de::Error::custom(format!("must be {low} to {high}; it is {value}")));
    }
    Ok(value)
}

fn threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    whole(deserializer, 1, 1_024).map(|value| usize::try_from(value).ok())
}

fn queue<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let value = whole(deserializer, 0, u64::try_from(MAX_QUEUE).unwrap_or(u64::MAX))?;
    usize::try_from(value).map_err(de::Error::custom)
}

fn guest_memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = whole(deserializer, 1, u64::from(MAX_GUEST_MEMORY_MIB))?;
    u32::try_from(value).map_err(de::Error::custom)
}

fn max_job_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    whole(deserializer, 1, MAX_JOB_MS / 1_000)
}

/// The text that `init` writes: every key with its default, all of them commented out.
#[must_use]
pub fn template() -> String {
    let listen = DEFAULT_LISTEN.map(|address| format!("\"{address}\"")).join(", ");
    let keys: [(&str, String, &str); 16] = [
        ("listen", format!("[{listen}]"), "Addresses to listen on. Port 0 takes any free port."),
        (
            "external",
            "[]".into(),
            "Addresses at which others reach this machine, for example behind a forwarded port.",
        ),
        (
            "bootstrap",
            "[]".into(),
            "Peers to join the network through, like\n\
             \"/ip4/203.0.113.7/udp/4101/quic-v1/p2p/12D3KooW...\".",
        ),
        (
            "models",
            format!("[\"{DEFAULT_MODEL}\"]"),
            "Models to serve, each kept in memory: names (`potluckd models list`) or paths of files.",
        ),
        (
            "price",
            format!("\"{DEFAULT_PRICE}\""),
            "Price of running a model, in dollars per hour of worker time; billed by the millisecond.",
        ),
        (
            "guests",
            "true".into(),
            "Run renters' own programs (WASI components)? They are jailed more tightly than models.",
        ),
        (
            "guest_price",
            format!("\"{DEFAULT_GUEST_PRICE}\""),
            "Price of a component's own time, in dollars per hour; the models it calls cost `price`.",
        ),
        (
            "load_price",
            format!("\"{DEFAULT_LOAD_PRICE}\""),
            "Price of compiling a component that is new here and of loading its models, in dollars per hour.",
        ),
        (
            "guest_memory_mib",
            DEFAULT_GUEST_MEMORY_MIB.to_string(),
            "The most memory a component may have, in MiB.",
        ),
        ("device", "\"auto\"".into(), "What models run on: \"auto\", \"cpu\" or \"cuda:N\"."),
        ("threads", "4".into(), "CPU threads of each worker. Without this line: all cores."),
        (
            "queue",
            DEFAULT_QUEUE.to_string(),
            "Jobs that may wait for one model, besides the one that runs; further ones are refused.",
        ),
        (
            "credit_limit",
            format!("\"{SAMPLE_CREDIT_LIMIT}\""),
            "The most that one renter may owe you, with all that its open jobs may still cost. Debts are\n\
             IOUs: what these limits do not cover cannot be lost. Without this line: ten hours at `price`.",
        ),
        (
            "new_peer_credit",
            DEFAULT_NEW_PEER_SECONDS.to_string(),
            "What a renter may owe that never paid you, in seconds of work at `price`; 0: it pays first.\n\
             Half of what it pays is added to its limit.",
        ),
        (
            "unknown_credit_limit",
            format!("\"{SAMPLE_UNKNOWN_CREDIT_LIMIT}\""),
            "The most that all renters together may owe that never paid you: new ones cost nothing to\n\
             make. Without this line: 20 times what one of them may owe.",
        ),
        (
            "max_job_seconds",
            DEFAULT_MAX_JOB_SECONDS.to_string(),
            "The longest job you take, in seconds of worker time.",
        ),
    ];
    let mut text = String::from(
        "# potluckd: what this machine offers, and at what price.\n\
         # Lines that begin with # are the defaults; remove the # to change one.\n",
    );
    for (key, value, comment) in keys {
        text.push('\n');
        for line in comment.lines() {
            let _infallible = writeln!(text, "# {line}");
        }
        let _infallible = writeln!(text, "# {key} = {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("potluckd.toml"))
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_template_changes_nothing_and_its_lines_are_valid() {
        assert!(parse(&template()).is_ok());
        let is_setting = |line: &&str| line.contains(" = ");
        let settings: Vec<_> = template().lines().filter(is_setting).map(|l| l[2..].to_owned()).collect();
        assert_eq!(settings.len(), 16);
        let config = parse(&settings.join("\n")).unwrap();
        let money = |text| NanoCredit::from_dollars(text).ok();
        let defaults = Config {
            threads: Some(4),
            credit_limit: money(SAMPLE_CREDIT_LIMIT),
            unknown_credit_limit: money(SAMPLE_UNKNOWN_CREDIT_LIMIT),
            ..Config::default()
        };
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
        assert_eq!(defaults.price, Rate::new(11_111));
        assert_eq!(defaults.listen.len(), 2);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, line, words) in [
            ("\nprise = \"1\"", 2, "prise"),
            ("price = 0.04", 1, "price"),
            ("queue = 4\nprice = \"cheap\"", 2, "price"),
            ("queue = 65", 1, "`queue`: must be 0 to 64; it is 65"),
            ("queue = -1", 1, "queue"),
            ("guest_memory_mib = 0", 1, "guest_memory_mib"),
            ("models = []", 1, "models"),
            ("device = \"tpu\"", 1, "device"),
            ("listen = [\"localhost:80\"]", 1, "listen"),
            ("max_job_seconds = 0", 1, "max_job_seconds"),
            ("credit_limit = \"a lot\"", 1, "credit_limit"),
            ("unknown_credit_limit = 1", 1, "unknown_credit_limit"),
            ("new_peer_credit = 36001", 1, "`new_peer_credit`: must be 0 to 36000; it is 36001"),
            ("# x\n\nprice = ", 3, "price"),
        ] {
            let message = error(text);
            assert!(message.starts_with(&format!("potluckd.toml:{line}: ")), "{text}: {message}");
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn credit_follows_the_price_unless_it_is_set() {
        let default = Config::default();
        assert_eq!(default.credit(), CreditPolicy::of_rate(default.price));
        let set = parse("new_peer_credit = 0\ncredit_limit = \"2\"\nunknown_credit_limit = \"0\"").unwrap();
        let credit = set.credit();
        assert_eq!((credit.new_peer, credit.unknown_cap), (GpuMillis::ZERO, NanoCredit::ZERO));
        assert_eq!(credit.cap, NanoCredit::new(2_000_000_000));
    }

    #[test]
    fn devices_are_read() {
        assert!(matches!(parse_device("cuda:1"), Ok(DeviceChoice::Cuda(1))));
        assert!(parse_device("cuda:x").is_err());
    }
}
