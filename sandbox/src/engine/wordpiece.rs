//! Text to token ids for encoders, as the published `tokenizer.json` says.
//!
//! Owns: reading that JSON with bounds, and building the one family that is reproduced exactly:
//! BERT's normalizer and pre-tokenizer over WordPiece, between a first and a last control token.
//! Never: builds a tokenizer that a file describes in its own words: regular expressions, scripts of
//! normalizers and precompiled tables are refused by name, since each is work of a stranger's choice.
//! Called by [`super::encoder`].

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

use super::error::LoadError;
use crate::tensor::ModelCallError;
use crate::text;

/// The longest `tokenizer.json` in bytes.
const MAX_JSON_BYTES: usize = 16 << 20;
const MAX_TOKEN_BYTES: usize = 1_024;
const MAX_ADDED_TOKENS: usize = 256;
/// WordPiece's work on one word grows with the square of this.
const MAX_WORD_CHARS: usize = 200;

/// The tokenizer of one encoder.
pub(crate) struct WordPieces {
    tokenizer: Tokenizer,
    first: u32,
    last: u32,
    /// What fills rows up to a common length.
    pub(crate) pad: u32,
}

impl WordPieces {
    /// Builds the tokenizer in `json` for a network with `vocab` tokens.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedTokenizer`] for another family, [`LoadError::Corrupt`] when its parts
    /// do not fit, [`LoadError::TooLarge`] past a bound.
    pub(crate) fn read(json: &str, vocab: u32) -> Result<Self, LoadError> {
        if json.len() > MAX_JSON_BYTES {
            let limit = u64::try_from(MAX_JSON_BYTES).unwrap_or(u64::MAX);
            return Err(LoadError::TooLarge { what: "tokenizer.json".to_owned(), limit });
        }
        let file: File = serde_json::from_str(json)
            .map_err(|e| corrupt(format!("tokenizer.json: {}", text::clean(&e.to_string(), 200))))?;
        file.check_family()?;
        let words = file.model.words(vocab)?;
        let id_of = |token: &str| {
            words
                .get(token)
                .copied()
                .ok_or_else(|| corrupt(format!("`{}` is not in the vocabulary", text::clean(token, 40))))
        };
        let (first, last) = file.post_processor.ends()?;
        let (first, last) = (id_of(first)?, id_of(last)?);
        let pad = words.get("[PAD]").copied().unwrap_or_default();
        id_of(&file.model.unk_token)?;
        let added = file.added(&id_of)?;
        let model = WordPiece::builder()
            .vocab(words)
            .unk_token(file.model.unk_token)
            .continuing_subword_prefix(file.model.continuing_subword_prefix)
            .max_input_chars_per_word(file.model.max_input_chars_per_word)
            .build()
            .map_err(|e| corrupt(format!("word pieces: {}", text::clean(&e.to_string(), 200))))?;
        let mut tokenizer = Tokenizer::new(model);
        let n = file.normalizer;
        let normalizer =
            BertNormalizer::new(n.clean_text, n.handle_chinese_chars, n.strip_accents, n.lowercase);
        tokenizer
            .with_normalizer(Some(normalizer))
            .map_err(|e| corrupt(format!("normalizer: {}", text::clean(&e.to_string(), 200))))?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        tokenizer
            .add_special_tokens(added)
            .map_err(|e| corrupt(format!("control tokens: {}", text::clean(&e.to_string(), 200))))?;
        Ok(Self { tokenizer, first, last, pad })
    }

    /// The ids of `text` between the first and the last control token, at most `max` in all; what
    /// does not fit is cut, as the published library cuts it.
    ///
    /// # Errors
    /// [`ModelCallError::Engine`] when the tokenizer fails.
    pub(crate) fn encode(&self, text: &str, max: usize) -> Result<Vec<u32>, ModelCallError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|e| ModelCallError::engine(&format!("the text cannot be tokenized: {e}")))?;
        let room = max.saturating_sub(2);
        let mut ids = Vec::with_capacity(encoding.len().min(room) + 2);
        ids.push(self.first);
        ids.extend(encoding.get_ids().iter().take(room));
        ids.push(self.last);
        Ok(ids)
    }
}

fn corrupt(what: String) -> LoadError {
    LoadError::Corrupt { what }
}

fn unsupported(what: &str, found: &str) -> LoadError {
    LoadError::UnsupportedTokenizer { found: format!("{what} `{}`", text::clean(found, 40)) }
}

/// `tokenizer.json`, as far as it is read; nothing in it is believed yet.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Normalizer,
    pre_tokenizer: Named,
    post_processor: PostProcessor,
    model: Pieces,
}

#[derive(Deserialize)]
struct Named {
    r#type: String,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct Normalizer {
    r#type: String,
    #[serde(default)]
    clean_text: bool,
    #[serde(default)]
    handle_chinese_chars: bool,
    #[serde(default)]
    strip_accents: Option<bool>,
    #[serde(default)]
    lowercase: bool,
}

#[derive(Deserialize)]
struct PostProcessor {
    r#type: String,
    #[serde(default)]
    single: Vec<Step>,
    #[serde(default)]
    cls: Option<(String, u32)>,
    #[serde(default)]
    sep: Option<(String, u32)>,
}

/// One step of a template: a control token, or the text.
#[derive(Deserialize)]
enum Step {
    SpecialToken { id: String },
    Sequence { id: String },
}

#[derive(Deserialize)]
struct Pieces {
    r#type: String,
    #[serde(default)]
    unk_token: String,
    #[serde(default)]
    continuing_subword_prefix: String,
    #[serde(default)]
    max_input_chars_per_word: usize,
    #[serde(default)]
    vocab: HashMap<String, u32>,
}

impl File {
    fn check_family(&self) -> Result<(), LoadError> {
        for (what, found, known) in [
            ("model", &self.model.r#type, "WordPiece"),
            ("normalizer", &self.normalizer.r#type, "BertNormalizer"),
            ("pre-tokenizer", &self.pre_tokenizer.r#type, "BertPreTokenizer"),
        ] {
            if found != known {
                return Err(unsupported(what, found));
            }
        }
        if !(1..=MAX_WORD_CHARS).contains(&self.model.max_input_chars_per_word) {
            let limit = u64::try_from(MAX_WORD_CHARS).unwrap_or(u64::MAX);
            return Err(LoadError::TooLarge { what: "max_input_chars_per_word".to_owned(), limit });
        }
        Ok(())
    }

    /// The control tokens that are found whole in a text.
    fn added(&self, id_of: &impl Fn(&str) -> Result<u32, LoadError>) -> Result<Vec<AddedToken>, LoadError> {
        if self.added_tokens.len() > MAX_ADDED_TOKENS {
            let limit = u64::try_from(MAX_ADDED_TOKENS).unwrap_or(u64::MAX);
            return Err(LoadError::TooLarge { what: "list of added tokens".to_owned(), limit });
        }
        let mut added = Vec::new();
        for token in &self.added_tokens {
            if token.content.is_empty() || id_of(&token.content)? != token.id {
                let shown = text::clean(&token.content, 40);
                return Err(corrupt(format!("added token `{shown}` has another number")));
            }
            added.push(
                AddedToken::from(token.content.clone(), true)
                    .single_word(token.single_word)
                    .lstrip(token.lstrip)
                    .rstrip(token.rstrip)
                    .normalized(false),
            );
        }
        Ok(added)
    }
}

impl PostProcessor {
    /// The control tokens before and after a text.
    fn ends(&self) -> Result<(&str, &str), LoadError> {
        match (self.r#type.as_str(), self.single.as_slice(), &self.cls, &self.sep) {
            (
                "TemplateProcessing",
                [Step::SpecialToken { id: first }, Step::Sequence { id }, Step::SpecialToken { id: last }],
                _,
                _,
            ) if id == "A" => Ok((first, last)),
            ("BertProcessing", _, Some((first, _)), Some((last, _))) => Ok((first, last)),
            (found, ..) => Err(unsupported("post-processor", found)),
        }
    }
}

impl Pieces {
    /// The vocabulary, every id below `vocab` and none there twice.
    fn words(&self, vocab: u32) -> Result<Vocab, LoadError> {
        let size = usize::try_from(vocab).unwrap_or(usize::MAX);
        if self.vocab.is_empty() || self.vocab.len() > size {
            return Err(corrupt(format!("a vocabulary of {} tokens for {vocab}", self.vocab.len())));
        }
        let mut seen = vec![false; size];
        for (token, id) in &self.vocab {
            if token.len() > MAX_TOKEN_BYTES {
                return Err(corrupt(format!("a token longer than {MAX_TOKEN_BYTES} bytes")));
            }
            let slot = usize::try_from(*id).ok().and_then(|id| seen.get_mut(id));
            match slot {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(corrupt(format!("token {id} is there twice or past the vocabulary"))),
            }
        }
        Ok(self.vocab.iter().map(|(token, id)| (token.clone(), *id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of seven tokens, with `from` in its JSON replaced by `to`.
    fn changed(from: &str, to: &str) -> Result<WordPieces, LoadError> {
        let json = r####"{
            "added_tokens": [{"id": 1, "content": "[CLS]"}, {"id": 2, "content": "[SEP]"}],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "##b": 5, ",": 6}}
        }"####;
        assert!(json.contains(from), "{from}");
        WordPieces::read(&json.replace(from, to), 7)
    }

    #[test]
    fn words_are_cut_into_pieces_and_texts_at_their_limit() {
        let pieces = changed(" ", " ").unwrap();
        assert_eq!(pieces.encode("AB, zz a", 100).unwrap(), [1, 4, 5, 6, 3, 4, 2]);
        assert_eq!(pieces.encode("AB, zz a", 4).unwrap(), [1, 4, 5, 2]);
        assert_eq!(pieces.encode("", 4).unwrap(), [1, 2]);
        assert_eq!(pieces.encode("a[SEP]a", 9).unwrap(), [1, 4, 2, 4, 2]);
        assert_eq!(pieces.encode(&"a".repeat(101), 9).unwrap(), [1, 3, 2]);
    }

    #[test]
    fn other_families_are_refused_by_name() {
        for (from, to) in [
            ("\"WordPiece\"", "\"Unigram\""),
            ("\"BertNormalizer\"", "\"Precompiled\""),
            (
                r#"{"type": "BertPreTokenizer"}"#,
                r#"{"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed"}"#,
            ),
            ("\"BertProcessing\"", "\"ByteLevel\""),
        ] {
            let refused = changed(from, to).err();
            assert!(matches!(refused, Some(LoadError::UnsupportedTokenizer { .. })), "{to}: {refused:?}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for (from, to) in [
            ("\"a\": 4", "\"a\": 7"),
            ("\"a\": 4", "\"a\": 5"),
            ("\"a\": 4", "\"a\": -4"),
            ("\"a\": 4", "\"a\": 4, \"b\": 7"),
            ("\"id\": 2,", "\"id\": 3,"),
            ("\"[UNK]\": 3, ", ""),
            ("[\"[CLS]\", 1]", "[\"[NONE]\", 1]"),
            ("\"unk_token\": \"[UNK]\",", ""),
            ("\"pre_tokenizer\"", "\"other\""),
            ("\"a\": 4", "\"a\": {\"a\": 4}"),
        ] {
            let refused = changed(from, to).err();
            assert!(matches!(refused, Some(LoadError::Corrupt { .. })), "{to}: {refused:?}");
        }
        let slow = changed("\"max_input_chars_per_word\": 100", "\"max_input_chars_per_word\": 100000").err();
        assert!(matches!(slow, Some(LoadError::TooLarge { .. })), "{slow:?}");
        for bad in ["", "{}", "[1]", "null", &"[".repeat(1 << 20), &"{\"model\":".repeat(1 << 20)] {
            assert!(matches!(WordPieces::read(bad, 7).err(), Some(LoadError::Corrupt { .. })));
        }
        let long = WordPieces::read(&" ".repeat(MAX_JSON_BYTES + 1), 7).err();
        assert!(matches!(long, Some(LoadError::TooLarge { .. })));
    }
}
