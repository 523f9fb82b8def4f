//! Any bytes as any message between the daemon and a worker.
//!
//! Owns: the laws: nothing panics, and what is decoded is encoded to the same bytes again. Never: reads
//! a socket. Called by the fuzz target `workers` and by `sandbox/tests/fuzz.rs`.

use potluck_sandbox::guest::wire::{self, GuestCommand, GuestEvent};
use potluck_sandbox::ipc;

/// The length of a frame's head, in bytes.
const HEAD: usize = 4;

/// Takes `input` as the body of each kind of frame, and as what comes from a socket.
pub(crate) fn hear(input: &[u8]) {
    if let Ok(command) = ipc::decode_command(input) {
        assert_eq!(&ipc::encode_command(&command).expect("it was a frame")[HEAD..], input);
    }
    if let Ok(event) = ipc::decode_event(input) {
        assert_eq!(&ipc::encode_event(&event).expect("it was a frame")[HEAD..], input);
    }
    if let Ok(command) = wire::decode::<GuestCommand>(input) {
        assert_eq!(&wire::encode(&command).expect("it was a frame")[HEAD..], input);
    }
    if let Ok(event) = wire::decode::<GuestEvent>(input) {
        assert_eq!(&wire::encode(&event).expect("it was a frame")[HEAD..], input);
    }
    let mut socket = input;
    while let Ok(Some(_)) = ipc::read_command(&mut socket) {}
    let mut socket = input;
    while let Ok(Some(_)) = wire::read::<GuestCommand>(&mut socket) {}
}
