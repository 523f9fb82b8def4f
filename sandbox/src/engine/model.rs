//! From a checked header to weights that candle can run.
//!
//! Owns: the llama network's dimensions, the proof that every tensor has the shape that they ask
//! for, and the loading. Never: hands candle a number out of the file that was not checked here
//! (candle would allocate by it, divide by it, or abort), and never runs a network that candle would
//! compute wrongly without saying so (scaled RoPE, biases, mixtures of experts): those are refused.
//! Called by [`super::Engine::load`].

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use candle_core::{Device, Shape};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};

use super::ModelKind;
use super::error::LoadError;
use super::gguf::{Header, Scalar, TensorPlace};
use crate::text;

const ARCHITECTURE: &str = "llama";
const MAX_BLOCKS: u64 = 512;
const MAX_WIDTH: u64 = 1 << 17;
const MAX_HEADS: u64 = 1_024;

/// The dimensions of a llama network; each is checked, none is zero.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dimensions {
    /// Tokens that fit, prompt and answer together.
    pub(crate) context: u32,
    vocab: u64,
    blocks: u64,
    embedding: u64,
    feed_forward: u64,
    heads: u64,
    kv_heads: u64,
    norm_epsilon: f32,
    rope_base: f32,
}

impl Dimensions {
    /// Reads them for a vocabulary of `vocab` tokens and checks every tensor against them.
    ///
    /// # Errors
    /// [`LoadError`] when the network is another, or the numbers contradict each other.
    pub(crate) fn read(header: &Header, vocab: usize) -> Result<Self, LoadError> {
        let architecture = header.text("general.architecture").unwrap_or("none");
        if architecture != ARCHITECTURE {
            return Err(unsupported(text::clean(architecture, 80)));
        }
        let heads = bounded(header, "llama.attention.head_count", MAX_HEADS)?;
        let kv_heads = match header.scalar("llama.attention.head_count_kv") {
            None => heads,
            Some(_) => bounded(header, "llama.attention.head_count_kv", heads)?,
        };
        let context = bounded(header, "llama.context_length", u64::MAX)?;
        let context = context.min(u64::try_from(MAX_SEQ_LEN).unwrap_or(u64::MAX));
        let dimensions = Self {
            context: u32::try_from(context).unwrap_or(u32::MAX),
            vocab: u64::try_from(vocab).unwrap_or(u64::MAX),
            blocks: bounded(header, "llama.block_count", MAX_BLOCKS)?,
            embedding: bounded(header, "llama.embedding_length", MAX_WIDTH)?,
            feed_forward: bounded(header, "llama.feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            norm_epsilon: real(header, "llama.attention.layer_norm_rms_epsilon", 1e-5)?,
            rope_base: real(header, "llama.rope.freq_base", 10_000.0)?,
        };
        dimensions.check_divisions(header)?;
        dimensions.check_exactness(header)?;
        dimensions.check_tensors(header)?;
        Ok(dimensions)
    }

    /// How many numbers the model has.
    pub(crate) fn parameters(header: &Header) -> u64 {
        header.tensors.values().map(|t| t.dims.iter().product::<u64>()).sum()
    }

    /// What one token takes in the attention cache, in bytes: a key and a value of floats a block.
    pub(crate) fn token_bytes(&self) -> u64 {
        2 * 4 * self.blocks * self.kv_heads * self.head_dim()
    }

    fn head_dim(&self) -> u64 {
        self.embedding / self.heads
    }

    fn check_divisions(&self, header: &Header) -> Result<(), LoadError> {
        let fits = self.embedding.is_multiple_of(self.heads)
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_dim().is_multiple_of(2);
        if !fits {
            return Err(corrupt(format!(
                "{} heads ({} for keys) over a width of {}",
                self.heads, self.kv_heads, self.embedding
            )));
        }
        for key in
            ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"]
        {
            if header.scalar(key).is_some() && header.unsigned(key) != Some(self.head_dim()) {
                return Err(unsupported(format!("llama whose {key} is not {}", self.head_dim())));
            }
        }
        Ok(())
    }

    /// Refuses what candle would leave out of the computation.
    fn check_exactness(&self, header: &Header) -> Result<(), LoadError> {
        if header.unsigned("llama.expert_count").is_some_and(|n| n > 0) {
            return Err(unsupported("llama with a mixture of experts".to_owned()));
        }
        if let Some(scaling) = header.text("llama.rope.scaling.type")
            && scaling != "none"
        {
            return Err(unsupported(format!("llama with {} RoPE scaling", text::clean(scaling, 40))));
        }
        Ok(())
    }

    /// Every tensor of the network is there with its shape, and none is there that it does not have.
    fn check_tensors(&self, header: &Header) -> Result<(), LoadError> {
        let mut expected = self.tensors();
        for (name, place) in &header.tensors {
            let shown = text::clean(name, 80);
            match expected.remove(name) {
                None => return Err(unsupported(format!("llama with a tensor `{shown}`"))),
                Some(dims) if dims == place.dims => {}
                Some(dims) => {
                    let found = &place.dims;
                    return Err(corrupt(format!("tensor `{shown}` is {found:?} and not {dims:?}")));
                }
            }
        }
        // The output matrix may be the embedding's.
        expected.remove("output.weight");
        match expected.into_keys().min() {
            Some(name) => Err(LoadError::Truncated { what: format!("tensor `{name}`") }),
            None => Ok(()),
        }
    }

    fn tensors(&self) -> HashMap<String, Vec<u64>> {
        let kv_width = self.kv_heads * self.head_dim();
        let mut all = HashMap::from([
            ("token_embd.weight".to_owned(), vec![self.vocab, self.embedding]),
            ("output_norm.weight".to_owned(), vec![self.embedding]),
            ("output.weight".to_owned(), vec![self.vocab, self.embedding]),
        ]);
        for block in 0..self.blocks {
            for (name, dims) in [
                ("attn_q", vec![self.embedding, self.embedding]),
                ("attn_k", vec![kv_width, self.embedding]),
                ("attn_v", vec![kv_width, self.embedding]),
                ("attn_output", vec![self.embedding, self.embedding]),
                ("attn_norm", vec![self.embedding]),
                ("ffn_gate", vec![self.feed_forward, self.embedding]),
                ("ffn_up", vec![self.feed_forward, self.embedding]),
                ("ffn_down", vec![self.embedding, self.feed_forward]),
                ("ffn_norm", vec![self.embedding]),
            ] {
                all.insert(format!("blk.{block}.{name}.weight"), dims);
            }
        }
        all
    }

    /// The keys that candle's loader asks for, from checked values only.
    fn metadata(&self) -> HashMap<String, Value> {
        let number = |value: u64| Value::U32(u32::try_from(value).unwrap_or(u32::MAX));
        HashMap::from([
            ("general.architecture".to_owned(), Value::String(ARCHITECTURE.to_owned())),
            ("llama.attention.head_count".to_owned(), number(self.heads)),
            ("llama.attention.head_count_kv".to_owned(), number(self.kv_heads)),
            ("llama.block_count".to_owned(), number(self.blocks)),
            ("llama.embedding_length".to_owned(), number(self.embedding)),
            ("llama.rope.dimension_count".to_owned(), number(self.head_dim())),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(self.norm_epsilon)),
            ("llama.rope.freq_base".to_owned(), Value::F32(self.rope_base)),
        ])
    }

    /// Loads the weights onto `device`, telling `on_progress` the bytes done and in all.
    ///
    /// # Errors
    /// [`LoadError::Engine`] or [`LoadError::Io`].
    pub(crate) fn load(
        &self,
        header: &Header,
        file: ModelFile,
        device: &Device,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ModelWeights, LoadError> {
        let tensor_infos = header.tensors.iter().map(|(name, place)| (name.clone(), info(place))).collect();
        let content = Content {
            magic: VersionedMagic::GgufV3,
            metadata: self.metadata(),
            tensor_infos,
            tensor_data_offset: header.data_offset,
        };
        let total = header.tensors.values().map(|t| t.bytes).sum();
        let mut reader = Progress { inner: BufReader::new(file), done: 0, told: 0, total, on_progress };
        let weights = ModelWeights::from_gguf(content, &mut reader, device)
            .map_err(|e| LoadError::Engine { what: text::clean(&e.to_string(), 200) })?;
        (reader.on_progress)(total, total);
        Ok(weights)
    }
}

/// Candle's form of a checked place.
fn info(place: &TensorPlace) -> TensorInfo {
    let dims: Vec<usize> = place.dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    let ggml_dtype: GgmlDType = place.dtype;
    TensorInfo { ggml_dtype, shape: Shape::from(dims), offset: place.offset }
}

fn corrupt(what: String) -> LoadError {
    LoadError::Corrupt { what }
}

fn unsupported(found: String) -> LoadError {
    LoadError::UnsupportedArchitecture { found }
}

/// A count from the header, 1 to `limit`.
fn bounded(header: &Header, key: &str, limit: u64) -> Result<u64, LoadError> {
    match header.unsigned(key) {
        None | Some(0) => Err(corrupt(format!("`{key}` is missing or zero"))),
        Some(value) if value > limit => Err(LoadError::TooLarge { what: key.to_owned(), limit }),
        Some(value) => Ok(value),
    }
}

/// A finite positive number from the header, or `default` when the key is absent.
fn real(header: &Header, key: &str, default: f32) -> Result<f32, LoadError> {
    let value = match header.scalar(key) {
        None => return Ok(default),
        Some(Scalar::Float(value)) => *value,
        Some(_) => f64::NAN,
    };
    #[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest f32, and infinity is refused")]
    let value = value as f32;
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(corrupt(format!("`{key}` is no positive number")))
    }
}

/// The model file, read by position: the descriptor's own offset is shared with every process that
/// holds it, and two workers may load the same file at once.
#[derive(Debug)]
pub(crate) struct ModelFile {
    file: std::fs::File,
    at: u64,
    len: u64,
}

impl ModelFile {
    /// A reader at the start of `file`.
    ///
    /// # Errors
    /// [`LoadError::Io`] when it is not a regular file that can be read.
    pub(crate) fn new(file: std::fs::File) -> Result<Self, LoadError> {
        let metadata = file.metadata().map_err(|e| LoadError::Io { what: e.to_string() })?;
        if !metadata.is_file() {
            return Err(LoadError::Io { what: "it is not a regular file".to_owned() });
        }
        Ok(Self { file, at: 0, len: metadata.len() })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What its first bytes say it is: `GGUF`, or after a length the brace of a safetensors header.
    ///
    /// # Errors
    /// [`LoadError::UnknownFormat`] when it is neither, [`LoadError::Io`].
    pub(crate) fn kind(&mut self) -> Result<ModelKind, LoadError> {
        let mut head = [0; 9];
        let mut have = 0;
        while let Some(rest) = head.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.read(rest).map_err(|e| LoadError::Io { what: e.to_string() })? {
                0 => break,
                count => have += count,
            }
        }
        self.at = 0;
        match head.get(..have) {
            Some([b'G', b'G', b'U', b'F', ..]) => Ok(ModelKind::Llm),
            Some([_, _, _, _, _, _, _, _, b'{']) => Ok(ModelKind::Encoder),
            _ => Err(LoadError::UnknownFormat),
        }
    }
}

impl Read for ModelFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = std::os::unix::fs::FileExt::read_at(&self.file, buffer, self.at)?;
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or_default());
        Ok(count)
    }
}

impl Seek for ModelFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(by) => (self.len, by),
            SeekFrom::Current(by) => (self.at, by),
        };
        self.at = base.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// How many bytes pass between two words about progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// Counts what is read on its way.
struct Progress<'a> {
    inner: BufReader<ModelFile>,
    done: u64,
    told: u64,
    total: u64,
    on_progress: &'a mut dyn FnMut(u64, u64),
}

impl Read for Progress<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done = self.done.saturating_add(u64::try_from(count).unwrap_or_default());
        if self.done - self.told >= PROGRESS_STEP {
            self.told = self.done;
            (self.on_progress)(self.done.min(self.total), self.total);
        }
        Ok(count)
    }
}

impl Seek for Progress<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
