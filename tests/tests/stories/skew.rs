//! Peers of another version: nothing is signed or paid, and each side's person reads who must upgrade.
//!
//! Owns: a peer that speaks version 0, or version 2, of what this build speaks version 1 of. Never: what
//! those versions say (nobody comes to read it). Run by the stories.

use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use futures::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::identity::Keypair;
use libp2p::kad::store::MemoryStore;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{Codec, Config, Event, Message, OutboundFailure, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, identify, kad, request_response};
use potluck_protocol::sign::SigningKey;
use potluck_protocol::wire;
use potluck_tests::ledgers;
use potluck_tests::network::Network;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::impostor::quote;
use crate::{assert_failed, turn};

const WITHIN: Duration = Duration::from_secs(20);

/// A question and an answer, each one frame.
#[derive(Debug, Clone, Copy, Default)]
struct Frames;

async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(head)).unwrap()];
    io.read_exact(&mut body).await?;
    Ok(body)
}

async fn write<T: AsyncWrite + Unpin>(io: &mut T, body: &[u8]) -> io::Result<()> {
    io.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).await?;
    io.write_all(body).await
}

impl Codec for Frames {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Vec<u8>,
    ) -> io::Result<()> {
        write(io, &body).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        body: Vec<u8>,
    ) -> io::Result<()> {
        write(io, &body).await
    }
}

#[derive(NetworkBehaviour)]
struct Speech {
    identify: identify::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
    quotes: request_response::Behaviour<Frames>,
    rest: request_response::Behaviour<Frames>,
}

/// A peer that speaks `quotes` of the quote protocol and `version` of all else.
fn foreigner(key: &SigningKey, version: u16, quotes: u16) -> Swarm<Speech> {
    let name = |kind: &str, number: u16| {
        StreamProtocol::try_from_owned(format!("/potluck/{kind}/{number}")).unwrap()
    };
    let questions = |kinds: &[&str], number: u16| {
        let protocols = kinds.iter().map(|kind| (name(kind, number), ProtocolSupport::Full));
        request_response::Behaviour::new(protocols.collect::<Vec<_>>(), Config::default())
    };
    let keys = Keypair::ed25519_from_bytes(key.seed()).unwrap();
    let local = keys.public().to_peer_id();
    let mut kad = kad::Behaviour::with_config(
        local,
        MemoryStore::new(local),
        kad::Config::new(StreamProtocol::new("/potluck/kad/1")),
    );
    kad.set_mode(Some(kad::Mode::Server));
    let speech = Speech {
        identify: identify::Behaviour::new(identify::Config::new(
            format!("/potluck/{version}"),
            keys.public(),
        )),
        kad,
        quotes: questions(&["quote"], quotes),
        rest: questions(&["job", "pair"], version),
    };
    SwarmBuilder::with_existing_identity(keys)
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| speech)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(WITHIN))
        .build()
}

/// A provider of another version, on the network until it is aborted.
async fn provide(key: SigningKey, bootstrap: &str, version: u16, quotes: u16) -> JoinHandle<()> {
    let mut swarm = foreigner(&key, version, quotes);
    swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
    let bootstrap: Multiaddr = bootstrap.parse().unwrap();
    let entered = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { .. } => swarm.dial(bootstrap.clone()).unwrap(),
                // Only then does the bootstrap know where it is.
                SwarmEvent::Behaviour(SpeechEvent::Identify(identify::Event::Sent { .. })) => return,
                _ => {}
            }
        }
    };
    timeout(WITHIN, entered).await.unwrap();
    tokio::spawn(async move {
        loop {
            let event = swarm.select_next_some().await;
            let SwarmEvent::Behaviour(SpeechEvent::Quotes(Event::Message { peer, message, .. })) = event
            else {
                continue;
            };
            let Message::Request { request, channel, .. } = message else { continue };
            let renter = potluck_protocol::id::PeerId::from_libp2p_bytes(&peer.to_bytes()).unwrap();
            let answer = wire::encode(&quote(&key, renter, &request)).unwrap();
            swarm.behaviour_mut().quotes.send_response(channel, answer).unwrap();
        }
    })
}

/// Version and version of quotes, of a provider; and who must upgrade, as its fault and a word of it.
const PROVIDERS: [(u16, u16, &str, &str); 3] = [
    (0, 0, "provider", "its owner must upgrade"),
    (2, 2, "local", "upgrade potluck"),
    // It quotes as we do, and takes no job of ours.
    (0, 1, "provider", "its owner must upgrade"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_hears_that_its_provider_or_itself_is_too_old() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    for (seed, (version, quotes, fault, remedy)) in (1..).zip(PROVIDERS) {
        let key = SigningKey::from_seed([seed; 32]);
        let peer = key.peer().to_string();
        let provider = provide(key, &network.address, version, quotes).await;
        let renter = network.renter(&format!("renter{seed}")).unwrap();
        let job = renter.run("hello", &["--provider", &peer]).await.unwrap();
        assert_failed(&job, 3, "other_version", fault);
        let error = job.event("error");
        let message = error["message"].as_str().unwrap();
        let both = [format!("version {version} of Potluck"), "this program version 1".to_owned()];
        assert!(both.iter().all(|words| message.contains(words)), "{error}");
        assert!(error["hint"].as_str().unwrap().contains(remedy), "{error}");
        assert_eq!(ledgers::balance("potluck", renter.state()).await.unwrap(), 0);
        provider.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_hears_that_its_renters_or_itself_are_too_old() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let provider = &network.providers[0];
    for (version, remedy) in [(0, "it must be upgraded"), (2, "this program must be upgraded")] {
        let mut swarm = foreigner(&SigningKey::from_seed([9; 32]), version, version);
        let home: Multiaddr = provider.address.parse().unwrap();
        let Some(Protocol::P2p(there)) = home.iter().last() else { panic!("no peer in {home}") };
        swarm.dial(home).unwrap();
        let refused = async {
            let mut asked = None;
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::Behaviour(SpeechEvent::Identify(identify::Event::Sent { .. })) => {
                        asked = Some(swarm.behaviour_mut().quotes.send_request(&there, vec![0]));
                    }
                    SwarmEvent::Behaviour(SpeechEvent::Quotes(Event::OutboundFailure {
                        request_id,
                        error,
                        ..
                    })) if asked == Some(request_id) => return error,
                    _ => {}
                }
            }
        };
        let refused = timeout(WITHIN, refused).await.unwrap();
        assert!(matches!(refused, OutboundFailure::UnsupportedProtocols), "{refused}");
        let named = format!("version {version} of Potluck");
        let words = [named.as_str(), remedy];
        let said = provider.process.says(&words, WITHIN);
        // The peer stays on the network meanwhile: what it sent last may still be under way.
        let stays = async {
            loop {
                swarm.select_next_some().await;
            }
        };
        tokio::select! {
            said = said => said.unwrap(),
            () = stays => {}
        }
    }
    // And it goes on with those of its own version.
    let job = network.renter("honest").unwrap().run("Name a planet.", &["--max-tokens", "8"]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
}
