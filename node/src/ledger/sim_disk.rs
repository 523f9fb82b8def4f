//! A disk in memory whose power can be taken away, for the ledger's tests.
//!
//! Owns: what is durable and what is not. Never: is in a program. It keeps what a file system promises
//! and no more: bytes are durable after a sync of their file, names after a sync of their folder, and
//! of what came later any part may be there after a power loss. Every third write is short.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The power goes: this step and every later one fails.
    PowerCut,
    /// A write finds the disk full.
    Full,
    /// A write fails.
    Write,
    /// A sync fails, and what it should have saved never becomes durable.
    Sync,
}

#[derive(Debug, Default, Clone)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

impl Node {
    fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
        if bytes.len() < at + new.len() {
            bytes.resize(at + new.len(), 0);
        }
        bytes[at..at + new.len()].copy_from_slice(new);
    }

    fn write(&mut self, at: usize, new: &[u8]) {
        Self::put(&mut self.live, at, new);
        self.pending.push((at, new.to_vec()));
    }

    fn sync(&mut self) {
        for (at, new) in self.pending.drain(..) {
            Self::put(&mut self.durable, at, &new);
        }
    }
}

type Names = BTreeMap<String, usize>;

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    names: Names,
    durable_names: Names,
    /// The names after each step since the last sync of the folder.
    pending_names: Vec<Names>,
    steps: u64,
    writes: u64,
    failure: Option<(u64, Failure)>,
    is_dead: bool,
    /// How long each sync of a file takes.
    slow: Duration,
    /// Who synced a file last.
    synced_by: Option<ThreadId>,
}

impl State {
    /// One step, which fails when its time has come.
    fn step(&mut self, is_write: bool, is_sync: bool) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("the power is off"));
        }
        self.steps += 1;
        let Some((at, failure)) = self.failure.filter(|(at, _)| self.steps >= *at) else { return Ok(()) };
        let error = match failure {
            Failure::PowerCut => {
                self.is_dead = true;
                io::Error::other("the power went")
            }
            Failure::Full if is_write => io::ErrorKind::StorageFull.into(),
            Failure::Write if is_write => io::Error::from_raw_os_error(5),
            Failure::Sync if is_sync => io::Error::from_raw_os_error(5),
            _ => return Ok(()),
        };
        self.failure = (failure == Failure::PowerCut).then_some((at, failure));
        Err(error)
    }

    fn renamed(&mut self) {
        self.pending_names.push(self.names.clone());
    }
}

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// splitmix64.
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) >> 1).unwrap()
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes each sync of a file take so long.
    pub(super) fn slow_down(&self, by: Duration) {
        self.state().slow = by;
    }

    /// The thread that synced a file last.
    pub(super) fn synced_by(&self) -> Option<ThreadId> {
        self.state().synced_by
    }

    /// Steps so far.
    pub(super) fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Lets something fail at the first fitting step from `after` steps on.
    pub(super) fn fail(&self, after: u64, failure: Failure) {
        let mut state = self.state();
        state.failure = Some((state.steps + after, failure));
    }

    /// The disk as the next start finds it after a power loss: what was synced, and any part of the
    /// rest.
    pub(super) fn after_power_loss(&self, mut seed: u64) -> Self {
        let state = self.state();
        let mut nodes = state.nodes.clone();
        for node in &mut nodes {
            for (at, new) in std::mem::take(&mut node.pending) {
                let how = random(&mut seed) % 3;
                for (nth, sector) in new.chunks(SECTOR).enumerate() {
                    if how == 0 || (how == 1 && random(&mut seed).is_multiple_of(2)) {
                        Node::put(&mut node.durable, at + nth * SECTOR, sector);
                    }
                }
            }
            node.live.clone_from(&node.durable);
        }
        let chosen = random(&mut seed) % (state.pending_names.len() + 1);
        let names = chosen.checked_sub(1).map_or(&state.durable_names, |nth| &state.pending_names[nth]);
        let (names, durable_names) = (names.clone(), names.clone());
        let state = State { nodes, names, durable_names, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The disk as the next start finds it after the process was killed: the system lives on.
    pub(super) fn after_kill(&self) -> Self {
        let state = self.state();
        let nodes = state.nodes.clone();
        let (names, durable_names) = (state.names.clone(), state.durable_names.clone());
        let pending_names = state.pending_names.clone();
        let state = State { nodes, names, durable_names, pending_names, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Disk for SimDisk {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.step(false, false)?;
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.step(false, false)?;
        let node = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { state: self.state.clone(), node }))
    }

    fn open_to_append(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.open(name)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.step(true, false)?;
        let node = state.nodes.len();
        state.nodes.push(Node::default());
        state.names.insert(name.to_owned(), node);
        state.renamed();
        Ok(Box::new(SimFile { state: self.state.clone(), node }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(true, false)?;
        let node = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), node);
        state.renamed();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step(true, false)?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.renamed();
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.step(false, true)?;
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    node: usize,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let mut state = self.state.lock().unwrap();
        state.step(false, false)?;
        Ok(u64::try_from(state.nodes[self.node].live.len()).unwrap())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        state.step(false, false)?;
        let live = &state.nodes[self.node].live;
        let from = usize::try_from(offset).unwrap().min(live.len());
        let read = bytes.len().min(live.len() - from);
        bytes[..read].copy_from_slice(&live[from..from + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let failed = state.step(true, false);
        state.writes += 1;
        let is_short = state.writes.is_multiple_of(3) || failed.is_err();
        let written = if is_short { bytes.len().div_ceil(2) } else { bytes.len() };
        // A write that fails may have left a part of itself; not after the power went.
        if !state.is_dead {
            state.nodes[self.node].write(at, &bytes[..written]);
        }
        failed.map(|()| written)
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.step(true, false)?;
        let size = usize::try_from(size).unwrap();
        let node = &mut state.nodes[self.node];
        if let Some(more) = size.checked_sub(node.live.len()) {
            node.write(node.live.len(), &vec![0; more]);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        thread::sleep(state.slow);
        state.synced_by = Some(thread::current().id());
        let synced = state.step(false, true);
        let is_dead = state.is_dead;
        let node = &mut state.nodes[self.node];
        match &synced {
            Ok(()) => node.sync(),
            Err(_) if is_dead => {}
            // The system takes the pages for clean now: no later sync writes them.
            Err(_) => node.pending.clear(),
        }
        synced
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}
