//! Which addresses of a peer we believe, and how far each one reaches.
//!
//! Owns: the pure policy that keeps loopback and private addresses of strangers out of the routing
//! table, the directory and the dialer. Never: resolves, dials or remembers anything. Called by the
//! event loop for what `identify` reports and for what provider records carry.
//!
//! The rule: an address is believed as far as our own connection to that peer reaches. A peer that
//! talks to us over loopback may name loopback addresses, one on our private network may name
//! private ones, and everybody may name public ones. So one machine with nothing but `127.0.0.1`
//! works, and nobody on the internet can make us dial our own printer.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p::multiaddr::{Multiaddr, Protocol};

/// The most addresses of one peer that we keep or hand on.
pub(super) const MAX_ADDRESSES_PER_PEER: usize = 8;

/// How far an address reaches, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// This machine only.
    Loopback,
    /// One private, shared or otherwise closed network (RFC 1918, 4193, 6598, 3927, 5737).
    Private,
    /// Everybody, as far as the number tells. Names count as public: a resolver decides.
    Public,
}

/// How far `address` reaches; `None` when nobody can dial it: no host, a wildcard, multicast,
/// broadcast, link-local without its interface, port 0, a relay, or a transport we do not speak.
pub(super) fn reach_of(address: &Multiaddr) -> Option<Reach> {
    let mut parts = address.iter();
    let reach = match parts.next()? {
        Protocol::Ip4(ip) => reach_of_v4(ip)?,
        Protocol::Ip6(ip) => match ip.to_ipv4_mapped() {
            Some(inner) => reach_of_v4(inner)?,
            None => reach_of_v6(ip)?,
        },
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => Reach::Public,
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) if port != 0 => {}
        Protocol::Udp(port) if port != 0 => match parts.next()? {
            Protocol::QuicV1 => {}
            _ => return None,
        },
        _ => return None,
    }
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) => Some(reach),
        _ => None,
    }
}

/// Link-local and documentation addresses belong to no public host either, and do occur on closed
/// networks (test beds number themselves 192.0.2.x): they count as private.
fn reach_of_v4(ip: Ipv4Addr) -> Option<Reach> {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    if ip.is_loopback() {
        Some(Reach::Loopback)
    } else if a == 0 || ip.is_multicast() || ip.is_broadcast() {
        None
    } else if ip.is_private() || shared || ip.is_link_local() || ip.is_documentation() {
        Some(Reach::Private)
    } else {
        Some(Reach::Public)
    }
}

/// Link-local addresses of version 6 name nobody without an interface, which an address does not
/// carry.
fn reach_of_v6(ip: Ipv6Addr) -> Option<Reach> {
    let [first, second, ..] = ip.segments();
    let documentation = first == 0x2001 && second == 0x0db8;
    if ip.is_loopback() {
        Some(Reach::Loopback)
    } else if ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() {
        None
    } else if ip.is_unique_local() || documentation {
        Some(Reach::Private)
    } else {
        Some(Reach::Public)
    }
}

/// What of `named` we believe of `peer`, to whom our connection reaches as far as `ours` (`None`
/// when we have none: only public addresses are believed). The widest come first, without the
/// `/p2p` suffix, at most [`MAX_ADDRESSES_PER_PEER`]. Also returns how many were refused.
pub(super) fn believed(
    peer: &libp2p::PeerId,
    named: impl IntoIterator<Item = Multiaddr>,
    ours: Option<Reach>,
) -> (Vec<Multiaddr>, u64) {
    let narrowest = ours.unwrap_or(Reach::Public);
    let mut kept: Vec<(Reach, Multiaddr)> = Vec::new();
    let mut refused = 0;
    for address in named {
        match admit(peer, address, narrowest) {
            Some((_, address)) if kept.iter().any(|(_, known)| *known == address) => {}
            Some(entry) if kept.len() < MAX_ADDRESSES_PER_PEER => kept.push(entry),
            _ => refused += 1,
        }
    }
    // Stable: within one reach the peer's own order stands.
    kept.sort_by_key(|(reach, _)| std::cmp::Reverse(*reach));
    (kept.into_iter().map(|(_, address)| address).collect(), refused)
}

fn admit(peer: &libp2p::PeerId, mut address: Multiaddr, narrowest: Reach) -> Option<(Reach, Multiaddr)> {
    let reach = reach_of(&address).filter(|reach| *reach >= narrowest)?;
    if let Some(Protocol::P2p(named)) = address.iter().last() {
        if named != *peer {
            return None;
        }
        address.pop();
    }
    Some((reach, address))
}

/// The peer that `address` says it leads to (its last `/p2p/…`).
pub(super) fn peer_in(address: &Multiaddr) -> Option<libp2p::PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// What an operator calls the socket of `address`: `udp port 4101`.
pub(super) fn socket_name(address: &Multiaddr) -> String {
    address
        .iter()
        .find_map(|part| match part {
            Protocol::Tcp(port) => Some(format!("tcp port {port}")),
            Protocol::Udp(port) => Some(format!("udp port {port}")),
            _ => None,
        })
        .unwrap_or_else(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().expect(text)
    }

    #[test]
    fn an_address_reaches_as_far_as_its_host() {
        for (text, reach) in [
            ("/ip4/127.0.0.1/udp/4101/quic-v1", Some(Reach::Loopback)),
            ("/ip6/::1/tcp/4101", Some(Reach::Loopback)),
            ("/ip4/10.1.2.3/tcp/4101", Some(Reach::Private)),
            ("/ip4/192.168.0.9/udp/4101/quic-v1", Some(Reach::Private)),
            ("/ip4/100.64.0.1/tcp/4101", Some(Reach::Private)),
            ("/ip6/fd00::1/tcp/4101", Some(Reach::Private)),
            ("/ip6/::ffff:10.0.0.1/tcp/4101", Some(Reach::Private)),
            ("/ip4/8.8.8.8/udp/4101/quic-v1", Some(Reach::Public)),
            ("/ip6/2606:4700::1/tcp/4101", Some(Reach::Public)),
            ("/dns4/boot.example.org/tcp/4101", Some(Reach::Public)),
            ("/ip4/0.0.0.0/tcp/4101", None),
            ("/ip4/224.0.0.1/tcp/4101", None),
            ("/ip4/169.254.3.4/tcp/4101", Some(Reach::Private)),
            ("/ip4/192.0.2.2/tcp/4101", Some(Reach::Private)),
            ("/ip6/fe80::1/tcp/4101", None),
            ("/ip6/2001:db8::1/tcp/4101", Some(Reach::Private)),
            ("/ip4/8.8.8.8/tcp/0", None),
            ("/ip4/8.8.8.8/udp/4101", None),
            ("/ip4/8.8.8.8/tcp/4101/ws", None),
            ("/memory/7", None),
        ] {
            assert_eq!(reach_of(&address(text)), reach, "{text}");
        }
    }

    #[test]
    fn a_peer_names_no_address_narrower_than_our_connection_to_it() {
        let peer = libp2p::PeerId::random();
        let named = || {
            [
                address("/ip4/127.0.0.1/udp/1/quic-v1"),
                address("/ip4/192.168.1.4/udp/1/quic-v1"),
                address("/ip4/8.8.8.8/udp/1/quic-v1"),
            ]
        };
        assert_eq!(believed(&peer, named(), Some(Reach::Loopback)).0.len(), 3);
        assert_eq!(believed(&peer, named(), Some(Reach::Private)).0.len(), 2);
        let public = vec![address("/ip4/8.8.8.8/udp/1/quic-v1")];
        assert_eq!(believed(&peer, named(), Some(Reach::Public)), (public.clone(), 2));
        assert_eq!(believed(&peer, named(), None), (public, 2));
    }

    #[test]
    fn addresses_of_other_peers_and_doubles_are_left_out() {
        let (peer, other) = (libp2p::PeerId::random(), libp2p::PeerId::random());
        let plain = address("/ip4/8.8.8.8/tcp/1");
        let named = [
            plain.clone().with(Protocol::P2p(other)),
            plain.clone().with(Protocol::P2p(peer)),
            plain.clone(),
        ];
        assert_eq!(believed(&peer, named, None), (vec![plain], 1));
    }

    proptest! {
        #[test]
        fn a_flood_of_addresses_is_cut(hosts in prop::collection::vec(any::<u32>(), 0..64)) {
            let peer = libp2p::PeerId::random();
            let named: Vec<Multiaddr> = hosts
                .iter()
                .map(|host| Multiaddr::from(Ipv4Addr::from(*host)).with(Protocol::Tcp(1)))
                .collect();
            let (kept, _) = believed(&peer, named, Some(Reach::Loopback));
            prop_assert!(kept.len() <= MAX_ADDRESSES_PER_PEER);
            prop_assert!(kept.iter().all(|kept| reach_of(kept).is_some()));
        }
    }
}
