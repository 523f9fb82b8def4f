//! Reads the header of a GGUF file that a stranger may have written.
//!
//! Owns: the walk over the header with a bound on everything it declares, checked *before* memory
//! is set aside, and the places of the tensors, checked against the file's length. Never: reads
//! tensor data, knows what a key means, panics, or recurses. Called by [`super::model`]; candle's
//! own header reader, which trusts what it reads, is not used.
//!
//! Bounded: the header as a whole (64 MiB), entries, tensors, key and string lengths, the elements
//! of all arrays together. Tensors that overlap are refused: they would let a small file fill the
//! memory. Nested arrays are refused: no model that this engine can run has one.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};

use candle_core::quantized::GgmlDType;

use super::error::LoadError;
use crate::text;

const MAX_HEADER_BYTES: u64 = 64 << 20;
const MAX_ENTRIES: u64 = 4_096;
const MAX_TENSORS: u64 = 16_384;
const MAX_KEY_BYTES: u64 = 1_024;
const MAX_STRING_BYTES: u64 = 1 << 20;
const MAX_ELEMENT_BYTES: u64 = 4_096;
const MAX_ELEMENTS: u64 = 1 << 21;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A single value of the header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text; bytes that are not UTF-8 are replaced.
    Text(String),
}

/// An array of the header: kept when it holds text or integers, otherwise only walked over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Array {
    Texts(Vec<String>),
    Integers(Vec<i64>),
}

/// A tensor's place in the file; known to lie inside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorPlace {
    /// How its numbers are stored.
    pub(crate) dtype: GgmlDType,
    /// Its dimensions, slowest first (the file has them the other way round).
    pub(crate) dims: Vec<u64>,
    /// Where it begins, in bytes after [`Header::data_offset`].
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

/// A header that keeps every bound.
#[derive(Debug)]
pub(crate) struct Header {
    scalars: HashMap<String, Scalar>,
    arrays: HashMap<String, Array>,
    /// Every tensor by name.
    pub(crate) tensors: HashMap<String, TensorPlace>,
    /// Where tensor data begins, in bytes from the start of the file.
    pub(crate) data_offset: u64,
}

impl Header {
    /// Reads the header from the start of a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// [`LoadError`] when it is not GGUF, ends early, breaks a bound, or places a tensor outside
    /// the file. The memory used is bounded by the header's own length, 64 MiB at most, times a
    /// small constant.
    pub(crate) fn read(reader: impl Read, file_bytes: u64) -> Result<Self, LoadError> {
        let mut walk = Walk { reader, at: 0, end: file_bytes.min(MAX_HEADER_BYTES), file_bytes, elements: 0 };
        if walk.bytes::<4>("magic").map_err(|_| LoadError::UnknownFormat)? != *b"GGUF" {
            return Err(LoadError::UnknownFormat);
        }
        let version = walk.u32("version")?;
        if !matches!(version, 2 | 3) {
            return Err(LoadError::UnsupportedVersion { found: version });
        }
        let tensor_count = walk.count("tensor count", MAX_TENSORS)?;
        let entry_count = walk.count("metadata count", MAX_ENTRIES)?;
        let mut header =
            Self { scalars: HashMap::new(), arrays: HashMap::new(), tensors: HashMap::new(), data_offset: 0 };
        for _ in 0..entry_count {
            header.read_entry(&mut walk)?;
        }
        for _ in 0..tensor_count {
            let (name, place) = walk.tensor()?;
            if header.tensors.contains_key(&name) {
                return Err(corrupt(format!("tensor `{}` is there twice", text::clean(&name, 80))));
            }
            header.tensors.insert(name, place);
        }
        header.place_data(walk.at, file_bytes)?;
        Ok(header)
    }

    fn read_entry<R: Read>(&mut self, walk: &mut Walk<R>) -> Result<(), LoadError> {
        let key = walk.key("metadata key")?;
        if self.scalars.contains_key(&key) || self.arrays.contains_key(&key) {
            return Err(corrupt(format!("key `{}` is there twice", text::clean(&key, 80))));
        }
        let kind = walk.u32("value type")?;
        if kind == KIND_ARRAY {
            if let Some(array) = walk.array()? {
                self.arrays.insert(key, array);
            }
        } else {
            let value = walk.scalar(kind)?;
            self.scalars.insert(key, value);
        }
        Ok(())
    }

    /// Finds the start of the data and checks every tensor against the file's end.
    fn place_data(&mut self, header_end: u64, file_bytes: u64) -> Result<(), LoadError> {
        let alignment = match self.scalars.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Scalar::Unsigned(a)) if a.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(a) => *a,
            Some(other) => return Err(corrupt(format!("alignment {other:?}"))),
        };
        self.data_offset = header_end.next_multiple_of(alignment);
        let room = file_bytes.saturating_sub(self.data_offset);
        let mut places: Vec<_> = self.tensors.iter().collect();
        places.sort_unstable_by_key(|(_, place)| place.offset);
        let mut end = 0;
        for (name, place) in places {
            let shown = text::clean(name, 80);
            if place.offset % alignment != 0 {
                return Err(corrupt(format!("tensor `{shown}` is not aligned")));
            }
            if place.offset < end {
                return Err(corrupt(format!("tensor `{shown}` overlaps another")));
            }
            end = place.offset.saturating_add(place.bytes);
            if end > room {
                return Err(LoadError::Truncated { what: format!("tensor `{shown}`") });
            }
        }
        Ok(())
    }

    /// The value of `key`, if it is a single value.
    pub(crate) fn scalar(&self, key: &str) -> Option<&Scalar> {
        self.scalars.get(key)
    }

    /// The text under `key`, if there is one.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.scalars.get(key) {
            Some(Scalar::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The non-negative integer under `key`, if there is one.
    pub(crate) fn unsigned(&self, key: &str) -> Option<u64> {
        match self.scalars.get(key) {
            Some(Scalar::Unsigned(value)) => Some(*value),
            Some(Scalar::Signed(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The truth value under `key`, if there is one.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.scalars.get(key) {
            Some(Scalar::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// Takes the array under `key` out of the header.
    pub(crate) fn take_array(&mut self, key: &str) -> Option<Array> {
        self.arrays.remove(key)
    }
}

const KIND_U8: u32 = 0;
const KIND_I8: u32 = 1;
const KIND_U16: u32 = 2;
const KIND_I16: u32 = 3;
const KIND_U32: u32 = 4;
const KIND_I32: u32 = 5;
const KIND_F32: u32 = 6;
const KIND_BOOL: u32 = 7;
const KIND_TEXT: u32 = 8;
const KIND_ARRAY: u32 = 9;
const KIND_U64: u32 = 10;
const KIND_I64: u32 = 11;
const KIND_F64: u32 = 12;

fn corrupt(what: String) -> LoadError {
    LoadError::Corrupt { what }
}

/// A reader that knows where it is and never goes past the header's bound.
struct Walk<R> {
    reader: R,
    at: u64,
    /// The end of the file or of the largest header, whichever comes first.
    end: u64,
    file_bytes: u64,
    /// Array elements so far, over all arrays.
    elements: u64,
}

impl<R: Read> Walk<R> {
    /// Sets `len` bytes aside for reading, or says why they cannot be there.
    fn claim(&mut self, len: u64, what: &str) -> Result<(), LoadError> {
        let next = self.at.saturating_add(len);
        if next > self.file_bytes {
            return Err(LoadError::Truncated { what: what.to_owned() });
        }
        if next > self.end {
            return Err(LoadError::TooLarge { what: "header".to_owned(), limit: MAX_HEADER_BYTES });
        }
        self.at = next;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), LoadError> {
        self.reader.read_exact(buffer).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => LoadError::Truncated { what: what.to_owned() },
            _ => LoadError::Io { what: e.to_string() },
        })
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadError> {
        let mut buffer = [0; N];
        self.claim(u64::try_from(N).unwrap_or(u64::MAX), what)?;
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, LoadError> {
        let count = self.u64(what)?;
        if count > limit {
            return Err(LoadError::TooLarge { what: what.to_owned(), limit });
        }
        Ok(count)
    }

    fn raw(&mut self, what: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
        let len = self.count(what, limit)?;
        self.claim(len, what)?;
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.fill(&mut buffer, what)?;
        // Some writers count a closing zero byte.
        while buffer.last() == Some(&0) {
            buffer.pop();
        }
        Ok(buffer)
    }

    fn text(&mut self, what: &str, limit: u64) -> Result<String, LoadError> {
        let raw = self.raw(what, limit)?;
        Ok(String::from_utf8(raw).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn key(&mut self, what: &str) -> Result<String, LoadError> {
        let raw = self.raw(what, MAX_KEY_BYTES)?;
        String::from_utf8(raw).map_err(|_| corrupt(format!("{what} is not text")))
    }

    fn scalar(&mut self, kind: u32) -> Result<Scalar, LoadError> {
        let what = "metadata value";
        Ok(match kind {
            KIND_F32 => Scalar::Float(f64::from(f32::from_le_bytes(self.bytes(what)?))),
            KIND_F64 => Scalar::Float(f64::from_le_bytes(self.bytes(what)?)),
            KIND_BOOL => match self.bytes::<1>(what)? {
                [0] => Scalar::Bool(false),
                [1] => Scalar::Bool(true),
                [other] => return Err(corrupt(format!("truth value {other}"))),
            },
            KIND_TEXT => Scalar::Text(self.text(what, MAX_STRING_BYTES)?),
            KIND_U64 => Scalar::Unsigned(self.u64(what)?),
            KIND_I8 | KIND_I16 | KIND_I32 | KIND_I64 => Scalar::Signed(self.integer(kind)?),
            _ => Scalar::Unsigned(u64::try_from(self.integer(kind)?).map_err(|_| corrupt(what.to_owned()))?),
        })
    }

    /// An integer of any kind but u64 beyond i64's range.
    fn integer(&mut self, kind: u32) -> Result<i64, LoadError> {
        let what = "integer";
        Ok(match kind {
            KIND_U8 => i64::from(u8::from_le_bytes(self.bytes(what)?)),
            KIND_I8 => i64::from(i8::from_le_bytes(self.bytes(what)?)),
            KIND_U16 => i64::from(u16::from_le_bytes(self.bytes(what)?)),
            KIND_I16 => i64::from(i16::from_le_bytes(self.bytes(what)?)),
            KIND_U32 => i64::from(u32::from_le_bytes(self.bytes(what)?)),
            KIND_I32 => i64::from(i32::from_le_bytes(self.bytes(what)?)),
            KIND_I64 => i64::from_le_bytes(self.bytes(what)?),
            KIND_U64 => i64::try_from(self.u64(what)?)
                .map_err(|_| corrupt("an integer is out of range".to_owned()))?,
            other => return Err(corrupt(format!("value type {other}"))),
        })
    }

    /// An array: text and integers are kept, floats and truth values only walked over.
    fn array(&mut self) -> Result<Option<Array>, LoadError> {
        let kind = self.u32("array type")?;
        let len = self.count("array length", MAX_ELEMENTS)?;
        self.elements = self.elements.saturating_add(len);
        if self.elements > MAX_ELEMENTS {
            return Err(LoadError::TooLarge { what: "arrays".to_owned(), limit: MAX_ELEMENTS });
        }
        // An element takes at least one byte, so a length that the file cannot hold is refused here,
        // and vectors grow only as elements are truly read.
        if len > self.end.saturating_sub(self.at) {
            return Err(LoadError::Truncated { what: "array".to_owned() });
        }
        match kind {
            KIND_TEXT => {
                let mut texts = Vec::new();
                for _ in 0..len {
                    texts.push(self.text("array element", MAX_ELEMENT_BYTES)?);
                }
                Ok(Some(Array::Texts(texts)))
            }
            KIND_F32 | KIND_F64 | KIND_BOOL => {
                for _ in 0..len {
                    self.scalar(kind)?;
                }
                Ok(None)
            }
            KIND_ARRAY => Err(corrupt("an array of arrays".to_owned())),
            _ => {
                let mut integers = Vec::new();
                for _ in 0..len {
                    integers.push(self.integer(kind)?);
                }
                Ok(Some(Array::Integers(integers)))
            }
        }
    }

    fn tensor(&mut self) -> Result<(String, TensorPlace), LoadError> {
        let name = self.key("tensor name")?;
        let shown = text::clean(&name, 80);
        let rank = self.u32("tensor rank")?;
        if !(1..=MAX_DIMS).contains(&rank) {
            return Err(corrupt(format!("tensor `{shown}` has {rank} dimensions")));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(self.u64("tensor dimension")?);
        }
        let dtype = dtype(self.u32("tensor type")?)?;
        let offset = self.u64("tensor offset")?;
        let bytes = tensor_bytes(&dims, dtype)
            .ok_or_else(|| corrupt(format!("tensor `{shown}` has the shape {dims:?}")))?;
        dims.reverse();
        Ok((name, TensorPlace { dtype, dims, offset, bytes }))
    }
}

/// Length in bytes of a tensor with `dims`, fastest first; `None` when it is no whole number of
/// blocks a row, empty, or past what can be counted.
fn tensor_bytes(dims: &[u64], dtype: GgmlDType) -> Option<u64> {
    let block = u64::try_from(dtype.block_size()).ok()?;
    let block_bytes = u64::try_from(dtype.type_size()).ok()?;
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    if elements == 0 || dims.first()? % block != 0 {
        return None;
    }
    let bytes = (elements / block).checked_mul(block_bytes)?;
    // Dequantized to f32 it must still be countable in a usize, with room to spare.
    (elements < 1 << 48).then_some(bytes)
}

/// The storage types that candle can multiply with.
fn dtype(number: u32) -> Result<GgmlDType, LoadError> {
    Ok(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        found => return Err(LoadError::UnsupportedQuantization { found }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }

    /// A small valid file: two scalars, two arrays, one F32 tensor of 2 x 8.
    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(b"GGUF");
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(KIND_TEXT.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.block_count");
        out.extend(KIND_U32.to_le_bytes());
        out.extend(2u32.to_le_bytes());
        text(&mut out, "tokens");
        out.extend(KIND_ARRAY.to_le_bytes());
        out.extend(KIND_TEXT.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "b");
        text(&mut out, "types");
        out.extend(KIND_ARRAY.to_le_bytes());
        out.extend(KIND_I32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend((-1i32).to_le_bytes());
        out.extend(3i32.to_le_bytes());
        text(&mut out, "w");
        out.extend(2u32.to_le_bytes());
        out.extend(8u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 64, 0);
        out
    }

    fn read(bytes: &[u8]) -> Result<Header, LoadError> {
        Header::read(bytes, bytes.len() as u64)
    }

    /// The bytes before a metadata section that declares `tensors` and `entries`.
    fn start(tensors: u64, entries: u64) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(tensors.to_le_bytes());
        out.extend(entries.to_le_bytes());
        out
    }

    #[test]
    fn reads_a_whole_header() {
        let mut header = read(&sample()).unwrap();
        assert_eq!(header.text("general.architecture"), Some("llama"));
        assert_eq!(header.unsigned("llama.block_count"), Some(2));
        assert_eq!(header.take_array("tokens"), Some(Array::Texts(vec!["a".into(), "b".into()])));
        assert_eq!(header.take_array("types"), Some(Array::Integers(vec![-1, 3])));
        let place = &header.tensors["w"];
        assert_eq!((place.dims.as_slice(), place.bytes, place.offset), (&[2, 8][..], 64, 0));
        assert_eq!(header.data_offset % 32, 0);
    }

    #[test]
    fn every_cut_is_a_typed_error() {
        let whole = sample();
        for len in 0..whole.len() {
            match read(&whole[..len]).unwrap_err() {
                LoadError::UnknownFormat if len < 4 => {}
                LoadError::Truncated { .. } if len >= 4 => {}
                other => panic!("cut at {len}: {other}"),
            }
        }
    }

    #[test]
    fn huge_counts_are_refused_before_memory_is_set_aside() {
        assert!(matches!(read(&start(u64::MAX, 0)), Err(LoadError::TooLarge { .. })));
        assert!(matches!(read(&start(0, u64::MAX)), Err(LoadError::TooLarge { .. })));
        // A key, a string, an array and array elements that claim more than the file.
        let mut key = start(0, 1);
        key.extend(u64::MAX.to_le_bytes());
        let mut string = start(0, 1);
        text(&mut string, "k");
        string.extend(KIND_TEXT.to_le_bytes());
        string.extend((1u64 << 62).to_le_bytes());
        let mut array = start(0, 1);
        text(&mut array, "k");
        array.extend(KIND_ARRAY.to_le_bytes());
        array.extend(KIND_U8.to_le_bytes());
        array.extend((1u64 << 61).to_le_bytes());
        for bytes in [key, string, array] {
            assert!(matches!(read(&bytes), Err(LoadError::TooLarge { .. })));
        }
    }

    #[test]
    fn nested_arrays_are_refused() {
        let mut bytes = start(0, 1);
        text(&mut bytes, "k");
        bytes.extend(KIND_ARRAY.to_le_bytes());
        for _ in 0..100 {
            bytes.extend(KIND_ARRAY.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        }
        assert_eq!(read(&bytes).unwrap_err(), corrupt("an array of arrays".to_owned()));
    }

    #[test]
    fn tensors_stay_inside_the_file() {
        let tensor = |dims: &[u64], kind: u32, offset: u64| {
            let mut bytes = start(1, 0);
            text(&mut bytes, "w");
            bytes.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
            for dim in dims {
                bytes.extend(dim.to_le_bytes());
            }
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.resize(4096, 0);
            read(&bytes)
        };
        assert!(tensor(&[32], 3, 0).is_ok());
        assert!(matches!(tensor(&[1 << 20], 0, 0), Err(LoadError::Truncated { .. })));
        assert!(matches!(tensor(&[32], 3, 1 << 40), Err(LoadError::Truncated { .. })));
        assert!(matches!(tensor(&[32], 3, 33), Err(LoadError::Corrupt { .. })));
        assert!(matches!(tensor(&[31], 3, 0), Err(LoadError::Corrupt { .. })));
        assert!(matches!(tensor(&[u64::MAX, 32], 0, 0), Err(LoadError::Corrupt { .. })));
        assert!(matches!(tensor(&[0], 0, 0), Err(LoadError::Corrupt { .. })));
        assert!(matches!(tensor(&[1; 5], 0, 0), Err(LoadError::Corrupt { .. })));
        assert!(matches!(tensor(&[32], 9, 0), Err(LoadError::UnsupportedQuantization { found: 9 })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&tail);
            let mut bytes = start(2, 3);
            bytes.extend(tail);
            let _ = read(&bytes);
        }

        #[test]
        fn flipped_bytes_never_panic_and_never_place_data_outside(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = sample();
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            if let Ok(header) = read(&bytes) {
                for place in header.tensors.values() {
                    prop_assert!(header.data_offset + place.offset + place.bytes <= bytes.len() as u64);
                }
            }
        }
    }
}
