//! The bootstrap's configuration file.
//!
//! Owns: `bootstrap.toml`, its keys, defaults and documentation. Never: opens a socket. Called by
//! `potluck-bootstrap init` and `run`.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::config::{self, ConfigError};
use crate::net::{Multiaddr, NetworkLimits, Role};

/// The file's name in the state folder.
pub const FILE_NAME: &str = "bootstrap.toml";
/// Where a bootstrap listens unless told otherwise.
const LISTEN: [&str; 2] = ["/ip4/0.0.0.0/udp/4101/quic-v1", "/ip4/0.0.0.0/tcp/4101"];

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BootstrapConfig {
    /// Addresses to listen on.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<Multiaddr>,
    /// Addresses that others reach this machine at and that it cannot see itself.
    #[serde(deserialize_with = "addresses")]
    pub external: Vec<Multiaddr>,
    /// Other bootstraps of the same network.
    #[serde(deserialize_with = "addresses")]
    pub bootstrap: Vec<Multiaddr>,
    /// How many of everything.
    pub limits: NetworkLimits,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            // Both parse: a test holds them to it.
            listen: LISTEN.iter().filter_map(|text| text.parse().ok()).collect(),
            external: Vec::new(),
            bootstrap: Vec::new(),
            limits: NetworkLimits::for_role(Role::Bootstrap),
        }
    }
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Multiaddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| parse_address(text).map_err(serde::de::Error::custom)).collect()
}

/// Reads an address as people write it.
///
/// # Errors
/// A sentence with an example, when it is none.
pub fn parse_address(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|_| {
        format!(
            "'{text}' is not an address (examples: {}, {}, /dns4/boot.example.org/tcp/4101)",
            LISTEN[0], LISTEN[1]
        )
    })
}

/// Reads the file in `folder`; the defaults when there is none.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(folder: &Path) -> Result<BootstrapConfig, ConfigError> {
    config::read(&folder.join(FILE_NAME)).map(Option::unwrap_or_default)
}

/// Why the file could not be written.
#[derive(Debug, Error)]
pub enum InitError {
    /// There is one.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Writes the file with every default and what it means; never over another.
///
/// # Errors
/// When there is one, or the system refuses.
pub fn init(folder: &Path) -> Result<PathBuf, InitError> {
    let path = folder.join(FILE_NAME);
    let opened = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = opened.and_then(|mut file| {
        file.write_all(documented().as_bytes())?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(InitError::Exists { path }),
        Err(source) => Err(InitError::Io { path, source }),
    }
}

/// The defaults as a file, each with what it means.
fn documented() -> String {
    let NetworkLimits {
        connections_in,
        connections_out,
        connections_per_peer,
        pending_in,
        pending_out,
        inbound_requests,
        inbound_jobs,
        pending_outbound,
        stored_keys,
    } = NetworkLimits::for_role(Role::Bootstrap);
    let [udp, tcp] = LISTEN;
    format!(
        r#"# Potluck bootstrap. Every value here is the default; delete what you do not change.

# Where to listen. Both with one port number, so that one rule opens a firewall. Port 0: any.
listen = ["{udp}", "{tcp}"]

# Where others reach this machine, if it cannot see that itself (cloud, forwarded port):
# external = ["/ip4/203.0.113.7/udp/4101/quic-v1", "/dns4/boot.example.org/tcp/4101"]
external = []

# Other bootstraps of the same network, as they print themselves when they start:
# bootstrap = ["/dns4/boot2.example.org/udp/4101/quic-v1/p2p/12D3KooW..."]
bootstrap = []

# How many of everything. When a limit is reached the newcomer is refused and counted.
[limits]
connections_in = {connections_in}         # established, opened by others
connections_out = {connections_out}         # established, opened by us
connections_per_peer = {connections_per_peer}      # established with one peer
pending_in = {pending_in}              # in their handshake, opened by others
pending_out = {pending_out}              # in their handshake, opened by us
inbound_requests = {inbound_requests}          # a bootstrap answers no quotes
inbound_jobs = {inbound_jobs}              # and takes no jobs
pending_outbound = {pending_outbound}         # calls of our own that wait for a peer
stored_keys = {stored_keys}            # directory keys kept for others (about 5 kB each when full)
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_says_exactly_the_defaults() {
        let parsed: BootstrapConfig =
            config::parse(Path::new(FILE_NAME), &documented()).expect("our own file parses");
        assert_eq!(parsed, BootstrapConfig::default());
        assert_eq!(parsed.listen.len(), LISTEN.len());
        // With every default spelled out, nothing may be left to the code alone.
        for key in ["listen", "external", "bootstrap", "stored_keys", "pending_outbound"] {
            assert!(documented().contains(&format!("\n{key} = ")), "{key}");
        }
    }

    #[test]
    fn init_writes_once() {
        let folder = tempfile::tempdir().expect("folder");
        let path = init(folder.path()).expect("written");
        std::fs::write(&path, "listen = []\n").expect("edited");
        assert!(matches!(init(folder.path()), Err(InitError::Exists { .. })));
        assert!(load(folder.path()).expect("read").listen.is_empty(), "the edit is kept");
    }

    #[test]
    fn a_wrong_address_is_named_with_its_line_and_an_example() {
        let text = "\nlisten = [\"0.0.0.0:4101\"]\n";
        let error = config::parse::<BootstrapConfig>(Path::new(FILE_NAME), text);
        let error = error.expect_err("refused").to_string();
        assert!(error.starts_with("bootstrap.toml:2: '0.0.0.0:4101' is not an address"), "{error}");
    }

    #[test]
    fn a_misspelled_limit_is_named_with_its_line() {
        let text = "[limits]\nstored_key = 1\n";
        let error = config::parse::<BootstrapConfig>(Path::new(FILE_NAME), text);
        let error = error.expect_err("refused").to_string();
        let expected = "bootstrap.toml:2: there is no key `stored_key`; did you mean `stored_keys`?";
        assert_eq!(error, expected);
    }
}
