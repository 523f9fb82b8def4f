//! Sentence vectors: a BERT network from one packed safetensors file.
//!
//! Owns: the loading, and the two things that an encoder does: [`Encoder::embed`] and
//! [`Encoder::compute`].
//! Never: hands candle a number of the file or an id of a request that was not checked here (on a
//! GPU an id past a table poisons the device), and never computes for long without asking its
//! controller. Called by [`super::Engine::load`] and [`super::calls`].
//!
//! The file's notes are the published `config.json` and `tokenizer.json`, and where it has one
//! `sentence_bert_config.json`, whose `max_seq_length` cuts long texts. Vectors are the mean over a
//! text's tokens, scaled to length one: what sentence-transformers computes for all-MiniLM-L6-v2.

mod dimensions;

use std::collections::HashMap;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use serde::Deserialize;

use super::calls::obey;
use super::device::{self, DeviceChoice, EngineDevice};
use super::error::LoadError;
use super::generate::Control;
use super::model::ModelFile;
use super::safetensors::{Header, Place};
use super::wordpiece::WordPieces;
use super::{MAX_NAME_BYTES, ModelInfo, ModelKind};
use crate::tensor::{self, MAX_TENSOR_BYTES, ModelCallError, ModelReply, NamedTensor};
use crate::text;
use dimensions::{Dimensions, RawConfig, is_unused};

/// Where texts are cut when the file does not say.
const DEFAULT_MAX_TOKENS: u32 = 256;
/// Floating-point operations of one forward pass: about a tenth of a second on two slow cores, which
/// is how long a cancel may wait.
const PASS_OPERATIONS: u64 = 3_000_000_000;
/// How much more a GPU does in that time.
const GPU_FACTOR: u64 = 100;
/// Numbers of one pass's attention matrices: what a pass takes in memory besides the weights.
const MAX_ATTENTION: u64 = 1 << 26;
/// Bytes read at a time while loading.
const CHUNK: u64 = 1 << 20;

/// One loaded encoder.
pub(crate) struct Encoder {
    network: BertModel,
    device: Device,
    pieces: WordPieces,
    dimensions: Dimensions,
    /// Longest text in tokens, control tokens included.
    max_tokens: usize,
    on_gpu: bool,
}

impl Encoder {
    /// Loads the file onto the device that `choice` asks for.
    ///
    /// # Errors
    /// [`LoadError`]; memory use is bounded by the length of the file times a small constant.
    pub(crate) fn load(
        mut file: ModelFile,
        choice: DeviceChoice,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Self, ModelInfo), LoadError> {
        let len = file.len();
        let header = Header::read(BufReader::with_capacity(1 << 16, &mut file), len)?;
        let config: RawConfig = read_note(&header, "config.json")?;
        let dimensions = Dimensions::read(&config)?;
        dimensions.check_tensors(&header)?;
        let pieces = WordPieces::read(header.note("tokenizer.json")?, dimensions.vocab)?;
        let max_tokens = max_tokens(&header, dimensions.positions)?;
        let (device, engine_device) = device::open(choice)?;
        let tensors = read_tensors(&dimensions, &header, &mut file, &device, on_progress)?;
        let network =
            BertModel::load(VarBuilder::from_tensors(tensors, DType::F32, &device), &dimensions.config())
                .map_err(|e| engine_error(&e))?;
        let info = ModelInfo {
            kind: ModelKind::Encoder,
            architecture: "bert".to_owned(),
            name: text::clean(config.name.as_deref().unwrap_or("unnamed"), MAX_NAME_BYTES),
            context_tokens: max_tokens,
            vocab: dimensions.vocab,
            parameters: header.tensors.values().map(|t| t.dims.iter().product::<u64>()).sum(),
            device: engine_device,
        };
        let encoder = Self {
            network,
            device,
            pieces,
            max_tokens: usize::try_from(max_tokens).unwrap_or(usize::MAX),
            on_gpu: matches!(engine_device, EngineDevice::Cuda { .. }),
            dimensions,
        };
        encoder.warm_up()?;
        Ok((encoder, info))
    }

    /// Runs every kernel once: a network that cannot run fails here and not in a renter's job.
    fn warm_up(&self) -> Result<(), LoadError> {
        let row = Row { ids: vec![0; 2], types: vec![0; 2], mask: vec![1; 2] };
        let hidden = self.pass(&[&row], 2).map_err(|e| LoadError::Engine { what: e.to_string() })?;
        if hidden.len() != 2 * self.dimensions.width_usize() {
            return Err(LoadError::Engine { what: format!("it computes {} numbers", hidden.len()) });
        }
        Ok(())
    }

    /// A vector of length one for each of `texts`, which keep their bounds.
    ///
    /// # Errors
    /// [`ModelCallError::Cancelled`], or [`ModelCallError::Engine`].
    pub(crate) fn embed(
        &self,
        texts: &[String],
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            obey(control)?;
            let ids = self.pieces.encode(text, self.max_tokens)?;
            rows.push(Row { types: vec![0; ids.len()], mask: vec![1; ids.len()], ids });
        }
        let width = self.dimensions.width_usize();
        let mut data = vec![0.0; rows.len() * width];
        // Texts of about one length share a pass: less is computed for nothing.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&at| rows[at].ids.len());
        for batch in self.batches(&order, |at| rows[at].ids.len()) {
            obey(control)?;
            let longest = batch.iter().map(|&at| rows[at].ids.len()).max().unwrap_or_default();
            let padded: Vec<&Row> = batch.iter().map(|&at| &rows[at]).collect();
            let hidden = self.pass(&padded, longest)?;
            for (&at, states) in batch.iter().zip(hidden.chunks(longest * width)) {
                pool(states, rows[at].ids.len(), &mut data[at * width..(at + 1) * width])?;
            }
            on_life();
        }
        let rows = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        Ok(ModelReply::Vectors { dim: self.dimensions.width_u32(), rows, data })
    }

    /// The network's last hidden states for `inputs`, which keep their own bounds: `input_ids`, and if
    /// they are given `attention_mask` (ones otherwise) and `token_type_ids` (zeros otherwise), each
    /// I32 or I64 of one shape (rows, tokens). Answers `last_hidden_state`, F32 (rows, tokens, width).
    ///
    /// # Errors
    /// [`ModelCallError::InvalidInput`], [`ModelCallError::Cancelled`] or [`ModelCallError::Engine`].
    pub(crate) fn compute(
        &self,
        inputs: &[NamedTensor],
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        let (rows, dims) = self.rows(inputs)?;
        let [_, tokens] = dims;
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        let mut data = Vec::with_capacity(rows.len() * tokens * self.dimensions.width_usize());
        let order: Vec<usize> = (0..rows.len()).collect();
        for batch in self.batches(&order, |_| tokens) {
            obey(control)?;
            let batch: Vec<&Row> = batch.iter().map(|&at| &rows[at]).collect();
            data.extend(self.pass(&batch, tokens)?);
            on_life();
        }
        let dims = vec![dims[0], dims[1], self.dimensions.width_u32()];
        let tensor = tensor::Tensor::from_f32s(dims, &data)?;
        Ok(ModelReply::Tensors(vec![NamedTensor { name: "last_hidden_state".to_owned(), tensor }]))
    }

    /// The rows of a request, each number checked, and their common shape.
    fn rows(&self, inputs: &[NamedTensor]) -> Result<(Vec<Row>, [u32; 2]), ModelCallError> {
        let known = ["input_ids", "attention_mask", "token_type_ids"];
        if let Some(other) = inputs.iter().find(|input| !known.contains(&input.name.as_str())) {
            return Err(ModelCallError::invalid(&format!("this model has no input `{}`", other.name)));
        }
        let named = |name: &str| inputs.iter().find(|input| input.name == name);
        let Some(ids) = named("input_ids") else {
            return Err(ModelCallError::invalid("`input_ids` is missing"));
        };
        let &[count, tokens] = ids.tensor.dims.as_slice() else {
            return Err(ModelCallError::invalid("`input_ids` must have the shape (rows, tokens)"));
        };
        let positions = self.dimensions.positions;
        if count == 0 || !(1..=positions).contains(&tokens) {
            let what = format!("`input_ids` must have at least one row, of 1 to {positions} tokens");
            return Err(ModelCallError::invalid(&what));
        }
        let out = u64::from(count) * u64::from(tokens) * u64::from(self.dimensions.width_u32()) * 4;
        if out > u64::try_from(MAX_TENSOR_BYTES).unwrap_or(u64::MAX) {
            return Err(ModelCallError::invalid("`input_ids` is so large that the answer would not fit"));
        }
        let numbers = |name: &str, below: u32, otherwise: u32| match named(name) {
            Some(input) if input.tensor.dims == [count, tokens] => below_all(input, below),
            Some(_) => Err(ModelCallError::invalid(&format!("`{name}` must have the shape of `input_ids`"))),
            None => Ok(vec![otherwise; ids.tensor.data.len() / ids.tensor.ty.size()]),
        };
        let all = [
            numbers("input_ids", self.dimensions.vocab, 0)?,
            numbers("token_type_ids", self.dimensions.types, 0)?,
            numbers("attention_mask", 2, 1)?,
        ];
        let width = usize::try_from(tokens).unwrap_or(usize::MAX);
        let [mut ids, mut types, mut mask] =
            all.map(|numbers| numbers.chunks(width).map(<[u32]>::to_vec).collect::<Vec<_>>().into_iter());
        let rows =
            std::iter::from_fn(|| Some(Row { ids: ids.next()?, types: types.next()?, mask: mask.next()? }));
        Ok((rows.collect(), [count, tokens]))
    }

    /// Cuts `order` into runs that one pass may take, by the length of each row in tokens.
    fn batches<'a>(&self, mut order: &'a [usize], tokens_of: impl Fn(usize) -> usize) -> Vec<&'a [usize]> {
        let mut batches = Vec::new();
        while !order.is_empty() {
            let mut longest = 0;
            let fits = order.iter().enumerate().take_while(|&(count, &at)| {
                longest = longest.max(tokens_of(at));
                count == 0 || self.may_pass(count + 1, longest)
            });
            let (batch, rest) = order.split_at(fits.count());
            batches.push(batch);
            order = rest;
        }
        batches
    }

    /// Whether so many rows of so many tokens are one pass's work.
    fn may_pass(&self, rows: usize, tokens: usize) -> bool {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let total = count(rows).saturating_mul(count(tokens));
        let operations = total.saturating_mul(self.dimensions.operations());
        let attention = total.saturating_mul(count(tokens)).saturating_mul(self.dimensions.heads);
        let factor = if self.on_gpu { GPU_FACTOR } else { 1 };
        operations <= PASS_OPERATIONS * factor && attention <= MAX_ATTENTION
    }

    /// One forward pass over rows filled up to `tokens`; the hidden states, row after row.
    fn pass(&self, rows: &[&Row], tokens: usize) -> Result<Vec<f32>, ModelCallError> {
        let filled = |of: fn(&Row) -> &Vec<u32>, with: u32| {
            let mut flat = Vec::with_capacity(rows.len() * tokens);
            for row in rows {
                let numbers = of(row);
                flat.extend_from_slice(numbers);
                flat.resize(flat.len() + tokens.saturating_sub(numbers.len()), with);
            }
            Tensor::from_vec(flat, (rows.len(), tokens), &self.device)
        };
        let hidden = filled(|row| &row.ids, self.pieces.pad)
            .and_then(|ids| {
                let types = filled(|row| &row.types, 0)?;
                let mask = filled(|row| &row.mask, 0)?;
                self.network.forward(&ids, &types, Some(&mask))
            })
            .and_then(|hidden| hidden.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| ModelCallError::engine(&e.to_string()))?;
        if hidden.iter().any(|number| !number.is_finite()) {
            return Err(ModelCallError::engine("the model computed no usable number"));
        }
        Ok(hidden)
    }
}

/// One row of a pass: ids, their types, and which of them count.
struct Row {
    ids: Vec<u32>,
    types: Vec<u32>,
    mask: Vec<u32>,
}

/// The mean of the first `tokens` states, scaled to length one, into `vector`.
fn pool(states: &[f32], tokens: usize, vector: &mut [f32]) -> Result<(), ModelCallError> {
    for state in states.chunks(vector.len()).take(tokens) {
        for (sum, number) in vector.iter_mut().zip(state) {
            *sum += number;
        }
    }
    // The mean's divisor is gone again once the length is one.
    let length = vector.iter().map(|n| f64::from(*n) * f64::from(*n)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(ModelCallError::engine("the model computed a vector without a direction"));
    }
    for number in vector {
        #[expect(clippy::cast_possible_truncation, reason = "a number of a unit vector rounds to an f32")]
        let scaled = (f64::from(*number) / length) as f32;
        *number = scaled;
    }
    Ok(())
}

/// The numbers of an integer tensor, each below `below`.
fn below_all(input: &NamedTensor, below: u32) -> Result<Vec<u32>, ModelCallError> {
    let checked = |number: i64| u32::try_from(number).ok().filter(|number| *number < below);
    let numbers = input.tensor.to_i64s()?;
    numbers.iter().map(|number| checked(*number)).collect::<Option<_>>().ok_or_else(|| {
        ModelCallError::invalid(&format!("`{}` must hold numbers from 0 to {}", input.name, below - 1))
    })
}

fn engine_error(error: &candle_core::Error) -> LoadError {
    LoadError::Engine { what: text::clean(&error.to_string(), 200) }
}

fn corrupt(what: String) -> LoadError {
    LoadError::Corrupt { what }
}

fn read_note<'a, T: Deserialize<'a>>(header: &'a Header, name: &str) -> Result<T, LoadError> {
    serde_json::from_str(header.note(name)?)
        .map_err(|e| corrupt(format!("{name}: {}", text::clean(&e.to_string(), 200))))
}

/// Where texts are cut, in tokens.
fn max_tokens(header: &Header, positions: u32) -> Result<u32, LoadError> {
    #[derive(Deserialize)]
    struct SentenceConfig {
        max_seq_length: u32,
    }
    let name = "sentence_bert_config.json";
    let tokens = match header.optional_note(name) {
        Some(_) => read_note::<SentenceConfig>(header, name)?.max_seq_length,
        None => DEFAULT_MAX_TOKENS.min(positions),
    };
    // Two are the control tokens.
    if !(3..=positions).contains(&tokens) {
        return Err(corrupt(format!("texts of {tokens} tokens in {positions} positions")));
    }
    Ok(tokens)
}

/// Reads the network's tensors onto `device`, telling `on_progress` the bytes done and in all.
fn read_tensors(
    dimensions: &Dimensions,
    header: &Header,
    file: &mut ModelFile,
    device: &Device,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<HashMap<String, Tensor>, LoadError> {
    let needed: Vec<_> = header.tensors.iter().filter(|(name, _)| !is_unused(name)).collect();
    let total = needed.iter().map(|(_, place)| place.bytes).sum();
    let mut done = 0;
    let mut tensors = HashMap::with_capacity(dimensions.tensors().len());
    for (name, place) in needed {
        let numbers = read_floats(file, name, place, &mut |bytes| {
            done += bytes;
            on_progress(done, total);
        })?;
        let dims: Vec<usize> = place.dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
        let tensor = Tensor::from_vec(numbers, dims, device).map_err(|e| engine_error(&e))?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

/// The floats of one tensor; `on_bytes` hears of each part read.
fn read_floats(
    file: &mut ModelFile,
    name: &str,
    place: &Place,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<Vec<f32>, LoadError> {
    let failed = |e: std::io::Error| LoadError::Io { what: e.to_string() };
    file.seek(SeekFrom::Start(place.at)).map_err(failed)?;
    let mut numbers = Vec::with_capacity(usize::try_from(place.bytes / 4).unwrap_or(usize::MAX));
    let mut left = place.bytes;
    let mut chunk = Vec::new();
    while left > 0 {
        let part = left.min(CHUNK);
        chunk.resize(usize::try_from(part).unwrap_or(usize::MAX), 0);
        file.read_exact(&mut chunk).map_err(failed)?;
        numbers.extend(chunk.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        left -= part;
        on_bytes(part);
    }
    if numbers.iter().any(|number| !number.is_finite()) {
        let shown = text::clean(name, 80);
        return Err(corrupt(format!("tensor `{shown}` holds numbers that are none")));
    }
    Ok(numbers)
}
