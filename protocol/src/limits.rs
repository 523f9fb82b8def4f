//! The bounds that both sides of a conversation keep.
//!
//! Owns: every number that a peer may rely on. Never: a tuning knob of one program (those live in
//! its own configuration). Called by the codec, the network and both ends of a job.

/// The largest frame on any stream, in bytes after the length prefix.
pub const MAX_FRAME_BYTES: usize = 65_536;
/// The largest job (all messages and parameters), in encoded bytes. It crosses in parts.
pub const MAX_JOB_BYTES: usize = 1_048_576;
/// The largest part of a job in one frame; leaves room for the frame's own fields.
pub const MAX_JOB_PART_BYTES: usize = 60_000;
/// Messages in one job.
pub const MAX_MESSAGES: usize = 1_024;
/// Tokens that one job may ask for.
pub const MAX_COMPLETION_TOKENS: u32 = 131_072;
/// Tokens in one output frame.
pub const MAX_OUTPUT_TOKENS: usize = 1_024;
/// Bytes of text in one output frame.
pub const MAX_OUTPUT_BYTES: usize = 32_768;
/// Models in one offer: keeps a signed offer well under one frame.
pub const MAX_OFFERED_MODELS: usize = 16;
/// Characters of a model's name, a hardware name or a hardware class.
pub const MAX_NAME_BYTES: usize = 64;
/// Models that one component may name.
pub const MAX_GUEST_MODELS: usize = 4;
/// The most memory a component may ask for, in MiB: what 32-bit wasm can address.
pub const MAX_GUEST_MEMORY_MIB: u32 = 4_096;
/// The largest component, in bytes of binary wasm.
pub const MAX_COMPONENT_BYTES: u64 = 64 * 1_048_576;
/// The largest input of a component, in bytes.
pub const MAX_GUEST_INPUT_BYTES: u32 = 8 * 1_048_576;
/// The largest output of a component, in bytes.
pub const MAX_GUEST_OUTPUT_BYTES: u32 = 8 * 1_048_576;
/// Bytes of a component's log that are kept; what follows is counted.
pub const MAX_GUEST_LOG_BYTES: u32 = 256 * 1_024;
/// Bytes of a progress note.
pub const MAX_NOTE_BYTES: usize = 256;
/// Bytes of an explanation that one peer sends to another.
pub const MAX_REASON_BYTES: usize = 512;
/// Bytes of the reference text of an outside payment (an invoice number, a transaction id).
pub const MAX_REFERENCE_BYTES: usize = 128;
/// Lanes in one page of a sync.
pub const MAX_SYNC_LANES: usize = 256;
/// Signed objects in one page of a sync: even all of the largest kind stay within a frame.
pub const MAX_SYNC_OBJECTS: usize = 64;
/// Proofs of equivocation that a node keeps and passes on, one a convicted peer.
pub const MAX_CONVICTIONS: usize = 4_096;
/// Agreed balances of two peers in one export file: one an hour for thirty years.
pub const MAX_AGREED_STATES: usize = 262_144;

/// Metering quantum: the provider meters at least once in so many milliseconds of work.
pub const DEFAULT_QUANTUM_MS: u64 = 1_000;
/// The shortest quantum a contract may name: below it the ledgers' disks are the bottleneck.
pub const MIN_QUANTUM_MS: u64 = 100;
/// The longest quantum a contract may name.
pub const MAX_QUANTUM_MS: u64 = 60_000;
/// Work that may be metered and not yet vouched before the provider stops.
pub const DEFAULT_WINDOW_MS: u64 = 2_000;
/// The longest window a contract may name.
pub const MAX_WINDOW_MS: u64 = 120_000;
/// The longest job, in milliseconds of worker time: lanes never stay open past a day.
pub const MAX_JOB_MS: u64 = 86_400_000;
/// How far two honest wall clocks may differ, for expiry only.
pub const CLOCK_SLACK_MS: u64 = 600_000;
/// How much faster than real time a provider's monotonic clock may run (parts per million).
pub const CLOCK_DRIFT_PPM: u64 = 500;
/// What a renter allows on top for scheduling and buffering, in milliseconds.
pub const METER_GRACE_MS: u64 = 250;
/// A provider with a running job says something at least this often.
pub const HEARTBEAT_MS: u64 = 1_000;
/// A renter takes a provider that was silent this long inside a job for dead.
pub const SILENCE_MS: u64 = 5_000;
/// A lane in which nothing happened for so long is abandoned: its last voucher is final.
pub const LANE_LIFE_MS: u64 = 86_400_000;
