//! What the owner said about payments, until both sides have signed it: `settlements.json`.
//!
//! Owns: the list of wishes (bounded, pure), what became of one, and the file (replaced whole, so that a
//! crash leaves the old or the new). Never: signs, or talks to a peer. Called by [`super::settle`] and by
//! whoever judges a proposal.
//!
//! A wish that is about to be signed first notes in which step: after a crash the ledger tells whether
//! it was, so that no payment is counted twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use potluck_protocol::balance::{CancelReason, Settle};
use potluck_protocol::id::PeerId;
use potluck_protocol::pair::Consent;
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::NanoCredit;
use serde::{Deserialize, Serialize};

use super::error::WishError;

/// The file's name in the state folder.
const FILE_NAME: &str = "settlements.json";
/// The format that this version writes and reads.
const VERSION: u32 = 1;
/// Wishes that may wait.
pub(super) const MAX_WISHES: usize = 256;
/// The largest file that is read: far more than the longest list takes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Times that one payment is proposed while the other side's books disagree.
pub(super) const MAX_TRIES: u32 = 4;

/// What the owner says about an outside payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleWish {
    /// The other side.
    pub peer: PeerId,
    /// Did we pay? Else the peer did.
    pub we_paid: bool,
    /// How much.
    pub amount: NanoCredit,
    /// By what reference both sides know the payment.
    pub reference: String,
    /// The payment did not arrive. Only of the peer's.
    pub deny: bool,
}

impl SettleWish {
    /// As a balance takes it in.
    pub(super) fn payment(&self, me: PeerId) -> Settle {
        let payer = if self.we_paid { me } else { self.peer };
        Settle { payer, amount: self.amount, reference: self.reference.clone() }
    }

    /// Is it about this payment with that peer?
    fn is_about(&self, peer: PeerId, payment: &Settle) -> bool {
        let payer_is_peer = payment.payer == peer;
        self.peer == peer
            && self.we_paid != payer_is_peer
            && self.amount == payment.amount
            && self.reference == payment.reference
    }
}

/// A step of a pair's balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) epoch: u32,
    pub(super) n: u32,
}

/// A wish, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    #[serde(flatten)]
    pub(super) wish: SettleWish,
    /// In which step we signed it, or were about to.
    pub(super) step: Option<Step>,
    /// Times that we proposed it.
    pub(super) tries: u32,
}

/// All wishes, in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wishes {
    version: u32,
    wishes: Vec<Wish>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { version: VERSION, wishes: Vec::new() }
    }
}

impl Wishes {
    /// Notes a wish. The same again is noted once; the opposite about the same payment takes its place
    /// while nothing is signed.
    pub(super) fn add(&mut self, wish: SettleWish, me: PeerId) -> Result<(), WishError> {
        let payment = wish.payment(me);
        if let Some(held) = self.wishes.iter_mut().find(|held| held.wish.is_about(wish.peer, &payment)) {
            if held.step.is_none() {
                held.wish.deny = wish.deny;
            }
            return Ok(());
        }
        if self.wishes.len() >= MAX_WISHES {
            return Err(WishError::Full { limit: MAX_WISHES });
        }
        self.wishes.push(Wish { wish, step: None, tries: 0 });
        Ok(())
    }

    /// The wishes about payments with `peer`.
    pub(super) fn of(&self, peer: PeerId) -> Vec<Wish> {
        self.wishes.iter().filter(|held| held.wish.peer == peer).cloned().collect()
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Wish] {
        &self.wishes
    }

    /// What the owner says to a proposal of `peer` in `step`. A wish speaks for one step: what is signed
    /// in another is no word about this one.
    pub(super) fn consent(&self, peer: PeerId, payment: &Settle, step: Step) -> Consent {
        match self.find(peer, payment) {
            Some(held) if held.step.is_some_and(|signed| signed != step) => Consent::Unasked,
            Some(held) if held.wish.deny => Consent::Denied,
            Some(_) => Consent::Given,
            None => Consent::Unasked,
        }
    }

    fn find(&self, peer: PeerId, payment: &Settle) -> Option<&Wish> {
        self.wishes.iter().find(|held| held.wish.is_about(peer, payment))
    }

    /// Notes in which step the wish about this payment is about to be signed; whether there is one.
    pub(super) fn begin(&mut self, peer: PeerId, payment: &Settle, step: Step) -> bool {
        let found = self.wishes.iter_mut().find(|held| held.wish.is_about(peer, payment));
        found.map(|held| held.step = Some(step)).is_some()
    }

    /// Notes that what was signed for a wish came to nothing.
    pub(super) fn void(&mut self, wish: &SettleWish) {
        if let Some(held) = self.wishes.iter_mut().find(|held| held.wish == *wish) {
            held.step = None;
            held.tries = held.tries.saturating_add(1);
        }
    }

    /// Strikes a wish off.
    pub(super) fn done(&mut self, wish: &SettleWish) {
        self.wishes.retain(|held| held.wish != *wish);
    }
}

/// What became of what we signed for a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The other side has not answered.
    Waits,
    /// Both have signed it.
    Agreed,
    /// We refused the payment.
    Denied,
    /// The other side refused it.
    Refused(CancelReason),
    /// Nothing was signed, or it counts no more: the step is burned, or of an epoch that is over.
    Void,
}

/// What became of `payment` in `step`, by what the ledger holds of both sides in that step. `epoch` is
/// the pair's.
pub(super) fn fate(
    payment: &Settle,
    step: Step,
    epoch: u32,
    ours: Option<&Statement>,
    theirs: Option<&Statement>,
) -> Fate {
    let names_it = |statement: Option<&Statement>| match statement {
        Some(Statement::State(state)) => state.body.settle.as_ref() == Some(payment),
        _ => false,
    };
    match (ours, theirs) {
        (Some(Statement::Countersign(_)), theirs) if names_it(theirs) => Fate::Agreed,
        (Some(Statement::Cancel(it)), theirs)
            if names_it(theirs) && it.body.reason == CancelReason::NotPaid =>
        {
            Fate::Denied
        }
        (ours, Some(Statement::Countersign(_))) if names_it(ours) => Fate::Agreed,
        (ours, Some(Statement::Cancel(it))) if names_it(ours) => Fate::Refused(it.body.reason),
        (ours, None) if names_it(ours) && epoch == step.epoch => Fate::Waits,
        _ => Fate::Void,
    }
}

/// The wishes and their file.
#[derive(Debug)]
pub(super) struct WishFile {
    path: PathBuf,
    wishes: Mutex<Wishes>,
}

impl WishFile {
    /// Reads the file of the state folder `dir`; none is an empty list.
    pub(super) fn open(dir: &Path) -> Result<Self, WishError> {
        let path = dir.join(FILE_NAME);
        let wishes = Mutex::new(read(&path)?);
        Ok(Self { path, wishes })
    }

    /// Looks at the wishes.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Wishes) -> T) -> T {
        look(&self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the wishes; the change is on the disk when this returns, or not made at all. Rare (the
    /// owner's word, and what becomes of it), so it may wait for the disk.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Wishes) -> T) -> Result<T, WishError> {
        let mut held = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = held.clone();
        let result = change(&mut next);
        if next != *held {
            write(&self.path, &next)?;
            *held = next;
        }
        Ok(result)
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WishError + use<'a> {
    move |source| WishError::Io { doing, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Wishes, WishError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Wishes::default()),
        opened => opened.map_err(io_error("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    let malformed = |problem: String| WishError::Malformed { path: path.to_owned(), problem };
    let wishes: Wishes = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if wishes.version != VERSION {
        return Err(malformed(format!("it has version {}; this program reads {VERSION}", wishes.version)));
    }
    if wishes.wishes.len() > MAX_WISHES {
        return Err(malformed(format!("it has more than {MAX_WISHES} entries")));
    }
    Ok(wishes)
}

fn write(path: &Path, wishes: &Wishes) -> Result<(), WishError> {
    let mut bytes = serde_json::to_vec_pretty(wishes)
        .map_err(|error| WishError::Malformed { path: path.to_owned(), problem: error.to_string() })?;
    bytes.push(b'\n');
    let next = path.with_extension("json.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .map_err(io_error("create", &next))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &next))?;
    fs::rename(&next, path).map_err(io_error("replace", path))?;
    // The rename itself is durable once the folder is.
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::balance::{Cancel, Countersign, PairId, PairState};
    use potluck_protocol::id::Digest;
    use potluck_protocol::sign::SigningKey;
    use potluck_protocol::unit::UnixMillis;

    const STEP: Step = Step { epoch: 0, n: 3 };
    const LATER: Step = Step { epoch: 0, n: 4 };

    fn keys() -> (SigningKey, SigningKey) {
        (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]))
    }

    fn wish(peer: PeerId, we_paid: bool, reference: &str) -> SettleWish {
        let (amount, reference) = (NanoCredit::new(5), reference.to_owned());
        SettleWish { peer, we_paid, amount, reference, deny: false }
    }

    #[test]
    fn a_wish_is_noted_once_and_its_opposite_takes_its_place_until_it_is_signed() {
        let (me, peer) = (keys().0.peer(), keys().1.peer());
        let (mut wishes, wish) = (Wishes::default(), wish(peer, false, "invoice 7"));
        let payment = wish.payment(me);
        for _ in 0..2 {
            wishes.add(wish.clone(), me).unwrap();
        }
        assert_eq!(wishes.of(peer).len(), 1);
        assert_eq!(wishes.consent(peer, &payment, STEP), Consent::Given);
        wishes.add(SettleWish { deny: true, ..wish.clone() }, me).unwrap();
        assert_eq!(wishes.consent(peer, &payment, STEP), Consent::Denied);
        assert!(wishes.begin(peer, &payment, STEP));
        wishes.add(wish, me).unwrap();
        assert_eq!(wishes.consent(peer, &payment, STEP), Consent::Denied);
    }

    #[test]
    fn consent_is_given_to_one_step_of_one_payment() {
        let (me, peer) = (keys().0.peer(), keys().1.peer());
        let mut wishes = Wishes::default();
        wishes.add(wish(peer, false, "a"), me).unwrap();
        let payment = wish(peer, false, "a").payment(me);
        let by_us = Settle { payer: me, ..payment.clone() };
        let other = Settle { reference: "b".to_owned(), ..payment.clone() };
        for unknown in [&by_us, &other] {
            assert_eq!(wishes.consent(peer, unknown, STEP), Consent::Unasked);
        }
        wishes.begin(peer, &payment, STEP);
        assert_eq!(wishes.consent(peer, &payment, STEP), Consent::Given);
        assert_eq!(wishes.consent(peer, &payment, LATER), Consent::Unasked);
        wishes.void(&wish(peer, false, "a"));
        assert_eq!(wishes.consent(peer, &payment, LATER), Consent::Given);
        assert_eq!(wishes.of(peer)[0].tries, 1);
    }

    #[test]
    fn no_more_wishes_than_the_limit() {
        let (me, peer) = (keys().0.peer(), keys().1.peer());
        let mut wishes = Wishes::default();
        for number in 0..MAX_WISHES {
            wishes.add(wish(peer, true, &number.to_string()), me).unwrap();
        }
        let refused = wishes.add(wish(peer, true, "one more"), me);
        assert!(matches!(refused, Err(WishError::Full { limit: MAX_WISHES })), "{refused:?}");
        wishes.add(wish(peer, true, "0"), me).unwrap();
        wishes.done(&wish(peer, true, "0"));
        wishes.add(wish(peer, true, "one more"), me).unwrap();
    }

    /// A state by the first key that names `settle`, its countersignature and its cancel by the second.
    fn step_of(settle: Option<Settle>) -> [Statement; 3] {
        let (one, two) = keys();
        let pair = PairId::of(one.peer(), two.peer()).unwrap();
        let zero = Digest::from_bytes([0; 32]);
        let state = PairState {
            pair,
            by: one.peer(),
            epoch: STEP.epoch,
            n: STEP.n,
            balance: 0,
            floor: UnixMillis::ZERO,
            lanes: zero,
            folded: 0,
            settle,
            previous: zero,
        };
        let (Step { epoch, n }, by) = (STEP, two.peer());
        let countersign = Countersign { pair, by, epoch, n, state: zero };
        let cancel = Cancel { pair, by, epoch, n, proposal: zero, reason: CancelReason::NotPaid };
        [
            one.sign(state).unwrap().into_signed().into(),
            two.sign(countersign).unwrap().into_signed().into(),
            two.sign(cancel).unwrap().into_signed().into(),
        ]
    }

    #[test]
    fn the_ledger_tells_what_became_of_a_wish() {
        let payment = wish(keys().1.peer(), true, "a").payment(keys().0.peer());
        let [state, countersign, cancel] = &step_of(Some(payment.clone()));
        let of = |epoch, ours, theirs| fate(&payment, STEP, epoch, ours, theirs);
        assert_eq!(of(0, None, None), Fate::Void);
        assert_eq!(of(0, Some(state), None), Fate::Waits);
        assert_eq!(of(1, Some(state), None), Fate::Void);
        assert_eq!(of(1, Some(state), Some(countersign)), Fate::Agreed);
        assert_eq!(of(0, Some(countersign), Some(state)), Fate::Agreed);
        assert_eq!(of(0, Some(cancel), Some(state)), Fate::Denied);
        assert_eq!(of(0, Some(state), Some(cancel)), Fate::Refused(CancelReason::NotPaid));
        assert_eq!(of(0, Some(state), Some(state)), Fate::Void, "both proposed: burned");
        let [plain, ..] = &step_of(None);
        assert_eq!(of(0, Some(plain), Some(countersign)), Fate::Void, "another state took the step");
        assert_eq!(of(0, Some(countersign), Some(plain)), Fate::Void);
    }

    #[test]
    fn wishes_survive_a_restart_and_a_damaged_file_is_named() {
        let (me, peer) = (keys().0.peer(), keys().1.peer());
        let folder = tempfile::tempdir().unwrap();
        let file = WishFile::open(folder.path()).unwrap();
        let payment = wish(peer, true, "a").payment(me);
        file.change(|wishes| wishes.add(wish(peer, true, "a"), me)).unwrap().unwrap();
        file.change(|wishes| wishes.begin(peer, &payment, STEP)).unwrap();
        let again = WishFile::open(folder.path()).unwrap();
        let held = again.look(|wishes| wishes.of(peer));
        assert_eq!((held.len(), held[0].step), (1, Some(STEP)));
        fs::write(folder.path().join(FILE_NAME), "{}").unwrap();
        let error = WishFile::open(folder.path()).unwrap_err();
        assert!(matches!(error, WishError::Malformed { .. }), "{error}");
    }
}
