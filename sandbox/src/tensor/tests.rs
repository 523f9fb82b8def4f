//! Laws of the tensor channel's types: what is made here comes back, and what lies is refused.
//!
//! Owns: the strategies that other tests of the channel use too. Never: runs a model. Called by
//! `cargo test` and by the tests of the socket protocol.

use potluck_protocol::job::Role;
use potluck_protocol::wire::{self, WireError};
use proptest::prelude::*;

use super::*;

fn ty() -> impl Strategy<Value = TensorType> {
    prop::sample::select(vec![TensorType::U8, TensorType::I32, TensorType::I64, TensorType::F32])
}

/// Tensors whose shape and bytes belong together.
pub(crate) fn tensor() -> impl Strategy<Value = Tensor> {
    (ty(), prop::collection::vec(0u32..5, 0..4)).prop_flat_map(|(ty, dims)| {
        let bytes = dims.iter().product::<u32>() as usize * ty.size();
        prop::collection::vec(any::<u8>(), bytes).prop_map(move |data| Tensor {
            ty,
            dims: dims.clone(),
            data,
        })
    })
}

fn tensors() -> impl Strategy<Value = Vec<NamedTensor>> {
    prop::collection::vec(tensor(), 0..4).prop_map(|tensors| {
        let named = tensors.into_iter().enumerate();
        named.map(|(at, tensor)| NamedTensor { name: format!("input{at}"), tensor }).collect()
    })
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant]);
    let message = (role, "\\PC{0,20}").prop_map(|(role, content)| ChatMessage { role, content });
    prop_oneof![
        "\\PC{0,40}".prop_map(Prompt::Text),
        prop::collection::vec(message, 1..4).prop_map(Prompt::Chat),
        prop::collection::vec(any::<u32>(), 0..20).prop_map(Prompt::Tokens),
    ]
}

/// Requests that keep every bound.
pub(crate) fn request() -> impl Strategy<Value = ModelRequest> {
    prop_oneof![
        (0u32..=2_000, 1u32..=1_000, any::<u64>()).prop_map(|(temperature_milli, top_p_milli, seed)| {
            ModelRequest::OpenSession { temperature_milli, top_p_milli, seed }
        }),
        (any::<u32>(), prompt()).prop_map(|(session, prompt)| ModelRequest::Prefill { session, prompt }),
        (any::<u32>(), 1..=MAX_STEP_TOKENS)
            .prop_map(|(session, tokens)| ModelRequest::Step { session, tokens }),
        any::<u32>().prop_map(|session| ModelRequest::CloseSession { session }),
        prop::collection::vec("\\PC{0,20}", 1..5).prop_map(|texts| ModelRequest::Embed { texts }),
        (any::<Option<u32>>(), tensors())
            .prop_map(|(session, inputs)| ModelRequest::Compute { session, inputs }),
    ]
}

fn reply() -> impl Strategy<Value = ModelReply> {
    let finish = prop::option::of(prop::sample::select(vec![FinishReason::Stop, FinishReason::Length]));
    prop_oneof![
        (any::<u32>(), any::<u32>())
            .prop_map(|(session, context_tokens)| ModelReply::Session { session, context_tokens }),
        any::<u32>().prop_map(|total_tokens| ModelReply::Prefilled { total_tokens }),
        (prop::collection::vec(any::<u32>(), 0..20), "\\PC{0,20}", finish)
            .prop_map(|(tokens, text, finish)| ModelReply::Stepped { tokens, text, finish }),
        Just(ModelReply::Closed),
        (1u32..4, 1u32..4).prop_flat_map(|(dim, rows)| {
            let numbers = prop::collection::vec(-1f32..1.0, (dim * rows) as usize);
            numbers.prop_map(move |data| ModelReply::Vectors { dim, rows, data })
        }),
        tensors().prop_map(ModelReply::Tensors),
    ]
}

/// What a call may give, well or ill.
pub(crate) fn result() -> impl Strategy<Value = Result<ModelReply, ModelCallError>> {
    let error = prop_oneof![
        Just(ModelCallError::UnknownSession),
        Just(ModelCallError::TooManySessions),
        Just(ModelCallError::ContextFull),
        "\\PC{0,20}".prop_map(|what| ModelCallError::InvalidInput { what }),
        Just(ModelCallError::Cancelled),
    ];
    prop_oneof![reply().prop_map(Ok), error.prop_map(Err)]
}

#[test]
fn types_that_are_not_carried_are_refused_by_name() {
    assert_eq!(TensorType::from_name("f32"), Ok(TensorType::F32));
    for name in ["F16", "BF16", "F64", "float", ""] {
        let error = TensorType::from_name(name).unwrap_err();
        assert!(error.to_string().contains(name) && error.to_string().contains("I64"), "{error}");
    }
}

#[test]
fn lying_shapes_are_refused() {
    let lie = |dims: Vec<u32>, bytes: usize| Tensor { ty: TensorType::I64, dims, data: vec![0; bytes] };
    assert!(matches!(lie(vec![2], 15).check(), Err(TensorError::WrongLength { expected: 16, .. })));
    assert!(matches!(lie(vec![], 0).check(), Err(TensorError::WrongLength { expected: 8, .. })));
    assert_eq!(lie(vec![0, u32::MAX], 0).check(), Ok(()));
    // Overflows if it is multiplied in 32 or 64 bits, and would then equal the length.
    assert_eq!(lie(vec![1 << 31, 1 << 31, 8], 0).check(), Err(TensorError::TooLarge));
    assert_eq!(lie(vec![u32::MAX; 8], 8).check(), Err(TensorError::TooLarge));
    assert_eq!(lie(vec![1; 9], 8).check(), Err(TensorError::TooManyDims { count: 9 }));
    assert_eq!(lie(vec![1 << 21, 1], MAX_TENSOR_BYTES).check(), Ok(()));
    assert_eq!(lie(vec![(1 << 21) + 1], MAX_TENSOR_BYTES + 8).check(), Err(TensorError::TooLarge));
}

#[test]
fn long_lists_are_refused_while_they_are_read() {
    let long = ModelRequest::Embed { texts: vec![String::new(); MAX_EMBED_TEXTS + 1] };
    let bytes = wire::encode_within(&long, MAX_CALL_BYTES).unwrap();
    assert_eq!(wire::decode_within::<ModelRequest>(&bytes, MAX_CALL_BYTES), Err(WireError::Undecodable));
    let long = ModelRequest::Prefill { session: 1, prompt: Prompt::Tokens(vec![0; MAX_PROMPT_TOKENS + 1]) };
    let bytes = wire::encode_within(&long, MAX_CALL_BYTES).unwrap();
    assert_eq!(wire::decode_within::<ModelRequest>(&bytes, MAX_CALL_BYTES), Err(WireError::Undecodable));
}

#[test]
fn every_bound_of_a_request_is_kept() {
    let text = |bytes: usize| "x".repeat(bytes);
    let named = |name: &str| NamedTensor {
        name: name.into(),
        tensor: Tensor { ty: TensorType::U8, dims: vec![0], data: vec![] },
    };
    let open = |temperature_milli, top_p_milli| ModelRequest::OpenSession {
        temperature_milli,
        top_p_milli,
        seed: 0,
    };
    for bad in [
        open(2_001, 1),
        open(0, 0),
        open(0, 1_001),
        ModelRequest::Step { session: 0, tokens: 0 },
        ModelRequest::Step { session: 0, tokens: MAX_STEP_TOKENS + 1 },
        ModelRequest::Prefill { session: 0, prompt: Prompt::Text(text(MAX_TEXT_BYTES + 1)) },
        ModelRequest::Prefill { session: 0, prompt: Prompt::Chat(vec![]) },
        ModelRequest::Embed { texts: vec![] },
        ModelRequest::Embed { texts: vec![text(MAX_EMBED_TEXT_BYTES + 1)] },
        ModelRequest::Compute { session: None, inputs: vec![named("a"), named("a")] },
        ModelRequest::Compute { session: None, inputs: vec![named(&text(MAX_TENSOR_NAME_BYTES + 1))] },
    ] {
        assert!(matches!(bad.check(), Err(ModelCallError::InvalidInput { .. })), "{bad:?}");
    }
}

#[test]
fn what_is_said_stays_out_of_debug_output() {
    let secret = || "a secret".to_owned();
    let named = NamedTensor {
        name: "x".into(),
        tensor: Tensor { ty: TensorType::U8, dims: vec![8], data: secret().into_bytes() },
    };
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        ModelRequest::Prefill { session: 1, prompt: Prompt::Text(secret()) },
        ModelRequest::Embed { texts: vec![secret()] },
        ModelReply::Stepped { tokens: vec![1], text: secret(), finish: None },
        ModelReply::Tensors(vec![named]),
    );
    assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
}

proptest! {
    #[test]
    fn requests_come_back_and_keep_their_bounds(request in request()) {
        prop_assert_eq!(request.check(), Ok(()));
        let bytes = wire::encode_within(&request, MAX_CALL_BYTES).unwrap();
        prop_assert_eq!(wire::decode_within::<ModelRequest>(&bytes, MAX_CALL_BYTES), Ok(request));
    }

    #[test]
    fn replies_come_back_and_keep_their_bounds(result in result()) {
        if let Ok(reply) = &result {
            prop_assert_eq!(reply.check(), Ok(()));
        }
        let bytes = wire::encode_within(&result, MAX_CALL_BYTES).unwrap();
        let back: Result<ModelReply, ModelCallError> = wire::decode_within(&bytes, MAX_CALL_BYTES).unwrap();
        prop_assert_eq!(back, result);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(request) = wire::decode_within::<ModelRequest>(&bytes, MAX_CALL_BYTES) {
            let _ = request.check();
        }
        if let Ok(reply) = wire::decode_within::<ModelReply>(&bytes, MAX_CALL_BYTES) {
            let _ = reply.check();
        }
    }

    #[test]
    fn a_checked_tensor_has_the_numbers_of_its_shape(
        ty in ty(), dims in prop::collection::vec(any::<u32>(), 0..10), len in 0usize..64,
    ) {
        let tensor = Tensor { ty, dims: dims.clone(), data: vec![0; len] };
        let numbers: u128 = dims.iter().fold(1, |n: u128, d| n.saturating_mul(u128::from(*d)));
        let fits = dims.len() <= MAX_TENSOR_DIMS && numbers.saturating_mul(ty.size() as u128) == len as u128;
        // A zero anywhere makes the shape empty, however absurd the other numbers are; whether the
        // product overflows before the zero is reached does not matter to anyone.
        if fits && !dims.contains(&0) {
            prop_assert!(tensor.check().is_ok());
        }
        if tensor.check().is_ok() {
            prop_assert!(fits);
        }
    }

    #[test]
    fn numbers_come_back(floats in prop::collection::vec(-1e30f32..1e30, 0..20), ids in prop::collection::vec(any::<i32>(), 0..20)) {
        let dims = vec![u32::try_from(floats.len()).unwrap()];
        prop_assert_eq!(Tensor::from_f32s(dims, &floats).unwrap().to_f32s(), Ok(floats));
        let dims = vec![u32::try_from(ids.len()).unwrap()];
        let data = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let tensor = Tensor::new(TensorType::I32, dims, data).unwrap();
        prop_assert_eq!(tensor.to_i64s(), Ok(ids.iter().map(|id| i64::from(*id)).collect()));
        prop_assert!(tensor.to_f32s().is_err());
    }
}
