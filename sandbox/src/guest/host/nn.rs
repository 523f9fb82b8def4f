//! `wasi:nn`: a guest's tensors, and networks that compute on them.
//!
//! Owns: how the standard maps to the tensor channel, through wasmtime-wasi-nn's traits. Never: takes
//! a model's bytes, or trusts a shape. Called by wasmtime-wasi-nn on the guest's behalf.
//!
//! A graph is a model that the job names. An execution context of a language model is a session: it
//! opens with the first `tokens` and keeps what it read. The standard's errors carry no words of
//! ours, so the reason of each goes to the job's log.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi_nn::backend::{
    BackendError, BackendExecutionContext, BackendFromDir, BackendGraph, BackendInner, Id,
    NamedTensor as NnNamedTensor,
};
use wasmtime_wasi_nn::wit::{ExecutionTarget, GraphEncoding, TensorType as NnType, WasiNnCtx};
use wasmtime_wasi_nn::{Backend, ExecutionContext, Graph, GraphRegistry, Tensor as NnTensor};

use super::Host;
use super::budget::Budget;
use super::log::Log;
use super::models::Models;
use super::outbox::Outbox;
use crate::tensor::{ModelCallError, ModelReply, ModelRequest, NamedTensor, Tensor, TensorError, TensorType};

/// The input that only language models take.
const TOKENS: &str = "tokens";
/// The standard's name for tensors.
const TENSOR_INTERFACE: &str = "wasi:nn/tensor@0.2.0-rc-2024-10-28";
/// Every encoding that the standard knows: none is taken.
const ENCODINGS: [GraphEncoding; 7] = [
    GraphEncoding::Openvino,
    GraphEncoding::Onnx,
    GraphEncoding::Tensorflow,
    GraphEncoding::Pytorch,
    GraphEncoding::Tensorflowlite,
    GraphEncoding::Ggml,
    GraphEncoding::Autodetect,
];

/// What computing needs, shared by everything here.
#[derive(Debug, Clone)]
struct Way {
    outbox: Arc<Outbox>,
    budget: Arc<Budget>,
    log: Arc<Log>,
}

impl Way {
    /// The standard's error for `error`, whose words go to the log.
    fn refuse(&self, error: wasmtime::Error) -> BackendError {
        // A daemon that is gone is heard by the listener.
        let _ = self.log.line(&format!("wasi:nn: {error}"));
        BackendError::BackendAccess(error)
    }
}

/// The state of `wasi:nn` for a guest that may call `models`.
pub(super) fn context(
    models: &Arc<Models>,
    outbox: &Arc<Outbox>,
    budget: &Arc<Budget>,
    log: &Arc<Log>,
) -> WasiNnCtx {
    let way = Way { outbox: Arc::clone(outbox), budget: Arc::clone(budget), log: Arc::clone(log) };
    let backends = ENCODINGS.map(|encoding| Backend::from(NoBytes { encoding, way: way.clone() }));
    let graphs = models.names().map(|(model, names)| {
        let graph: Box<dyn BackendGraph> = Box::new(Network { model, way: way.clone() });
        (names, Graph::from(graph))
    });
    WasiNnCtx::new(backends, Named(graphs.collect::<Vec<_>>()).into())
}

/// Makes every tensor that a guest makes or drops count as its memory.
///
/// # Errors
/// When the standard's names have changed, which is a fault of this build.
pub(super) fn count_tensors(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut tensors = linker.instance(TENSOR_INTERFACE)?;
    tensors.resource("tensor", ResourceType::host::<NnTensor>(), |mut store, handle| {
        let host: &mut Host = store.data_mut();
        let tensor = host.table.delete(Resource::<NnTensor>::new_own(handle))?;
        host.budget.release(tensor.data.len());
        Ok(())
    })?;
    tensors.func_wrap("[constructor]tensor", make_tensor)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn make_tensor(
    mut store: StoreContextMut<'_, Host>,
    (dimensions, ty, data): (Vec<u32>, NnType, Vec<u8>),
) -> wasmtime::Result<(Resource<NnTensor>,)> {
    let host = store.data_mut();
    host.budget.charge(data.len())?;
    Ok((host.table.push(NnTensor { dimensions, ty, data })?,))
}

/// The models of a job under their names.
struct Named(Vec<([String; 2], Graph)>);

impl Named {
    /// A name that the job gives goes before a hash.
    fn place(&self, name: &str) -> Option<usize> {
        let at =
            |which: usize| self.0.iter().position(|(names, _)| names.get(which).is_some_and(|n| n == name));
        at(0).or_else(|| at(1))
    }
}

impl GraphRegistry for Named {
    fn get(&self, name: &str) -> Option<&Graph> {
        self.0.get(self.place(name)?).map(|(_, graph)| graph)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Graph> {
        let place = self.place(name)?;
        self.0.get_mut(place).map(|(_, graph)| graph)
    }
}

/// Answers whoever hands in a model's bytes.
struct NoBytes {
    encoding: GraphEncoding,
    way: Way,
}

impl BackendInner for NoBytes {
    fn encoding(&self) -> GraphEncoding {
        self.encoding
    }

    fn load(&mut self, _: &[&[u8]], _: ExecutionTarget) -> Result<Graph, BackendError> {
        let words = "models are named by the job and not handed in: use load-by-name";
        Err(self.way.refuse(wasmtime::Error::msg(words)))
    }

    fn as_dir_loadable(&mut self) -> Option<&mut dyn BackendFromDir> {
        None
    }
}

/// A model.
struct Network {
    model: u8,
    way: Way,
}

impl BackendGraph for Network {
    fn init_execution_context(&self) -> Result<ExecutionContext, BackendError> {
        let computing = Computing { model: self.model, session: None, way: self.way.clone() };
        let context: Box<dyn BackendExecutionContext> = Box::new(computing);
        Ok(context.into())
    }
}

/// A guest's computation with a model.
struct Computing {
    model: u8,
    /// What a language model has read so far.
    session: Option<u32>,
    way: Way,
}

impl Computing {
    fn ask(&self, request: ModelRequest) -> wasmtime::Result<ModelReply> {
        Ok(self.way.outbox.ask(self.model, request)??)
    }

    fn run(&mut self, inputs: Vec<NnNamedTensor>) -> wasmtime::Result<Vec<NnNamedTensor>> {
        // The standard has taken them out of the guest's hands already.
        let bytes = inputs.iter().map(|input| input.tensor.data.len()).sum();
        self.way.budget.release(bytes);
        let inputs = inputs.into_iter().map(|input| {
            let tensor = from_guest(input.tensor)?;
            Ok(NamedTensor { name: input.name, tensor })
        });
        let inputs = inputs.collect::<Result<Vec<_>, TensorError>>()?;
        if self.session.is_none() && inputs.iter().any(|input| input.name == TOKENS) {
            // Greedy: the guest samples for itself.
            let open = ModelRequest::OpenSession { temperature_milli: 0, top_p_milli: 1_000, seed: 0 };
            if let ModelReply::Session { session, .. } = self.ask(open)? {
                self.session = Some(session);
            }
        }
        let ModelReply::Tensors(outputs) =
            self.ask(ModelRequest::Compute { session: self.session, inputs })?
        else {
            return Err(ModelCallError::engine("the model gave no tensors").into());
        };
        self.way.budget.charge(outputs.iter().map(|output| output.tensor.data.len()).sum())?;
        let outputs = outputs
            .into_iter()
            .map(|NamedTensor { name, tensor }| NnNamedTensor { name, tensor: to_guest(tensor) });
        Ok(outputs.collect())
    }
}

impl BackendExecutionContext for Computing {
    fn set_input(&mut self, _: Id, _: &NnTensor) -> Result<(), BackendError> {
        Err(self.way.refuse(wasmtime::Error::msg("inputs are named and given to compute")))
    }

    fn get_output(&mut self, _: Id) -> Result<NnTensor, BackendError> {
        Err(self.way.refuse(wasmtime::Error::msg("outputs are what compute gives")))
    }

    fn compute(
        &mut self,
        inputs: Option<Vec<NnNamedTensor>>,
    ) -> Result<Option<Vec<NnNamedTensor>>, BackendError> {
        match self.run(inputs.unwrap_or_default()) {
            Ok(outputs) => Ok(Some(outputs)),
            Err(error) => Err(self.way.refuse(error)),
        }
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // Whether the model's worker could still close it changes nothing for the guest.
            let _ = self.ask(ModelRequest::CloseSession { session });
        }
    }
}

/// A guest's tensor, checked.
fn from_guest(tensor: NnTensor) -> Result<Tensor, TensorError> {
    let ty = match tensor.ty {
        NnType::U8 => TensorType::U8,
        NnType::I32 => TensorType::I32,
        NnType::I64 => TensorType::I64,
        NnType::Fp32 => TensorType::F32,
        NnType::Fp16 => TensorType::from_name("FP16")?,
        NnType::Fp64 => TensorType::from_name("FP64")?,
        NnType::Bf16 => TensorType::from_name("BF16")?,
    };
    Tensor::new(ty, tensor.dimensions, tensor.data)
}

fn to_guest(tensor: Tensor) -> NnTensor {
    let ty = match tensor.ty {
        TensorType::U8 => NnType::U8,
        TensorType::I32 => NnType::I32,
        TensorType::I64 => NnType::I64,
        TensorType::F32 => NnType::Fp32,
    };
    NnTensor { dimensions: tensor.dims, ty, data: tensor.data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dimensions: Vec<u32>, ty: NnType, bytes: usize) -> NnTensor {
        NnTensor { dimensions, ty, data: vec![7; bytes] }
    }

    #[test]
    fn a_tensor_crosses_both_ways_unchanged() {
        for (ty, size) in [(NnType::U8, 1), (NnType::I32, 4), (NnType::I64, 8), (NnType::Fp32, 4)] {
            let given = tensor(vec![2, 3], ty, 6 * size);
            assert!(to_guest(from_guest(given.clone()).unwrap()) == given);
        }
    }

    #[test]
    fn shapes_and_types_are_checked() {
        let refused = |given| from_guest(given).unwrap_err();
        let short = refused(tensor(vec![2, 3], NnType::Fp32, 23));
        assert!(matches!(short, TensorError::WrongLength { expected: 24, found: 23, .. }), "{short}");
        assert!(matches!(refused(tensor(vec![u32::MAX; 8], NnType::U8, 0)), TensorError::TooLarge));
        assert!(matches!(refused(tensor(vec![1; 9], NnType::U8, 1)), TensorError::TooManyDims { count: 9 }));
        for ty in [NnType::Fp16, NnType::Fp64, NnType::Bf16] {
            assert!(matches!(refused(tensor(vec![1], ty, 2)), TensorError::UnsupportedType { .. }));
        }
    }
}
