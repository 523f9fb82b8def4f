//! Versions of the wire.
//!
//! Owns: the list of protocol names, what each version changed, and what a peer speaks that speaks
//! none of ours. Never: negotiates (libp2p's multistream-select does, by these names). Called by
//! `node::net`.

/// A version of the conversation between two peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireVersion {
    /// The first: quotes, one job per stream, vouchers each quantum.
    V1,
}

impl WireVersion {
    /// All versions that this build speaks, oldest first.
    pub const ALL: [Self; 1] = [Self::V1];

    /// The newest.
    pub const NEWEST: Self = Self::V1;

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
/// What a peer calls the network when it says who it is.
pub const NETWORK_NAME: &str = "/potluck/1";

/// What a peer may have another version of.
const NAMES: [&str; 4] = [QUOTE_PROTOCOL, JOB_PROTOCOL, PAIR_PROTOCOL, NETWORK_NAME];

/// Where a peer speaks other versions than we do: for each of our names the newest number that it
/// announces instead, if it does not announce ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skew([Option<u16>; NAMES.len()]);

impl Skew {
    /// From all names that a peer announces: its protocols, and what it calls the network.
    #[must_use]
    pub fn of<'a>(announced: impl Iterator<Item = &'a str> + Clone) -> Self {
        Self(NAMES.map(|ours| {
            let (kind, number) = numbered(ours)?;
            let numbers = announced.clone().filter_map(numbered).filter(|(its, _)| *its == kind);
            let numbers = numbers.map(|(_, number)| number);
            if numbers.clone().any(|its| its == number) { None } else { numbers.max() }
        }))
    }

    /// The version that it speaks instead of `protocol`; `None` when that is no matter of versions.
    #[must_use]
    pub fn instead_of(&self, protocol: &str) -> Option<u16> {
        let named = NAMES.iter().zip(self.0).find(|(name, _)| **name == protocol)?.1;
        // Who does not name the protocol at all may still be of another network.
        named.or(self.0[NAMES.len() - 1])
    }

    /// Another version that it speaks of anything; `None` when it speaks ours.
    #[must_use]
    pub fn any(&self) -> Option<u16> {
        self.0.iter().flatten().copied().max()
    }
}

/// A name without its number, and the number.
fn numbered(name: &str) -> Option<(&str, u16)> {
    let (kind, number) = name.rsplit_once('/')?;
    Some((kind, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_exhaustive_and_rising() {
        assert_eq!(WireVersion::ALL[WireVersion::ALL.len() - 1], WireVersion::NEWEST);
        match WireVersion::NEWEST {
            WireVersion::V1 => assert_eq!(WireVersion::ALL.len(), 1),
        }
        assert!(WireVersion::ALL.is_sorted());
    }

    #[test]
    fn protocol_names_carry_the_newest_version() {
        for name in NAMES.into_iter().chain([KAD_PROTOCOL]) {
            assert_eq!(numbered(name).unwrap().1, WireVersion::NEWEST.number(), "{name}");
        }
    }

    #[test]
    fn another_version_is_seen_where_ours_is_not_spoken() {
        let skew = |names: &[&'static str]| Skew::of(names.iter().copied());
        let ours = skew(&["/potluck/1", "/potluck/job/1", "/potluck/job/2", "/ipfs/ping/1.0.0"]);
        assert_eq!((ours.any(), ours.instead_of(JOB_PROTOCOL)), (None, None));
        let older = skew(&["/potluck/0", "/potluck/job/0", "/potluck/quote/1"]);
        assert_eq!(older.instead_of(JOB_PROTOCOL), Some(0));
        // It may serve no accounts at all; it is of the older network in any case.
        assert_eq!((older.instead_of(PAIR_PROTOCOL), older.any()), (Some(0), Some(0)));
        let newer = skew(&["/potluck/1", "/potluck/job/2", "/potluck/job/3", "/potluck/job/x"]);
        assert_eq!((newer.instead_of(JOB_PROTOCOL), newer.instead_of(QUOTE_PROTOCOL)), (Some(3), None));
        assert_eq!(skew(&[]), Skew::default());
        assert_eq!(skew(&["", "/", "potluck", "/potluck/99999"]).any(), None);
    }
}
