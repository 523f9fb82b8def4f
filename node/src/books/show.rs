//! Objects by name: all of a job, or whatever has a digest.
//!
//! Owns: [`Object`], a signed object for people and for programs. Never: changes or judges one. Called
//! by [`super::Books`].

use potluck_protocol::id::{Digest, PeerId, hex};
use potluck_protocol::statement::Statement;
use potluck_protocol::wire;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::BooksError;
use super::find::{self, DigestName, Name};
use crate::ledger::{Ledger, Record};

/// Objects shown when a digest's beginning names many.
const MOST: usize = 256;

/// A signed object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Which kind: `contract`, `voucher`, …
    pub kind: String,
    /// blake3 of what is signed; of a proof, of all of it.
    pub digest: Digest,
    /// Who signed it; of a proof, whom it convicts.
    pub signer: PeerId,
    /// The job that it belongs to, if it does.
    pub job: Option<String>,
    /// What it fills, in words.
    pub about: Option<String>,
    /// Its fields.
    pub body: Value,
    /// Its canonical bytes with the signature, in hexadecimal.
    pub signed: String,
}

/// See [`super::Ask::Show`].
pub(super) fn show(ledger: &Ledger, id: &str) -> Result<Vec<Object>, BooksError> {
    let objects = match find::name(id)? {
        Name::Job(name) => ledger.objects(&find::lane(ledger, id, &name)?.lane)?,
        Name::Digest(name) => by_digest(ledger, &name)?,
    };
    if objects.is_empty() {
        return Err(BooksError::NotFound { id: id.to_owned() });
    }
    objects.iter().map(object).collect()
}

fn by_digest(ledger: &Ledger, name: &DigestName) -> Result<Vec<Record>, BooksError> {
    let mut found = Vec::new();
    ledger.each_object(|record| {
        if found.len() < MOST && record.digest().is_ok_and(|digest| name.is(&digest)) {
            found.push(record);
        }
    })?;
    Ok(found)
}

fn object(record: &Record) -> Result<Object, BooksError> {
    let digest = record.digest().map_err(BooksError::Encoding)?;
    let kind = record.kind().to_string();
    let Some(statement) = record.statement() else {
        let Record::Proof(proof) = record else {
            return Err(BooksError::NotFound { id: digest.to_string() });
        };
        return Ok(Object {
            kind,
            digest,
            signer: proof.first.signer(),
            job: None,
            about: proof.first.slot().map(|slot| slot.to_string()),
            body: plain(&proof),
            signed: hex(&wire::encode(proof).map_err(BooksError::Encoding)?),
        });
    };
    let (body, signed) = body_of(&statement)?;
    Ok(Object {
        kind,
        digest,
        signer: statement.signer(),
        job: statement.lane().map(|lane| lane.to_string()),
        about: statement.slot().map(|slot| slot.to_string()),
        body,
        signed,
    })
}

/// A number past 64 bits is written as its digits.
fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value)
        .unwrap_or_else(|_| serde_json::to_string(value).map_or(Value::Null, Value::String))
}

fn body_of(statement: &Statement) -> Result<(Value, String), BooksError> {
    macro_rules! of {
        ($($kind:ident)*) => {
            match statement {
                $(Statement::$kind(it) => (plain(&it.body), wire::encode(it)),)*
            }
        };
    }
    let (body, bytes) =
        of!(Quote Contract Accept Meter Voucher Receipt Close Abandon State Countersign Cancel Raise);
    Ok((body, hex(&bytes.map_err(BooksError::Encoding)?)))
}
