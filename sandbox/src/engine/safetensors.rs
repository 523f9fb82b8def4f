//! Reads the header of a safetensors file that a stranger may have written.
//!
//! Owns: the header's bounds, checked before memory is set aside by them, and the proof that the
//! tensors lie in the file one after another without a gap or an overlap. Never: reads tensor data,
//! or knows what a tensor or a note is for. Called by [`super::encoder`]; candle's own reader, which
//! maps files and trusts their numbers, is not used.
//!
//! The header is a length (u64, little endian) and so many bytes of JSON: `__metadata__` with notes
//! as texts, and for each tensor its type, its shape and where its bytes begin and end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{ErrorKind, Read};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::LoadError;
use crate::text;

/// The longest header in bytes: a tokenizer of a million entries is below.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_TENSORS: usize = 8_192;
const MAX_NOTES: usize = 64;
const MAX_DIMS: usize = 4;
const LENGTH_BYTES: u64 = 8;

/// How a tensor's numbers are stored, of the types that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// 32-bit floats.
    F32,
    /// 64-bit integers.
    I64,
}

/// A tensor's place in the file; known to lie inside it and to have the length of its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The numbers' type.
    pub(crate) stored: Stored,
    /// The shape, slowest dimension first; no dimension is zero.
    pub(crate) dims: Vec<u64>,
    /// Where it begins, in bytes from the start of the file.
    pub(crate) at: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

/// A header that keeps every bound.
#[derive(Debug)]
pub(crate) struct Header {
    notes: HashMap<String, String>,
    /// Every tensor by name.
    pub(crate) tensors: BTreeMap<String, Place>,
}

impl Header {
    /// Reads the header from the start of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// [`LoadError`] when it is cut, breaks a bound, contradicts itself, or holds numbers of a type
    /// that is not read.
    pub(crate) fn read(mut reader: impl Read, file_bytes: u64) -> Result<Self, LoadError> {
        let mut head = [0; 8];
        fill(&mut reader, &mut head)?;
        let len = u64::from_le_bytes(head);
        if len > MAX_HEADER_BYTES {
            return Err(LoadError::TooLarge { what: "header".to_owned(), limit: MAX_HEADER_BYTES });
        }
        let data_at = LENGTH_BYTES + len;
        if data_at > file_bytes {
            return Err(LoadError::Truncated { what: "header".to_owned() });
        }
        let mut json = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        fill(&mut reader, &mut json)?;
        let raw: RawHeader =
            serde_json::from_slice(&json).map_err(|e| corrupt(format!("header: {}", clean(&e))))?;
        Ok(Self { notes: raw.notes, tensors: place(raw.tensors, data_at, file_bytes - data_at)? })
    }

    /// The note of that name.
    ///
    /// # Errors
    /// [`LoadError::Corrupt`] when there is none.
    pub(crate) fn note(&self, name: &str) -> Result<&str, LoadError> {
        self.optional_note(name).ok_or_else(|| corrupt(format!("`{name}` is not in it")))
    }

    /// The note of that name, if there is one.
    pub(crate) fn optional_note(&self, name: &str) -> Option<&str> {
        self.notes.get(name).map(String::as_str)
    }
}

/// Checks that the tensors fill the `room` bytes from `data_at` one after another.
fn place(
    raw: BTreeMap<String, RawTensor>,
    data_at: u64,
    room: u64,
) -> Result<BTreeMap<String, Place>, LoadError> {
    let mut spans: Vec<(u64, u64, &str)> =
        raw.iter().map(|(name, t)| (t.data_offsets[0], t.data_offsets[1], name.as_str())).collect();
    spans.sort_unstable();
    let mut next = 0;
    for (begin, end, name) in spans {
        let shown = text::clean(name, 80);
        if begin != next || end < begin {
            return Err(corrupt(format!("tensor `{shown}` overlaps another or leaves a gap")));
        }
        if end > room {
            return Err(LoadError::Truncated { what: format!("tensor `{shown}`") });
        }
        next = end;
    }
    if next != room {
        return Err(corrupt("bytes follow the last tensor".to_owned()));
    }
    raw.into_iter()
        .map(|(name, tensor)| {
            let place = tensor.place(&text::clean(&name, 80), data_at)?;
            Ok((name, place))
        })
        .collect()
}

impl RawTensor {
    fn place(self, shown: &str, data_at: u64) -> Result<Place, LoadError> {
        let (stored, size) = match self.dtype.as_str() {
            "F32" => (Stored::F32, 4),
            "I64" => (Stored::I64, 8),
            other => {
                let found = format!("tensor `{shown}` of {}", text::clean(other, 16));
                return Err(LoadError::UnsupportedArchitecture { found });
            }
        };
        if self.shape.len() > MAX_DIMS {
            return Err(corrupt(format!("tensor `{shown}` has {} dimensions", self.shape.len())));
        }
        let bytes = self.shape.iter().try_fold(size, |bytes: u64, &dim| bytes.checked_mul(dim));
        let [begin, end] = self.data_offsets;
        if bytes != Some(end - begin) || begin == end {
            return Err(corrupt(format!("tensor `{shown}` has not the length of its shape")));
        }
        Ok(Place { stored, dims: self.shape, at: data_at + begin, bytes: end - begin })
    }
}

fn corrupt(what: String) -> LoadError {
    LoadError::Corrupt { what }
}

fn clean(error: &serde_json::Error) -> String {
    text::clean(&error.to_string(), 200)
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<(), LoadError> {
    reader.read_exact(buffer).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => LoadError::Truncated { what: "header".to_owned() },
        _ => LoadError::Io { what: e.to_string() },
    })
}

/// A tensor as the header tells it; nothing in it is believed yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's JSON with its counts bounded while it is read.
struct RawHeader {
    notes: HashMap<String, String>,
    tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { notes: HashMap::new(), tensors: BTreeMap::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.notes = map.next_value()?;
                        if header.notes.len() > MAX_NOTES {
                            return Err(A::Error::custom("too many notes"));
                        }
                    } else if header.tensors.insert(key, map.next_value()?).is_some() {
                        return Err(A::Error::custom("a tensor is there twice"));
                    }
                    if header.tensors.len() > MAX_TENSORS {
                        return Err(A::Error::custom("too many tensors"));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with this header and so many zero bytes of data.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = u64::try_from(json.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Header, LoadError> {
        Header::read(bytes, u64::try_from(bytes.len()).unwrap())
    }

    fn tensor(name: &str, shape: &str, from: u64, to: u64) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    }

    #[test]
    fn a_header_gives_its_tensors_and_notes() {
        let json = format!(
            r#"{{"__metadata__":{{"config.json":"{{}}"}},{},{}}}"#,
            tensor("b", "[2,3]", 4, 28),
            tensor("a", "[]", 0, 4)
        );
        let bytes = file(&json, 28);
        let header = read(&bytes).unwrap();
        assert_eq!(header.note("config.json"), Ok("{}"));
        assert!(matches!(header.note("tokenizer.json"), Err(LoadError::Corrupt { .. })));
        let data = u64::try_from(bytes.len()).unwrap() - 28;
        let b = Place { stored: Stored::F32, dims: vec![2, 3], at: data + 4, bytes: 24 };
        assert_eq!(header.tensors["b"], b);
    }

    #[test]
    fn lies_are_told_apart() {
        let one = |tensor: &str, data| read(&file(&format!("{{{tensor}}}"), data));
        for (tensors, data) in [
            // Shape and span disagree, or multiply past what can be counted.
            (tensor("a", "[3]", 0, 8), 8),
            (tensor("a", "[4294967296,4294967296,4]", 0, 8), 8),
            (tensor("a", "[0]", 0, 0), 0),
            (tensor("a", "[1,1,1,1,2]", 0, 8), 8),
            // Overlap, gap, backwards, bytes after the end.
            (tensor("a", "[2]", 0, 8) + "," + &tensor("b", "[2]", 4, 12), 12),
            (tensor("a", "[2]", 0, 8) + "," + &tensor("b", "[2]", 0, 8), 8),
            (tensor("a", "[2]", 4, 12), 12),
            (tensor("a", "[2]", 8, 0), 8),
            (tensor("a", "[2]", 0, 8), 9),
            // The same name twice, and numbers that are none.
            (tensor("a", "[2]", 0, 8) + "," + &tensor("a", "[2]", 0, 8), 8),
            (tensor("a", "[-1]", 0, 8), 8),
            (tensor("a", "[1e3]", 0, 8), 8),
        ] {
            let refused = one(&tensors, data);
            assert!(matches!(refused, Err(LoadError::Corrupt { .. })), "{tensors}: {refused:?}");
        }
        let cut = one(&tensor("a", "[2]", 0, 8), 7);
        assert!(matches!(cut, Err(LoadError::Truncated { .. })), "{cut:?}");
        let half = one(&tensor("a", "[4]", 0, 8).replace("F32", "F16"), 8);
        assert!(matches!(half, Err(LoadError::UnsupportedArchitecture { .. })), "{half:?}");
    }

    #[test]
    fn a_lying_length_takes_no_memory() {
        for (len, file_bytes) in [(u64::MAX, 100), (MAX_HEADER_BYTES + 1, u64::MAX), (93, 100)] {
            let mut bytes = len.to_le_bytes().to_vec();
            bytes.resize(100, b'{');
            let refused = Header::read(bytes.as_slice(), file_bytes);
            assert!(matches!(refused, Err(LoadError::TooLarge { .. } | LoadError::Truncated { .. })));
        }
        let deep = file(&"[".repeat(1 << 20), 0);
        assert!(matches!(read(&deep), Err(LoadError::Corrupt { .. })));
        let deep = file(&format!(r#"{{"a":{}"#, r#"{"shape":["#.repeat(1 << 16)), 0);
        assert!(matches!(read(&deep), Err(LoadError::Corrupt { .. })));
        let many: Vec<_> = (0..=MAX_TENSORS).map(|n| tensor(&n.to_string(), "[]", 0, 4)).collect();
        assert!(matches!(read(&file(&format!("{{{}}}", many.join(",")), 4)), Err(LoadError::Corrupt { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(json in "\\PC{0,200}", data in 0usize..64) {
            let _ = read(&file(&json, data));
        }

        #[test]
        fn flipped_and_cut_files_keep_every_place_inside(
            at in any::<prop::sample::Index>(), with in 1u8.., cut in any::<prop::sample::Index>(),
        ) {
            let json = format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("b", "[2,1]", 8, 16));
            let mut bytes = file(&json, 16);
            let len = bytes.len();
            bytes[at.index(len)] ^= with;
            for bytes in [&bytes[..], &bytes[..cut.index(len)]] {
                if let Ok(header) = read(bytes) {
                    let end = u64::try_from(bytes.len()).unwrap();
                    prop_assert!(header.tensors.values().all(|p| p.at + p.bytes <= end));
                }
            }
        }
    }
}
