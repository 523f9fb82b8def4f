//! Text to token ids and back, as the model file says.
//!
//! Owns: the tokenizer built from the header, which tokens end an answer, and the streaming way
//! back to text. Never: renders a chat template, and never guesses: a tokenizer that is not
//! reproduced exactly is refused, since other ids would be another prompt than the renter's.
//! Called by [`super::generate`].
//!
//! Only byte-level BPE (`tokenizer.ggml.model = gpt2`) is read, with the pre-tokenizers in
//! [`pre_tokenizer`]. A control token's text inside a message becomes that token, as in every
//! common server: the whole prompt is the renter's own.

use std::collections::BTreeSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use super::error::{GenerateError, LoadError};
use super::gguf::{Array, Header};
use crate::text;

/// The longest token in bytes: keeps one token's text well inside one event.
const MAX_TOKEN_BYTES: usize = 1_024;

/// Names under which model families keep the token that ends a turn.
const END_NAMES: [&str; 6] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<|eom_id|>"];

/// What the file says a token is (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ordinary text in the byte alphabet.
    Text,
    /// Text that stands for itself.
    UserDefined,
    /// Control, unknown, unused: never output.
    Silent,
}

/// The vocabulary of one model.
pub(crate) struct Vocabulary {
    tokenizer: Tokenizer,
    /// The bytes of all tokens, one after another; token `i` is `bytes[starts[i]..starts[i + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    control: BTreeSet<String>,
    ends: BTreeSet<u32>,
    /// Put before every prompt that does not begin with it.
    leading: Option<u32>,
    bos: String,
    eos: String,
}

impl Vocabulary {
    /// Builds the tokenizer that the header describes, taking its arrays.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedTokenizer`], or [`LoadError::Corrupt`] when the parts do not fit.
    pub(crate) fn read(header: &mut Header) -> Result<Self, LoadError> {
        let model = header.text("tokenizer.ggml.model").unwrap_or("none").to_owned();
        if model != "gpt2" {
            return Err(LoadError::UnsupportedTokenizer { found: text::clean(&model, 80) });
        }
        let pre = header.text("tokenizer.ggml.pre").unwrap_or("default").to_owned();
        let splitter = pre_tokenizer(&pre)?;
        let (tokens, kinds) = read_tokens(header)?;
        let merges = read_merges(header)?;

        let mut tokenizer = build_bpe(&tokens, merges, pre == LLAMA3)?;
        tokenizer.with_pre_tokenizer(Some(splitter));
        add_whole_tokens(&mut tokenizer, &tokens, &kinds)?;

        let (bytes, starts) = spell(&tokens, &kinds);
        let control: BTreeSet<String> = tokens
            .iter()
            .zip(&kinds)
            .filter(|(_, kind)| **kind == Kind::Silent)
            .map(|(token, _)| token.clone())
            .collect();
        let named = |key: &str| -> Option<u32> {
            let id = u32::try_from(header.unsigned(key)?).ok()?;
            (usize::try_from(id).ok()? < tokens.len()).then_some(id)
        };
        let spelled = |id: Option<u32>| {
            id.and_then(|id| tokens.get(usize::try_from(id).ok()?)).cloned().unwrap_or_default()
        };
        let (bos, eos) = (named("tokenizer.ggml.bos_token_id"), named("tokenizer.ggml.eos_token_id"));
        let mut ends: BTreeSet<u32> =
            [eos, named("tokenizer.ggml.eot_token_id")].into_iter().flatten().collect();
        for (token, id) in tokens.iter().zip(0u32..) {
            if END_NAMES.contains(&token.as_str()) && control.contains(token) {
                ends.insert(id);
            }
        }
        let add_bos = header.flag("tokenizer.ggml.add_bos_token").unwrap_or(pre == LLAMA3);
        Ok(Self {
            tokenizer,
            bytes,
            starts,
            control,
            ends,
            leading: if add_bos { bos } else { None },
            bos: spelled(bos),
            eos: spelled(eos),
        })
    }

    /// How many tokens there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The text of the token that begins a prompt; empty when there is none.
    pub(crate) fn bos(&self) -> &str {
        &self.bos
    }

    /// The text of the token that ends an answer; empty when there is none.
    pub(crate) fn eos(&self) -> &str {
        &self.eos
    }

    /// Whether `token` is one of the file's control tokens.
    pub(crate) fn has_control(&self, token: &str) -> bool {
        self.control.contains(token)
    }

    /// Whether the answer ends with this token.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The ids of a rendered prompt; every id is below [`Self::len`].
    ///
    /// # Errors
    /// [`GenerateError::Tokenizer`].
    pub(crate) fn encode(&self, prompt: &str) -> Result<Vec<u32>, GenerateError> {
        let mut ids = self.encode_more(prompt)?;
        if let Some(leading) = self.leading
            && ids.first() != Some(&leading)
        {
            ids.insert(0, leading);
        }
        Ok(ids)
    }

    /// As [`Self::encode`], for text that goes on from another: nothing is put before it.
    ///
    /// # Errors
    /// [`GenerateError::Tokenizer`].
    pub(crate) fn encode_more(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|e| GenerateError::Tokenizer { what: text::clean(&e.to_string(), 200) })?;
        let ids = encoding.get_ids().to_vec();
        // On a GPU an id past the table is an assertion in the kernel that poisons the device.
        match ids.iter().find(|id| self.piece(**id).is_none()) {
            Some(id) => {
                Err(GenerateError::Tokenizer { what: format!("token {id} is not in the vocabulary") })
            }
            None => Ok(ids),
        }
    }

    /// The bytes that a token adds to the output; `None` when there is no such token.
    pub(crate) fn piece(&self, id: u32) -> Option<&[u8]> {
        let at = usize::try_from(id).ok()?;
        self.bytes.get(*self.starts.get(at)?..*self.starts.get(at + 1)?)
    }
}

/// Turns pieces into text without ever splitting a character.
#[derive(Debug, Default)]
pub(crate) struct TextStream {
    /// The beginning of a character whose end has not come: at most three bytes.
    pending: Vec<u8>,
}

impl TextStream {
    /// Adds a token's bytes and appends to `out` what is complete. Bytes that can never be UTF-8
    /// become U+FFFD; a character that the answer's end cuts off is never shown.
    pub(crate) fn push(&mut self, piece: &[u8], out: &mut String) {
        self.pending.extend_from_slice(piece);
        let mut from = 0;
        while let Some(rest) = self.pending.get(from..)
            && !rest.is_empty()
        {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    from = self.pending.len();
                }
                Err(e) => {
                    let good = e.valid_up_to();
                    out.push_str(std::str::from_utf8(&rest[..good]).unwrap_or_default());
                    let Some(bad) = e.error_len() else {
                        from += good;
                        break;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    from += good + bad;
                }
            }
        }
        self.pending.drain(..from);
    }
}

const LLAMA3: &str = "llama-bpe";
const LLAMA3_SPLIT: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before byte pairs are merged, by the name in `tokenizer.ggml.pre`.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, LoadError> {
    match name {
        // GPT-2's own pattern; no space is put in front.
        "gpt-2" | "default" => Ok(ByteLevel::new(false, true, true).into()),
        // Each digit alone, then GPT-2's pattern.
        "smollm" => {
            Ok(Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into())
        }
        LLAMA3 => {
            let split = Split::new(
                SplitPattern::Regex(LLAMA3_SPLIT.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map_err(|e| LoadError::Engine { what: text::clean(&e.to_string(), 200) })?;
            Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
        }
        found => Err(LoadError::UnsupportedTokenizer { found: text::clean(found, 80) }),
    }
}

fn corrupt(what: impl Into<String>) -> LoadError {
    LoadError::Corrupt { what: what.into() }
}

fn read_tokens(header: &mut Header) -> Result<(Vec<String>, Vec<Kind>), LoadError> {
    let Some(Array::Texts(tokens)) = header.take_array("tokenizer.ggml.tokens") else {
        return Err(corrupt("it has no vocabulary"));
    };
    if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
        return Err(corrupt(format!("a vocabulary of {} tokens", tokens.len())));
    }
    if tokens.iter().any(|token| token.len() > MAX_TOKEN_BYTES) {
        return Err(corrupt(format!("a token longer than {MAX_TOKEN_BYTES} bytes")));
    }
    let distinct: std::collections::HashSet<&str> = tokens.iter().map(String::as_str).collect();
    if distinct.len() != tokens.len() {
        return Err(corrupt("a token is there twice"));
    }
    let kinds = match header.take_array("tokenizer.ggml.token_type") {
        None => vec![Kind::Text; tokens.len()],
        Some(Array::Integers(kinds)) if kinds.len() == tokens.len() => kinds
            .into_iter()
            .map(|kind| match kind {
                1 | 6 => Kind::Text,
                4 => Kind::UserDefined,
                _ => Kind::Silent,
            })
            .collect(),
        Some(_) => return Err(corrupt("token types do not match the vocabulary")),
    };
    Ok((tokens, kinds))
}

fn read_merges(header: &mut Header) -> Result<Vec<(String, String)>, LoadError> {
    let Some(Array::Texts(merges)) = header.take_array("tokenizer.ggml.merges") else {
        return Err(corrupt("it has no byte-pair merges"));
    };
    merges
        .iter()
        .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(|| corrupt("a byte-pair merge is not a pair"))
}

fn build_bpe(
    tokens: &[String],
    merges: Vec<(String, String)>,
    ignore_merges: bool,
) -> Result<Tokenizer, LoadError> {
    let vocab: Vocab = tokens.iter().cloned().zip(0u32..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(|e| corrupt(format!("byte-pair merges: {}", text::clean(&e.to_string(), 200))))?;
    Ok(Tokenizer::new(bpe))
}

/// Tells the tokenizer which tokens are found whole in a text, before anything is cut.
fn add_whole_tokens(tokenizer: &mut Tokenizer, tokens: &[String], kinds: &[Kind]) -> Result<(), LoadError> {
    let whole = |wanted: Kind, special: bool| -> Vec<AddedToken> {
        tokens
            .iter()
            .zip(kinds)
            .filter(|(token, kind)| **kind == wanted && !token.is_empty())
            .map(|(token, _)| AddedToken::from(token.clone(), special).normalized(false))
            .collect()
    };
    tokenizer
        .add_special_tokens(whole(Kind::Silent, true))
        .and_then(|_| tokenizer.add_tokens(whole(Kind::UserDefined, false)))
        .map_err(|e| corrupt(format!("control tokens: {}", text::clean(&e.to_string(), 200))))?;
    Ok(())
}

/// The output bytes of every token, one after another, and where each begins.
fn spell(tokens: &[String], kinds: &[Kind]) -> (Vec<u8>, Vec<usize>) {
    let alphabet = byte_alphabet();
    let mut bytes = Vec::new();
    let mut starts = vec![0];
    for (token, kind) in tokens.iter().zip(kinds) {
        match kind {
            Kind::Silent => {}
            Kind::UserDefined => bytes.extend_from_slice(token.as_bytes()),
            Kind::Text => {
                for c in token.chars() {
                    match alphabet.iter().zip(0u8..=255).find(|(letter, _)| **letter == c) {
                        Some((_, byte)) => bytes.push(byte),
                        // Not in the alphabet: the token stands for itself.
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
        starts.push(bytes.len());
    }
    (bytes, starts)
}

/// GPT-2's printable stand-in for every byte: itself where it is visible, otherwise the next free
/// letter from U+0100.
fn byte_alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|at| {
        let byte = u8::try_from(at).unwrap_or_default();
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        let letter = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
        next += 1;
        letter
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    fn splits(name: &str, input: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(input);
        pre_tokenizer(name).unwrap().pre_tokenize(&mut cut).unwrap();
        let parts = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        parts.into_iter().map(|(_, (from, to), _)| input[from..to].to_owned()).collect()
    }

    #[test]
    fn each_family_cuts_its_own_way() {
        let sample = "Hello'Ve world 123\n\n  foo";
        assert_eq!(splits("gpt-2", sample), ["Hello", "'", "Ve", " world", " 123", "\n\n ", " foo"]);
        assert_eq!(
            splits("smollm", sample),
            ["Hello", "'", "Ve", " world", " ", "1", "2", "3", "\n\n ", " foo"]
        );
        assert_eq!(splits(LLAMA3, sample), ["Hello", "'Ve", " world", " ", "123", "\n\n", " ", " foo"]);
        assert!(matches!(pre_tokenizer("tekken"), Err(LoadError::UnsupportedTokenizer { .. })));
    }

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        assert_eq!((alphabet[0], alphabet[32], alphabet[10], alphabet[65]), ('Ā', 'Ġ', 'Ċ', 'A'));
        let distinct: BTreeSet<char> = alphabet.into_iter().collect();
        assert_eq!(distinct, ByteLevel::alphabet().into_iter().collect());
    }

    #[test]
    fn invalid_bytes_are_replaced_and_a_cut_character_is_withheld() {
        let mut stream = TextStream::default();
        let mut out = String::new();
        stream.push(b"a\xffb\xe2\x82", &mut out);
        assert_eq!(out, "a\u{fffd}b");
        stream.push(b"\xac!", &mut out);
        assert_eq!(out, "a\u{fffd}b€!");
    }

    #[test]
    fn ids_are_those_of_llama_cpp() {
        // From llama.cpp's own tokenizer on the same file.
        let vocabulary = real();
        for (text, ids) in [
            ("Hello'Ve world 123\n\n  foo", &[19556, 23, 25917, 905, 216, 33, 34, 35, 8866, 29856][..]),
            (
                "The year 2024, it's 3.14159 m²; ½ cup",
                &[
                    504, 713, 216, 34, 32, 34, 36, 28, 357, 506, 216, 35, 30, 33, 36, 33, 37, 41, 283, 19133,
                    43, 216, 16738, 7118,
                ][..],
            ),
            (
                "naïve café — 日本語 🦀🚀",
                &[
                    3546, 46494, 37366, 1841, 17097, 241, 115, 40993, 179, 120, 248, 15107, 116, 218, 10813,
                    244, 218,
                ][..],
            ),
            ("   leading and trailing   ", &[256, 2899, 284, 35079, 333][..]),
            (
                "x=1\n\ty = x**2  # comment\r\n",
                &[104, 45, 33, 198, 197, 105, 446, 1792, 828, 34, 216, 907, 5189, 2738][..],
            ),
            (
                "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
                &[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198][..],
            ),
            ("I'll don't WE'RE they've", &[57, 3060, 1326, 982, 26587, 23, 3256, 502, 3543][..]),
            ("１２３ Ⅷ ٣", &[8083, 235, 8083, 236, 8083, 237, 216, 173, 223, 117, 216, 164, 113][..]),
        ] {
            assert_eq!(vocabulary.encode(text).unwrap(), ids, "{text}");
        }
    }

    #[test]
    fn real_text_comes_back_from_its_tokens() {
        let vocabulary = real();
        let text = "naïve café — 日本語 🦀🚀\n\tx = 1 // 2024";
        let (mut stream, mut back) = (TextStream::default(), String::new());
        for id in vocabulary.encode(text).unwrap() {
            stream.push(vocabulary.piece(id).unwrap(), &mut back);
            assert!(text.starts_with(&back));
        }
        assert_eq!(back, text);
    }

    #[test]
    fn control_tokens_end_an_answer_and_are_silent() {
        let vocabulary = real();
        assert_eq!(vocabulary.len(), 49_152);
        assert!(vocabulary.is_end(2) && vocabulary.is_end(0) && !vocabulary.is_end(1));
        assert_eq!(vocabulary.piece(1), Some(&[][..]));
        assert_eq!(vocabulary.piece(49_152), None);
    }

    fn real() -> Vocabulary {
        let file = crate::test_model::model();
        let len = file.metadata().unwrap().len();
        let mut header = Header::read(std::io::BufReader::new(file), len).unwrap();
        Vocabulary::read(&mut header).unwrap()
    }

    proptest! {
        #[test]
        fn text_survives_any_cutting(text in "\\PC{0,60}", cuts in prop::collection::vec(1usize..5, 1..80)) {
            let (mut stream, mut out) = (TextStream::default(), String::new());
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                stream.push(piece, &mut out);
                prop_assert!(text.starts_with(&out));
                rest = after;
            }
            prop_assert_eq!(out, text);
        }

        #[test]
        fn any_bytes_stream_to_what_a_lossy_reading_gives(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let (mut stream, mut out) = (TextStream::default(), String::new());
            for byte in &bytes {
                stream.push(&[*byte], &mut out);
            }
            let whole = String::from_utf8_lossy(&bytes);
            prop_assert!(whole.starts_with(&out) && stream.pending.len() <= 3);
        }
    }
}
