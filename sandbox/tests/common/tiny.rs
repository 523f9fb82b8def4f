//! Small whole models, to be broken in one place at a time.
//!
//! Owns: the bytes of a llama of one block in GGUF and of a BERT of one layer in safetensors. Never:
//! reads a file or knows what is wrong with one. Called by the tests of hostile model files.

#![allow(dead_code, reason = "each test uses its part of this")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;

use serde_json::{Value, json};

/// An open file with these bytes, which has no name.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A number for every place of a tensor: small, and no two beside each other the same.
fn number(at: usize) -> f32 {
    f32::from(u8::try_from(at * 7 % 13).unwrap()) / 13.0 - 0.45
}

/// A llama of one block over a vocabulary of single bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct TinyLlm {
    /// Its chat template.
    pub(crate) template: Option<String>,
    /// Where every tensor but the first is said to begin.
    pub(crate) offset: Option<u64>,
    /// What every number of the block's weights is.
    pub(crate) fill: Option<f32>,
}

const WIDTH: u64 = 32;
const TOKENS: u64 = 258;

impl TinyLlm {
    /// How many tensors it has.
    pub(crate) const TENSORS: u64 = 11;

    /// How many metadata entries it has.
    pub(crate) fn entries(&self) -> u64 {
        11 + u64::from(self.template.is_some())
    }

    /// Its file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(Self::TENSORS.to_le_bytes());
        out.extend(self.entries().to_le_bytes());
        self.write_metadata(&mut out);
        let (mut data, mut at) = (Vec::new(), 0u64);
        for (n, (name, dims)) in Self::tensors().into_iter().enumerate() {
            text(&mut out, &name);
            out.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
            for dim in &dims {
                out.extend(dim.to_le_bytes());
            }
            out.extend(0u32.to_le_bytes());
            out.extend(self.offset.filter(|_| n > 0).unwrap_or(at).to_le_bytes());
            let count = usize::try_from(dims.iter().product::<u64>()).unwrap();
            let fill = self.fill.filter(|_| name.starts_with("blk."));
            for place in 0..count {
                data.extend(fill.unwrap_or_else(|| number(place)).to_le_bytes());
            }
            at += u64::try_from(count).unwrap() * 4;
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    fn write_metadata(&self, out: &mut Vec<u8>) {
        for (key, value) in [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")] {
            text(out, key);
            out.extend(8u32.to_le_bytes());
            text(out, value);
        }
        if let Some(template) = &self.template {
            text(out, "tokenizer.chat_template");
            out.extend(8u32.to_le_bytes());
            text(out, template);
        }
        for (key, value) in [
            ("llama.context_length", 64),
            ("llama.block_count", 1),
            ("llama.embedding_length", 32u32),
            ("llama.feed_forward_length", 32),
            ("llama.attention.head_count", 2),
            ("tokenizer.ggml.eos_token_id", 257),
        ] {
            text(out, key);
            out.extend(4u32.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        // Printable stand-ins for the bytes, as far as the tests use them, and two control tokens.
        let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
        tokens.extend((tokens.len()..256).map(|n| format!("~{n}")));
        tokens.extend(["<s>".to_owned(), "</s>".to_owned()]);
        let kinds = (0..TOKENS).map(|n| if n < 256 { 1i32 } else { 3 });
        list(out, "tokenizer.ggml.tokens", 8, TOKENS, |out| tokens.iter().for_each(|t| text(out, t)));
        list(out, "tokenizer.ggml.token_type", 5, TOKENS, |out| {
            kinds.for_each(|kind| out.extend(kind.to_le_bytes()));
        });
        list(out, "tokenizer.ggml.merges", 8, 0, |_| {});
    }

    fn tensors() -> Vec<(String, Vec<u64>)> {
        let mut all = vec![
            ("token_embd.weight".to_owned(), vec![WIDTH, TOKENS]),
            ("output_norm.weight".to_owned(), vec![WIDTH]),
        ];
        for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            all.push((format!("blk.0.{name}.weight"), vec![WIDTH, WIDTH]));
        }
        for name in ["attn_norm", "ffn_norm"] {
            all.push((format!("blk.0.{name}.weight"), vec![WIDTH]));
        }
        all
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

fn list(out: &mut Vec<u8>, key: &str, kind: u32, len: u64, write: impl FnOnce(&mut Vec<u8>)) {
    text(out, key);
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(len.to_le_bytes());
    write(out);
}

/// A BERT of one layer over seven tokens.
#[derive(Debug, Clone)]
pub(crate) struct TinyEncoder {
    /// `config.json`.
    pub(crate) config: String,
    /// `tokenizer.json`; left out when empty.
    pub(crate) tokenizer: String,
    /// `sentence_bert_config.json`.
    pub(crate) sentence: Option<String>,
    /// How far every tensor but the first is said to begin from its place, in bytes.
    pub(crate) shift: i64,
    /// What every number of the layer's weights is.
    pub(crate) fill: Option<f32>,
}

impl Default for TinyEncoder {
    fn default() -> Self {
        let config = json!({
            "model_type": "bert", "vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "hidden_act": "gelu",
            "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        });
        let tokenizer = json!({
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "added_tokens": [{"id": 2, "content": "[SEP]"}],
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "##b": 5, ",": 6},
            },
        });
        Self {
            config: config.to_string(),
            tokenizer: tokenizer.to_string(),
            sentence: None,
            shift: 0,
            fill: None,
        }
    }
}

impl TinyEncoder {
    /// Its file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (header, data) = self.parts();
        join(&header, &data)
    }

    /// Its file with `from` in the tensors' part of the header replaced by `to`.
    pub(crate) fn header_with(&self, from: &str, to: &str) -> Vec<u8> {
        let (header, data) = self.parts();
        assert!(header.contains(from), "{from}");
        join(&header.replace(from, to), &data)
    }

    /// Its file with `from` in its configuration replaced by `to`.
    pub(crate) fn config_with(&self, from: &str, to: &str) -> Vec<u8> {
        assert!(self.config.contains(from), "{from} in {}", self.config);
        Self { config: self.config.replace(from, to), ..self.clone() }.bytes()
    }

    fn parts(&self) -> (String, Vec<u8>) {
        let mut notes = BTreeMap::from([("config.json", self.config.as_str())]);
        if !self.tokenizer.is_empty() {
            notes.insert("tokenizer.json", &self.tokenizer);
        }
        if let Some(sentence) = &self.sentence {
            notes.insert("sentence_bert_config.json", sentence);
        }
        let mut header = format!("{{\"__metadata__\":{}", json!(notes));
        let mut data = Vec::new();
        for (n, (name, dims)) in Self::tensors().into_iter().enumerate() {
            let count = dims.iter().product::<usize>();
            let shift = if n == 0 { 0 } else { self.shift };
            let begin = i64::try_from(data.len()).unwrap() + shift;
            let end = begin + i64::try_from(count * 4).unwrap();
            let shape = Value::from(dims);
            header +=
                &format!(r#","{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
            let fill = self.fill.filter(|_| name.starts_with("encoder"));
            for place in 0..count {
                data.extend(fill.unwrap_or_else(|| number(place)).to_le_bytes());
            }
        }
        (header + "}", data)
    }

    fn tensors() -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for (name, rows) in [("word", 7), ("position", 16), ("token_type", 2)] {
            all.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, 8]));
        }
        for norm in ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"] {
            all.push((format!("{norm}.LayerNorm.weight"), vec![8]));
            all.push((format!("{norm}.LayerNorm.bias"), vec![8]));
        }
        for (name, out, into) in [
            ("attention.self.query", 8, 8),
            ("attention.self.key", 8, 8),
            ("attention.self.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 16, 8),
            ("output.dense", 8, 16),
        ] {
            all.push((format!("encoder.layer.0.{name}.weight"), vec![out, into]));
            all.push((format!("encoder.layer.0.{name}.bias"), vec![out]));
        }
        all
    }
}

fn join(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}
