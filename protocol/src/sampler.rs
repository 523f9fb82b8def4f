//! The seeded sampler: which token follows, given logits, a seed and a position. Normative.
//!
//! Owns: the one function from CPU f32 logits to a token id that every provider and every verifier
//! computes alike, on any platform and in any language. Never: draws randomness, knows a model, or
//! decides when an answer ends. Called by the worker (to choose) and by whoever audits an answer
//! (to check). It is pure: the same arguments give the same token for ever.
//!
//! # The law
//!
//! Input: `logits[id]` (f32, one per token id), `temperature_milli`, `top_p_milli`, `seed` and
//! `position`, the absolute index in the context of the token being chosen (a prompt of `n` tokens
//! makes the first answer token's position `n`).
//!
//! 1. *Clean.* NaN counts as negative infinity, positive infinity as the largest finite f32. When
//!    nothing above negative infinity is left, there is no token: [`SampleError::NoCandidate`].
//! 2. *Greedy.* When `temperature_milli` is 0: the token with the largest logit, the lowest id on a
//!    tie. Nothing below applies.
//! 3. *Top 64.* Keep the [`KEPT`] largest logits above negative infinity, in order of logit
//!    descending, then id ascending.
//! 4. *Temperature*, in f64: `z = (f64(logit) * 1000.0) / f64(temperature_milli)`.
//! 5. *Top-p*, in f64 and in that order: `p = exp(z - z_first)`; `total` is the sum of all `p`; keep
//!    the shortest prefix whose running sum reaches `cum * 1000.0 >= f64(top_p_milli) * total`;
//!    at least one token, and all of them when none reaches it.
//! 6. *Gumbel-max.* For each kept token let `w` be the first 8 keystream bytes, little endian, of
//!    ChaCha12 (IETF layout: 96-bit nonce, 32-bit block counter 0) with
//!    key = blake3 `derive_key("potluck/v1/sampler-seed", seed as 8 bytes LE)` and
//!    nonce = position as 8 bytes LE, then token id as 4 bytes LE. Then
//!    `u = (f64(w >> 12) + 0.5) / 2^52`, which is exact in f64 and strictly between 0 and 1 (with
//!    53 bits the largest value would round to 1), and `g = -log(-log(u))`.
//!    The token with the largest `z + g` is chosen, the lowest id on a tie.
//!
//! `exp` and `log` are those of the crate `libm` (a port of musl's), so that no platform's own
//! mathematics library takes part. All other operations are single IEEE 754 operations.

use std::cmp::Ordering;

use chacha20::ChaCha12;
use chacha20::cipher::{KeyIvInit as _, StreamCipher as _};
use thiserror::Error;

use crate::job::Sampling;

/// How many of the most likely tokens take part in a draw.
pub const KEPT: usize = 64;

const SEED_CONTEXT: &str = "potluck/v1/sampler-seed";
/// 2^52: how many different values `u` takes.
const STEPS: f64 = 4_503_599_627_370_496.0;

/// Why no token can be chosen. Fault: the model's, or whoever computed the logits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SampleError {
    /// Every logit is NaN or negative infinity, or there are none.
    #[error("none of the {vocab} logits is a number that can be chosen")]
    NoCandidate {
        /// How many logits there were.
        vocab: usize,
    },
}

/// A token that may be chosen, with its cleaned logit.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

/// The sampler of one job. Keeps its buffer between tokens; holds no state that changes a result.
#[derive(Clone)]
pub struct SeededSampler {
    key: [u8; 32],
    temperature_milli: u32,
    top_p_milli: u32,
    kept: Vec<Candidate>,
}

impl std::fmt::Debug for SeededSampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeededSampler")
            .field("temperature_milli", &self.temperature_milli)
            .field("top_p_milli", &self.top_p_milli)
            .finish_non_exhaustive()
    }
}

impl SeededSampler {
    /// The sampler that `sampling` asks for. `max_tokens` has no part in it.
    #[must_use]
    pub fn new(sampling: &Sampling) -> Self {
        Self {
            key: blake3::derive_key(SEED_CONTEXT, &sampling.seed.to_le_bytes()),
            temperature_milli: sampling.temperature_milli,
            top_p_milli: sampling.top_p_milli,
            kept: Vec::with_capacity(KEPT + 1),
        }
    }

    /// The id of the token at the absolute `position`, by the law above.
    ///
    /// # Errors
    /// [`SampleError::NoCandidate`] when no logit can be chosen.
    pub fn pick(&mut self, logits: &[f32], position: u64) -> Result<u32, SampleError> {
        let none = SampleError::NoCandidate { vocab: logits.len() };
        if self.temperature_milli == 0 {
            return greedy(logits).ok_or(none);
        }
        keep_top(logits, &mut self.kept);
        let temperature = f64::from(self.temperature_milli);
        let scaled = |candidate: &Candidate| f64::from(candidate.logit) * 1000.0 / temperature;
        let nucleus = nucleus_len(self.kept.iter().map(scaled), self.top_p_milli);
        let mut best: Option<(f64, u32)> = None;
        for candidate in self.kept.iter().take(nucleus) {
            let score = scaled(candidate) + gumbel(&self.key, position, candidate.id);
            let better = best.is_none_or(|(top, id)| score > top || (score == top && candidate.id < id));
            if better {
                best = Some((score, candidate.id));
            }
        }
        best.map(|(_, id)| id).ok_or(none)
    }
}

/// A logit as the law sees it; `None` when it can never be chosen.
fn clean(logit: f32) -> Option<f32> {
    (logit > f32::NEG_INFINITY).then_some(logit.min(f32::MAX))
}

fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best: Option<Candidate> = None;
    for (&logit, id) in logits.iter().zip(0u32..) {
        // Ids ascend, so a later equal logit never replaces an earlier one.
        if let Some(logit) = clean(logit)
            && best.is_none_or(|b| logit > b.logit)
        {
            best = Some(Candidate { logit, id });
        }
    }
    best.map(|b| b.id)
}

/// Fills `kept` with the largest [`KEPT`] candidates in the law's order: one pass, and an insertion
/// only where a logit beats the smallest one kept (a few hundred times for a whole vocabulary).
fn keep_top(logits: &[f32], kept: &mut Vec<Candidate>) {
    kept.clear();
    let mut floor = f32::NEG_INFINITY;
    for (&logit, id) in logits.iter().zip(0u32..) {
        // False for NaN and negative infinity, and for an equal logit once 64 lower ids are kept.
        if logit > floor {
            let logit = logit.min(f32::MAX);
            let at = kept.partition_point(|k| k.logit >= logit);
            kept.insert(at, Candidate { logit, id });
            kept.truncate(KEPT);
            if kept.len() == KEPT {
                floor = kept.last().map_or(floor, |k| k.logit);
            }
        }
    }
}

/// How many of the scaled logits (descending) the nucleus holds: at least one unless there are none.
fn nucleus_len(scaled: impl ExactSizeIterator<Item = f64> + Clone, top_p_milli: u32) -> usize {
    let count = scaled.len();
    let Some(first) = scaled.clone().next() else { return 0 };
    let weight = |z: f64| libm::exp(z - first);
    let total: f64 = scaled.clone().fold(0.0, |sum, z| sum + weight(z));
    let mut cum = 0.0;
    for (index, z) in scaled.enumerate() {
        cum += weight(z);
        let reached = (cum * 1000.0).partial_cmp(&(f64::from(top_p_milli) * total));
        if matches!(reached, Some(Ordering::Greater | Ordering::Equal)) {
            return index + 1;
        }
    }
    count
}

/// The Gumbel number of one token at one position (step 6 of the law).
fn gumbel(key: &[u8; 32], position: u64, id: u32) -> f64 {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&position.to_le_bytes());
    nonce[8..].copy_from_slice(&id.to_le_bytes());
    let mut word = [0; 8];
    ChaCha12::new(key.into(), &nonce.into()).apply_keystream(&mut word);
    let bits = u64::from_le_bytes(word) >> 12;
    // Below 2^52, so the conversion and the half are exact in f64.
    let u = (bits as f64 + 0.5) / STEPS;
    -libm::log(-libm::log(u))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling(temperature_milli: u32, top_p_milli: u32, seed: u64) -> Sampling {
        Sampling { max_tokens: 1, temperature_milli, top_p_milli, seed }
    }

    fn pick(logits: &[f32], s: Sampling, position: u64) -> Result<u32, SampleError> {
        SeededSampler::new(&s).pick(logits, position)
    }

    /// The ids of the law's step 3, by a plain sort.
    fn top_ids(logits: &[f32]) -> Vec<u32> {
        let mut all: Vec<(f32, u32)> =
            logits.iter().zip(0u32..).filter_map(|(&l, id)| clean(l).map(|l| (l, id))).collect();
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        all.iter().take(KEPT).map(|&(_, id)| id).collect()
    }

    /// Logits that any language can make: `sin(i * step) * scale`, rounded to 1/1024 so that the
    /// last bit of a sine does not matter.
    #[expect(clippy::cast_possible_truncation, reason = "multiples of 1/1024 in this range are exact in f32")]
    fn wave(len: u32, step: f64, scale: f64) -> Vec<f32> {
        (0..len).map(|i| (libm::sin(f64::from(i) * step) * scale * 1024.0).round() as f32 / 1024.0).collect()
    }

    #[test]
    fn temperature_zero_is_the_first_largest() {
        assert_eq!(pick(&[1.0, 3.0, 3.0, 2.0], sampling(0, 1000, 9), 4), Ok(1));
        assert_eq!(pick(&[f32::NAN, -1.0, f32::INFINITY, f32::MAX], sampling(0, 1000, 9), 4), Ok(2));
    }

    #[test]
    fn nothing_to_choose_is_an_error_at_any_temperature() {
        for bad in [&[][..], &[f32::NAN, f32::NEG_INFINITY][..]] {
            for temperature in [0, 800] {
                assert_eq!(
                    pick(bad, sampling(temperature, 900, 1), 0),
                    Err(SampleError::NoCandidate { vocab: bad.len() })
                );
            }
        }
    }

    #[test]
    fn a_tiny_nucleus_is_the_best_token() {
        let logits = wave(1000, 0.37, 4.0);
        let best = pick(&logits, sampling(0, 1000, 0), 0).unwrap();
        for seed in 0..50 {
            assert_eq!(pick(&logits, sampling(1000, 1, seed), seed).unwrap(), best);
        }
    }

    #[test]
    fn seed_and_position_both_matter() {
        let logits = [0.0; 64];
        let by_seed: std::collections::BTreeSet<u32> =
            (0..64).map(|seed| pick(&logits, sampling(1000, 1000, seed), 0).unwrap()).collect();
        let by_position: std::collections::BTreeSet<u32> =
            (0..64).map(|position| pick(&logits, sampling(1000, 1000, 0), position).unwrap()).collect();
        // 64 draws from 64 equal tokens hit about 40 of them.
        assert!(by_seed.len() > 25 && by_position.len() > 25);
    }

    #[test]
    fn draws_follow_the_softmax() {
        // Probabilities 1/2, 1/3, 1/6 at temperature 1; 9/14, 4/14, 1/14 at temperature 0.5.
        let logits = [3f32.ln(), 2f32.ln(), 0.0];
        for (temperature, expected) in
            [(1000, [0.5, 1.0 / 3.0, 1.0 / 6.0]), (500, [9.0 / 14.0, 4.0 / 14.0, 1.0 / 14.0])]
        {
            let mut counts = [0u32; 3];
            for seed in 0..20_000 {
                let id = pick(&logits, sampling(temperature, 1000, seed), seed % 100).unwrap();
                counts[usize::try_from(id).unwrap()] += 1;
            }
            for (count, expected) in counts.iter().zip(expected) {
                // Five standard deviations of 20,000 draws are below 0.018.
                assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.018, "{counts:?}");
            }
        }
    }

    #[test]
    fn top_p_cuts_the_tail_and_keeps_the_token_that_reaches_it() {
        // Probabilities 1/2, 1/3, 1/6: half the mass is one token, a little more is two.
        let logits = [3f32.ln(), 2f32.ln(), 0.0];
        let seen = |top_p: u32| -> std::collections::BTreeSet<u32> {
            (0..2000).map(|seed| pick(&logits, sampling(1000, top_p, seed), 1).unwrap()).collect()
        };
        assert_eq!(seen(499).len(), 1);
        assert_eq!(seen(510).len(), 2);
        assert_eq!(seen(840).len(), 3);
        assert_eq!(seen(1000).len(), 3);
    }

    #[test]
    fn sampler_golden() {
        // Made by an independent implementation in another language (pure-Python ChaCha12, the
        // blake3 reference wheel). Columns: vocabulary, step, scale, temperature, top-p, seed,
        // position, token.
        GOLDEN.iter().for_each(|&(len, step, scale, temperature, top_p, seed, position, token)| {
            let logits = wave(len, step, scale);
            assert_eq!(
                pick(&logits, sampling(temperature, top_p, seed), position),
                Ok(token),
                "{len} {step} {scale} {temperature} {top_p} {seed} {position}"
            );
        });
    }

    #[test]
    fn gumbel_golden() {
        for (seed, position, id, bits) in GUMBEL_GOLDEN {
            let key = blake3::derive_key(SEED_CONTEXT, &seed.to_le_bytes());
            let difference = gumbel(&key, position, id) - bits;
            assert!(difference.abs() < 1e-12, "{seed} {position} {id}: {difference}");
        }
    }

    type Golden = (u32, f64, f64, u32, u32, u64, u64, u32);

    const GOLDEN: [Golden; 28] = [
        (3, 1.0, 1.0, 1_000, 1_000, 0, 0, 1),
        (3, 1.0, 1.0, 1_000, 1_000, 1, 37, 1),
        (3, 1.0, 1.0, 1_000, 1_000, 18_446_744_073_709_551_615, 1_099_511_627_781, 1),
        (3, 1.0, 1.0, 1_000, 1_000, 123_456_789, 4_095, 2),
        (100, 0.7, 3.0, 700, 950, 0, 0, 83),
        (100, 0.7, 3.0, 700, 950, 1, 37, 38),
        (100, 0.7, 3.0, 700, 950, 18_446_744_073_709_551_615, 1_099_511_627_781, 38),
        (100, 0.7, 3.0, 700, 950, 123_456_789, 4_095, 74),
        (1_000, 0.37, 4.0, 1_000, 900, 0, 0, 548),
        (1_000, 0.37, 4.0, 1_000, 900, 1, 37, 395),
        (1_000, 0.37, 4.0, 1_000, 900, 18_446_744_073_709_551_615, 1_099_511_627_781, 972),
        (1_000, 0.37, 4.0, 1_000, 900, 123_456_789, 4_095, 378),
        (49_152, 0.011, 6.0, 800, 950, 0, 0, 2_998),
        (49_152, 0.011, 6.0, 800, 950, 1, 37, 3_570),
        (49_152, 0.011, 6.0, 800, 950, 18_446_744_073_709_551_615, 1_099_511_627_781, 6_998),
        (49_152, 0.011, 6.0, 800, 950, 123_456_789, 4_095, 14_995),
        (49_152, 1.3, 10.0, 2_000, 1_000, 0, 0, 8_643),
        (49_152, 1.3, 10.0, 2_000, 1_000, 1, 37, 2_065),
        (49_152, 1.3, 10.0, 2_000, 1_000, 18_446_744_073_709_551_615, 1_099_511_627_781, 16_062),
        (49_152, 1.3, 10.0, 2_000, 1_000, 123_456_789, 4_095, 8_788),
        (49_152, 0.011, 6.0, 0, 1_000, 0, 0, 142),
        (49_152, 0.011, 6.0, 0, 1_000, 1, 37, 142),
        (49_152, 0.011, 6.0, 0, 1_000, 18_446_744_073_709_551_615, 1_099_511_627_781, 142),
        (49_152, 0.011, 6.0, 0, 1_000, 123_456_789, 4_095, 142),
        (5, 0.0, 0.0, 1_500, 500, 0, 0, 1),
        (5, 0.0, 0.0, 1_500, 500, 1, 37, 1),
        (5, 0.0, 0.0, 1_500, 500, 18_446_744_073_709_551_615, 1_099_511_627_781, 1),
        (5, 0.0, 0.0, 1_500, 500, 123_456_789, 4_095, 2),
    ];

    const GUMBEL_GOLDEN: [(u64, u64, u32, f64); 3] = [
        (0, 0, 0, -0.39368605374900834),
        (7, 1, 2, 1.0179390141330624),
        (18_446_744_073_709_551_615, 9_223_372_036_854_775_808, 4_294_967_295, -0.6600737544591373),
    ];

    proptest! {
        #[test]
        fn the_law_is_a_function_and_stays_in_the_top(
            logits in prop::collection::vec(prop_oneof![
                4 => -20f32..20.0,
                1 => prop::sample::select(vec![
                    f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, f32::MAX, f32::MIN,
                ]),
            ], 0..300),
            temperature in 0u32..=2000, top_p in 1u32..=1000, seed: u64, position: u64,
        ) {
            let s = sampling(temperature, top_p, seed);
            let top = top_ids(&logits);
            let mut reused = SeededSampler::new(&s);
            let _ = reused.pick(&[5.0, 1.0], position.wrapping_add(1));
            let first = pick(&logits, s, position);
            prop_assert_eq!(&first, &reused.pick(&logits, position));
            match first {
                Ok(id) if temperature == 0 => prop_assert_eq!(Some(&id), top.first()),
                Ok(id) => prop_assert!(top.contains(&id)),
                Err(_) => prop_assert!(top.is_empty()),
            }
        }

        #[test]
        fn the_kept_are_the_sorted_top(
            logits in prop::collection::vec(prop::sample::select(
                vec![0.0f32, -0.0, 0.5, 1.0, f32::NAN, -3.0, f32::INFINITY, f32::MAX],
            ), 0..400),
        ) {
            let mut kept = Vec::new();
            keep_top(&logits, &mut kept);
            let ids: Vec<u32> = kept.iter().map(|k| k.id).collect();
            prop_assert_eq!(ids, top_ids(&logits));
        }
    }
}
