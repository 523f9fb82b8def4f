//! An encoder's published files as the one file that the market names by its hash.
//!
//! Owns: the packed form: the published safetensors file, its tensors' bytes unchanged, with the other
//! files as texts in its header. Never: reads a file whose sha256 is not the catalogue's: what is
//! parsed here is the catalogue's own choice and no stranger's. Called by [`super::pull`].
//!
//! Everybody who packs the same files gets the same bytes: the header's keys are sorted, its JSON has
//! no spaces, and spaces after it fill it up to a multiple of eight bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use potluck_node::catalogue::CatalogueModel;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use thiserror::Error;

use super::copy_hashed;

/// The longest header of a published file, in bytes; real ones are below 100 KB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Where tensors begin, by the format's own advice.
const ALIGNMENT: usize = 8;

/// Why published files cannot be packed. Fault: local (disk), or this program's catalogue.
#[derive(Debug, Error)]
pub enum PackError {
    /// There is nothing to pack.
    #[error("the catalogue names no files")]
    NoFiles,
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The header is not what the format says.
    #[error("the weights' header: {0}")]
    Header(#[from] serde_json::Error),
    /// The result is not what the catalogue says.
    #[error("its sha256 is {got} and not {expected}; nothing was kept")]
    WrongBytes {
        /// What was due.
        expected: &'static str,
        /// What came out.
        got: String,
    },
}

/// A safetensors header: notes, and where each tensor lies.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    notes: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Place>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Place {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The packed file in `dir`, checked against the catalogue; `files` are the catalogue's, in its order.
pub(super) fn into_safetensors(
    model: &'static CatalogueModel,
    files: &[NamedTempFile],
    dir: &Path,
) -> Result<NamedTempFile, PackError> {
    let (weights, texts) = files.split_first().ok_or(PackError::NoFiles)?;
    let mut notes = BTreeMap::new();
    for (published, file) in model.files.iter().skip(1).zip(texts) {
        notes.insert(published.name.to_owned(), std::fs::read_to_string(file.path())?);
    }
    let mut packed = NamedTempFile::new_in(dir)?;
    pack(File::open(weights.path())?, notes, packed.as_file_mut())?;
    packed.as_file_mut().seek(SeekFrom::Start(0))?;
    let got = copy_hashed(packed.as_file_mut(), &mut std::io::sink(), u64::MAX, None)?;
    if got != model.sha256 {
        return Err(PackError::WrongBytes { expected: model.sha256, got });
    }
    Ok(packed)
}

/// Writes `weights` with `notes` added to its own.
fn pack(
    mut weights: impl Read,
    notes: BTreeMap<String, String>,
    to: &mut dyn Write,
) -> Result<(), PackError> {
    let mut len = [0; 8];
    weights.read_exact(&mut len)?;
    let mut json = Vec::new();
    let len = u64::from_le_bytes(len);
    weights.by_ref().take(len.min(MAX_HEADER_BYTES)).read_to_end(&mut json)?;
    let mut header: Header = serde_json::from_slice(&json)?;
    header.notes.extend(notes);
    let mut json = serde_json::to_vec(&header)?;
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    to.write_all(&u64::try_from(json.len()).unwrap_or(u64::MAX).to_le_bytes())?;
    to.write_all(&json)?;
    std::io::copy(&mut weights, to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn packed(header: &str) -> Result<Vec<u8>, PackError> {
        let notes = BTreeMap::from([("config.json".to_owned(), "{\"é\":\n1}".to_owned())]);
        let mut out = Vec::new();
        pack(file(header, b"\x01\x02\x03\x04 and more").as_slice(), notes, &mut out)?;
        Ok(out)
    }

    #[test]
    fn the_header_is_sorted_and_the_data_unchanged() {
        let a = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        let b = r#""b":{"dtype":"U8","shape":[9],"data_offsets":[4,13]}"#;
        let note = r#""__metadata__":{"format":"pt"}"#;
        let out = packed(&format!("{{ {b}, {note}, {a} }}   ")).unwrap();
        let expected =
            format!(r#"{{"__metadata__":{{"config.json":"{{\"é\":\n1}}","format":"pt"}},{a},{b}}}"#);
        let len = usize::try_from(u64::from_le_bytes(out[..8].try_into().unwrap())).unwrap();
        assert!(len.is_multiple_of(ALIGNMENT) && len - expected.len() < ALIGNMENT);
        let header = std::str::from_utf8(&out[8..8 + len]).unwrap();
        assert_eq!(header.trim_end(), expected);
        assert_eq!(&out[8 + len..], b"\x01\x02\x03\x04 and more");
        // In another order, the same.
        assert_eq!(packed(&format!("{{{note},{a},{b}}}")).unwrap(), out);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        assert!(matches!(packed("[]"), Err(PackError::Header(_))));
        assert!(matches!(packed(r#"{"a":{"dtype":"U8"}}"#), Err(PackError::Header(_))));
        let mut out = Vec::new();
        let cut = pack(&b"\xff\xff\xff"[..], BTreeMap::new(), &mut out);
        assert!(matches!(cut, Err(PackError::Io(_))) && out.is_empty());
    }
}
