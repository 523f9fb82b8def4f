//! Versions of the wire.
//!
//! Owns: the list of protocol names and what each version changed. Never: negotiates (libp2p's
//! multistream-select does, by these names). Called by `node::net`.

/// A version of the conversation between two peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireVersion {
    /// The first: quotes, one job per stream, vouchers each quantum.
    V1,
}

impl WireVersion {
    /// All versions that this build speaks, oldest first.
    pub const ALL: [Self; 1] = [Self::V1];

    /// The number that stands in offers and in protocol names.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::V1 => 1,
        }
    }
}

/// libp2p protocol name: request-response for offers and quotes.
pub const QUOTE_PROTOCOL: &str = "/potluck/quote/1";
/// libp2p protocol name: one stream per job.
pub const JOB_PROTOCOL: &str = "/potluck/job/1";
/// libp2p protocol name: what two peers owe each other, one question and one answer per stream.
pub const PAIR_PROTOCOL: &str = "/potluck/pair/1";
/// libp2p protocol name: Potluck's own Kademlia network.
pub const KAD_PROTOCOL: &str = "/potluck/kad/1";
/// What identify announces.
pub const IDENTIFY_PROTOCOL: &str = "/potluck/id/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_exhaustive_and_rising() {
        let newest = WireVersion::ALL[WireVersion::ALL.len() - 1];
        match newest {
            WireVersion::V1 => assert_eq!(WireVersion::ALL.len(), 1),
        }
        assert!(WireVersion::ALL.is_sorted());
    }

    #[test]
    fn protocol_names_carry_the_newest_version() {
        for name in [QUOTE_PROTOCOL, JOB_PROTOCOL, PAIR_PROTOCOL, KAD_PROTOCOL, IDENTIFY_PROTOCOL] {
            assert!(name.ends_with("/1"), "{name}");
        }
    }
}
