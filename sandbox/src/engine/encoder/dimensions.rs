//! The dimensions of a BERT network, out of a configuration that a stranger may have written.
//!
//! Owns: the bound on each number, and the proof that every tensor of the file has the shape that they
//! ask for. Never: reads a tensor, or hands on a number that was not checked here. Called by
//! [`super::Encoder::load`].

use std::collections::HashMap;

use candle_transformers::models::bert::{Config, HiddenAct, PositionEmbeddingType};
use serde::Deserialize;

use super::corrupt;
use crate::engine::error::LoadError;
use crate::engine::safetensors::{Header, Stored};
use crate::text;

const MAX_VOCAB: u64 = 1 << 20;
const MAX_WIDTH: u64 = 1 << 14;
const MAX_LAYERS: u64 = 128;
const MAX_HEADS: u64 = 256;
const MAX_POSITIONS: u64 = 1 << 13;
const MAX_TYPES: u64 = 64;

/// `config.json`, as far as it is read; nothing in it is believed yet.
#[derive(Deserialize)]
pub(super) struct RawConfig {
    model_type: String,
    vocab_size: u64,
    hidden_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    intermediate_size: u64,
    hidden_act: String,
    max_position_embeddings: u64,
    type_vocab_size: u64,
    layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default, rename = "_name_or_path")]
    pub(super) name: Option<String>,
}

/// The dimensions of a BERT network; each is checked, none is zero.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dimensions {
    pub(super) vocab: u32,
    width: u64,
    layers: u64,
    pub(super) heads: u64,
    inner: u64,
    pub(super) positions: u32,
    pub(super) types: u32,
    act: HiddenAct,
    norm_epsilon: f64,
}

impl Dimensions {
    pub(super) fn read(raw: &RawConfig) -> Result<Self, LoadError> {
        let unsupported = |found: &str| LoadError::UnsupportedArchitecture { found: text::clean(found, 80) };
        if raw.model_type != "bert" {
            return Err(unsupported(&raw.model_type));
        }
        if raw.is_decoder || raw.position_embedding_type.as_deref().is_some_and(|t| t != "absolute") {
            return Err(unsupported("bert as a decoder, or with relative positions"));
        }
        let act = match raw.hidden_act.as_str() {
            "gelu" => HiddenAct::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => HiddenAct::GeluApproximate,
            "relu" => HiddenAct::Relu,
            other => return Err(unsupported(&format!("bert with the activation {other}"))),
        };
        let dimensions = Self {
            vocab: small("vocab_size", raw.vocab_size, MAX_VOCAB)?,
            width: bounded("hidden_size", raw.hidden_size, MAX_WIDTH)?,
            layers: bounded("num_hidden_layers", raw.num_hidden_layers, MAX_LAYERS)?,
            heads: bounded("num_attention_heads", raw.num_attention_heads, MAX_HEADS)?,
            inner: bounded("intermediate_size", raw.intermediate_size, 4 * MAX_WIDTH)?,
            positions: small("max_position_embeddings", raw.max_position_embeddings, MAX_POSITIONS)?,
            types: small("type_vocab_size", raw.type_vocab_size, MAX_TYPES)?,
            act,
            norm_epsilon: raw.layer_norm_eps,
        };
        if !dimensions.width.is_multiple_of(dimensions.heads) {
            let (heads, width) = (dimensions.heads, dimensions.width);
            return Err(corrupt(format!("{heads} heads over a width of {width}")));
        }
        if !(dimensions.norm_epsilon > 0.0 && dimensions.norm_epsilon < 1.0) {
            return Err(corrupt("`layer_norm_eps` is no small positive number".to_owned()));
        }
        Ok(dimensions)
    }

    pub(super) fn width_usize(&self) -> usize {
        usize::try_from(self.width).unwrap_or(usize::MAX)
    }

    pub(super) fn width_u32(&self) -> u32 {
        u32::try_from(self.width).unwrap_or(u32::MAX)
    }

    /// Floating-point operations for one token, the attention matrices aside.
    pub(super) fn operations(&self) -> u64 {
        2 * self.layers * (4 * self.width * self.width + 2 * self.width * self.inner)
    }

    /// Candle's form, from checked values only.
    pub(super) fn config(&self) -> Config {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Config {
            vocab_size: number(self.vocab.into()),
            hidden_size: number(self.width),
            num_hidden_layers: number(self.layers),
            num_attention_heads: number(self.heads),
            intermediate_size: number(self.inner),
            hidden_act: self.act,
            hidden_dropout_prob: 0.0,
            max_position_embeddings: number(self.positions.into()),
            type_vocab_size: number(self.types.into()),
            initializer_range: 0.0,
            layer_norm_eps: self.norm_epsilon,
            pad_token_id: 0,
            position_embedding_type: PositionEmbeddingType::Absolute,
            use_cache: false,
            classifier_dropout: None,
            model_type: None,
        }
    }

    /// Every tensor of the network is there with its shape, and none is there that it does not have.
    pub(super) fn check_tensors(&self, header: &Header) -> Result<(), LoadError> {
        let mut expected = self.tensors();
        for (name, place) in &header.tensors {
            let shown = text::clean(name, 80);
            if is_unused(name) {
                continue;
            }
            match expected.remove(name) {
                None => {
                    let found = format!("bert with a tensor `{shown}`");
                    return Err(LoadError::UnsupportedArchitecture { found });
                }
                Some(dims) if dims == place.dims && place.stored == Stored::F32 => {}
                Some(dims) => {
                    let found = &place.dims;
                    return Err(corrupt(format!("tensor `{shown}` is {found:?} and not {dims:?} of F32")));
                }
            }
        }
        match expected.into_keys().min() {
            Some(name) => Err(LoadError::Truncated { what: format!("tensor `{name}`") }),
            None => Ok(()),
        }
    }

    pub(super) fn tensors(&self) -> HashMap<String, Vec<u64>> {
        let (width, inner) = (self.width, self.inner);
        let mut all = HashMap::new();
        let mut norm = |name: &str| {
            all.insert(format!("{name}.weight"), vec![width]);
            all.insert(format!("{name}.bias"), vec![width]);
        };
        norm("embeddings.LayerNorm");
        for layer in 0..self.layers {
            norm(&format!("encoder.layer.{layer}.attention.output.LayerNorm"));
            norm(&format!("encoder.layer.{layer}.output.LayerNorm"));
        }
        for (name, rows) in [
            ("word", u64::from(self.vocab)),
            ("position", self.positions.into()),
            ("token_type", self.types.into()),
        ] {
            all.insert(format!("embeddings.{name}_embeddings.weight"), vec![rows, width]);
        }
        for layer in 0..self.layers {
            for (name, out, into) in [
                ("attention.self.query", width, width),
                ("attention.self.key", width, width),
                ("attention.self.value", width, width),
                ("attention.output.dense", width, width),
                ("intermediate.dense", inner, width),
                ("output.dense", width, inner),
            ] {
                all.insert(format!("encoder.layer.{layer}.{name}.weight"), vec![out, into]);
                all.insert(format!("encoder.layer.{layer}.{name}.bias"), vec![out]);
            }
        }
        all
    }
}

/// Tensors that published files hold and the hidden states do not need.
pub(super) fn is_unused(name: &str) -> bool {
    name == "embeddings.position_ids" || name.starts_with("pooler.dense.")
}

/// A count from the configuration, 1 to `limit`.
fn bounded(what: &str, value: u64, limit: u64) -> Result<u64, LoadError> {
    match value {
        0 => Err(corrupt(format!("`{what}` is zero"))),
        _ if value > limit => Err(LoadError::TooLarge { what: what.to_owned(), limit }),
        _ => Ok(value),
    }
}

/// As [`bounded`], for limits that a u32 holds.
fn small(what: &str, value: u64, limit: u64) -> Result<u32, LoadError> {
    let too_large = |_| LoadError::TooLarge { what: what.to_owned(), limit };
    u32::try_from(bounded(what, value, limit)?).map_err(too_large)
}
