//! Opening the listening sockets at start.
//!
//! Owns: the wait until every socket listens, and the words for those that cannot. Never: runs
//! after start. Called by [`super::Network::start`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};

use futures::{FutureExt as _, StreamExt as _};
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, TransportError};
use tokio::time::timeout;

use super::addresses::socket_name;
use super::errands::root_cause;
use super::error::StartError;
use super::event_loop::EventLoop;
use super::limits::LISTEN_WITHIN;

/// Events that are taken up before start returns, beyond those that it waits for.
const MAX_READY_EVENTS: usize = 256;

/// Listens on every address, and returns when each socket has reported where.
pub(super) async fn listen_on_all(
    network: &mut EventLoop,
    addresses: &[Multiaddr],
) -> Result<(), StartError> {
    let mut waiting: HashMap<ListenerId, Multiaddr> = HashMap::new();
    for address in addresses {
        check_port_is_free(address)?;
        let id = network.swarm.listen_on(address.clone()).map_err(|error| match error {
            TransportError::MultiaddrNotSupported(_) => StartError::Listen {
                address: address.clone(),
                problem: "not an address like /ip4/0.0.0.0/udp/4101/quic-v1 or \
                          /ip4/0.0.0.0/tcp/4101"
                    .to_owned(),
            },
            TransportError::Other(error) => refusal(address, &error),
        })?;
        waiting.insert(id, address.clone());
    }
    let listening = async {
        while !waiting.is_empty() {
            let event = network.swarm.select_next_some().await;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    waiting.remove(listener_id);
                }
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    if let Some(address) = waiting.remove(listener_id) {
                        return Err(refusal(&address, error));
                    }
                }
                _ => {}
            }
            // The first sockets may have visitors while the last one opens.
            network.on_swarm_event(event);
        }
        Ok(())
    };
    match timeout(LISTEN_WITHIN, listening).await {
        Ok(listening) => {
            listening?;
            take_what_is_ready(network);
            Ok(())
        }
        Err(_) => match waiting.into_values().next() {
            Some(address) => Err(StartError::ListenTimedOut { address, within: LISTEN_WITHIN }),
            None => Ok(()),
        },
    }
}

/// A wildcard address reports one address per interface, one after the other: takes those that are
/// known by now, so that a bootstrap prints all of its addresses.
fn take_what_is_ready(network: &mut EventLoop) {
    for _ in 0..MAX_READY_EVENTS {
        match network.swarm.select_next_some().now_or_never() {
            Some(event) => network.on_swarm_event(event),
            None => return,
        }
    }
}

/// Whether a plain socket may have the port. libp2p's TCP listeners share theirs with any other
/// process of the same user (`SO_REUSEPORT`), so that a second bootstrap would silently take half
/// of the first one's connections; and what its QUIC transport says is hidden in wrappings.
fn check_port_is_free(address: &Multiaddr) -> Result<(), StartError> {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::from(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::from(ip),
        _ => return Ok(()),
    };
    let bound = match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((host, port)).map(drop),
        Some(Protocol::Udp(port)) if port != 0 => UdpSocket::bind((host, port)).map(drop),
        _ => return Ok(()),
    };
    bound.map_err(|error| refusal(address, &error))
}

fn refusal(address: &Multiaddr, error: &io::Error) -> StartError {
    let address = address.clone();
    if error.kind() == io::ErrorKind::AddrInUse {
        StartError::PortInUse { socket: socket_name(&address), address }
    } else {
        StartError::Listen { address, problem: root_cause(error) }
    }
}
