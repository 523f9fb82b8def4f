//! Can this processor run what was compiled?
//!
//! Owns: one check. Never: chooses kernels (the compiler did, for `x86-64-v3`). Called first thing
//! by the worker and by `potluckd`, so that an older machine gets a sentence and not an illegal
//! instruction. The processor is asked directly: `is_x86_feature_detected!` answers from what the
//! build assumed, which is the very thing to be checked.

use thiserror::Error;

/// Why the engine cannot run on this processor. Fault: local.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "this processor (or the hypervisor above it) lacks {missing}: Potluck's engine is built for \
     x86-64-v3 (Intel since 2013, AMD since 2015)"
)]
pub struct CpuError {
    /// What is missing, separated by commas.
    pub missing: String,
}

/// Checks that the processor has the instructions that the engine's kernels are compiled for.
///
/// # Errors
/// [`CpuError`] names every missing instruction set.
pub fn check_cpu() -> Result<(), CpuError> {
    let missing = missing_features();
    if missing.is_empty() { Ok(()) } else { Err(CpuError { missing: missing.join(", ") }) }
}

#[cfg(target_arch = "x86_64")]
fn missing_features() -> Vec<&'static str> {
    use core::arch::x86_64::{__cpuid, __cpuid_count};

    let has_leaf_7 = __cpuid(0).eax >= 7;
    let has_extended_1 = __cpuid(0x8000_0000).eax >= 0x8000_0001;
    let basic = __cpuid(1).ecx;
    let leaf_7 = if has_leaf_7 { __cpuid_count(7, 0).ebx } else { 0 };
    let extended = if has_extended_1 { __cpuid(0x8000_0001).ecx } else { 0 };
    let bits = [
        (basic, 12, "FMA"),
        (basic, 22, "MOVBE"),
        (basic, 27, "OSXSAVE (AVX switched on by the system)"),
        (basic, 28, "AVX"),
        (basic, 29, "F16C"),
        (leaf_7, 3, "BMI1"),
        (leaf_7, 5, "AVX2"),
        (leaf_7, 8, "BMI2"),
        (extended, 5, "LZCNT"),
    ];
    bits.into_iter().filter(|(word, bit, _)| word >> bit & 1 == 0).map(|(_, _, name)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn missing_features() -> Vec<&'static str> {
    // Other architectures are built for their own baseline, which every such machine has.
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_kernel() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
        let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
        let all = ["fma", "movbe", "avx", "f16c", "bmi1", "avx2", "bmi2", "abm"].into_iter().all(has);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(check_cpu().is_ok(), all);
        } else {
            assert_eq!(check_cpu(), Ok(()));
        }
    }
}
