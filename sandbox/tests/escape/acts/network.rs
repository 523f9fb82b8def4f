//! Acts over the network and other sockets.
//!
//! Owns: reaching anybody by any family of sockets, and handing descriptors over the one socket that
//! a worker has. Never: reaches past this machine. Called through [`super::all`].

use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use potluck_sandbox::jail::Layer::{Capabilities, Landlock, Namespaces, Root, Seccomp};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::stdio;

use super::super::raw::{Arg, call, is};
use super::{Act, Attempt, Errno, Target, any_of, got, obeyed};

pub(super) const ACTS: &[Act] = &[
    Act::new("connect_tcp", &[Seccomp, Landlock, Namespaces], |target| {
        connect_tcp(target)?;
        got("connected")
    }),
    Act::new("listen_tcp", &[Seccomp, Landlock], |_| {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        got("listens")
    }),
    Act::new("send_udp", &[Seccomp, Namespaces], |target| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"stolen", (Ipv4Addr::LOCALHOST, target.udp))?;
        got("sent")
    }),
    Act::new("connect_unix", &[Seccomp, Root], |target| {
        UnixStream::connect(&target.unix)?;
        got("connected")
    }),
    Act::new("connect_abstract", &[Seccomp, Landlock, Namespaces], |target| {
        UnixStream::connect_addr(&abstract_address(target)?)?;
        got("connected")
    }),
    Act::new("send_to_abstract", &[Seccomp, Landlock, Namespaces], |target| {
        UnixDatagram::unbound()?.send_to_addr(b"stolen", &abstract_address(target)?)?;
        got("sent")
    }),
    Act::new("list_interfaces_by_netlink", &[Seccomp, Namespaces], list_interfaces),
    Act::new("listen_vsock", &[Seccomp], listen_vsock).unless(&[
        libc::EAFNOSUPPORT,
        libc::EADDRNOTAVAIL,
        libc::ENODEV,
    ]),
    Act::new("open_packet_socket", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_socket, [is(libc::AF_PACKET), is(libc::SOCK_RAW), is(0)]), &[])
    })
    .by_root()
    .unless(&[libc::EAFNOSUPPORT]),
    Act::new("open_crypto_socket", &[Seccomp], |_| {
        obeyed(call(libc::SYS_socket, [is(libc::AF_ALG), is(libc::SOCK_SEQPACKET), is(0)]), &[])
    })
    .unless(&[libc::EAFNOSUPPORT]),
    Act::new("make_socket_pair", &[Seccomp], |_| {
        UnixStream::pair()?.0.write_all(b"x")?;
        got("made one")
    }),
    Act::new("send_descriptor_to_daemon", &[Seccomp], |_| {
        any_of(&[stdio::stderr(), stdio::stdin(), stdio::stdout()], |given| {
            give(stdio::stdin(), given)?;
            got("sent one")
        })
    }),
];

pub(super) fn connect_tcp(target: &Target) -> Result<(), Errno> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target.tcp));
    TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    Ok(())
}

fn abstract_address(target: &Target) -> Result<UnixAddr, Errno> {
    Ok(UnixAddr::from_abstract_name(&target.abstract_name)?)
}

/// Asks the kernel for its network interfaces and looks for the machine's own.
fn list_interfaces(target: &Target) -> Attempt {
    const GET_LINK: u16 = 18;
    const REQUEST_DUMP: u16 = 0x301;
    let socket = call(libc::SYS_socket, [is(libc::AF_NETLINK), is(libc::SOCK_RAW), is(0)])?;
    // struct nlmsghdr and struct ifinfomsg.
    let mut request = [0_u8; 32];
    request[..4].copy_from_slice(&32_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET_LINK.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    call(libc::SYS_sendto, [is(socket), Arg::In(&request), is(32), is(0), is(0), is(0)])?;
    let mut answer = vec![0; 1 << 16];
    let received = [is(socket), Arg::Out(&mut answer), is(1 << 16), is(0), is(0), is(0)];
    let len = call(libc::SYS_recvfrom, received)?;
    let found = answer[..usize::try_from(len).unwrap_or(0)]
        .windows(target.interface.len())
        .any(|window| window == target.interface.as_bytes());
    if found { got(format!("sees {}", target.interface)) } else { Err(Errno(libc::ENODEV)) }
}

/// The way between a virtual machine and its host: no network namespace covers it.
fn listen_vsock(_: &Target) -> Attempt {
    let socket = call(libc::SYS_socket, [is(libc::AF_VSOCK), is(libc::SOCK_STREAM), is(0)])?;
    // struct sockaddr_vm: the family, nothing, any port, any context.
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&u16::try_from(libc::AF_VSOCK).unwrap_or(0).to_ne_bytes());
    address[4..12].fill(0xff);
    call(libc::SYS_bind, [is(socket), Arg::In(&address), is(16)])?;
    obeyed(call(libc::SYS_listen, [is(socket), is(1)]), &[])
}

/// Sends `given` over `socket`, with a newline, which the lab's reader passes over.
pub(crate) fn give(socket: BorrowedFd<'_>, given: BorrowedFd<'_>) -> Result<(), Errno> {
    let given = [given];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&given));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}
