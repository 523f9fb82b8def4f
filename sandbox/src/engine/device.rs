//! Where the numbers are crunched.
//!
//! Owns: the choice of a device and its plain name. Never: falls back silently: what was taken is
//! in [`EngineDevice`], and an explicit wish that cannot be met is an error. Called by
//! [`super::Engine::load`]; the types also cross the socket.

use std::fmt;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::error::LoadError;

/// Which device the owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceChoice {
    /// The first GPU when this build and this machine have one, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this number.
    Cuda(u32),
}

/// Which device a model is loaded on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineDevice {
    /// The CPU.
    Cpu {
        /// Worker threads.
        threads: u32,
    },
    /// The CUDA device with this number.
    Cuda {
        /// Its number, as the driver counts.
        ordinal: u32,
    },
}

impl fmt::Display for EngineDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => f.write_str("CPU (1 thread)"),
            Self::Cpu { threads } => write!(f, "CPU ({threads} threads)"),
            Self::Cuda { ordinal } => write!(f, "CUDA GPU {ordinal}"),
        }
    }
}

/// Opens the device that `choice` asks for.
///
/// # Errors
/// [`LoadError::Device`] when an explicit GPU cannot be had.
pub(crate) fn open(choice: DeviceChoice) -> Result<(Device, EngineDevice), LoadError> {
    match choice {
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Cuda(ordinal) => cuda(ordinal),
        DeviceChoice::Auto if cfg!(feature = "cuda") => Ok(cuda(0).unwrap_or_else(|error| {
            // To the worker's log; what is used instead is in the model's description.
            eprintln!("no GPU is used: {error}");
            cpu()
        })),
        DeviceChoice::Auto => Ok(cpu()),
    }
}

/// A device that has been opened and used once, so that its driver has loaded what it loads lazily.
/// While this lives, opening the device again opens nothing new: what a jail is closed upon.
#[derive(Debug)]
pub(crate) struct OpenDevice {
    _device: Device,
}

impl OpenDevice {
    /// Opens what `choice` asks for and multiplies two small matrices on it.
    ///
    /// # Errors
    /// [`LoadError::Device`].
    pub(crate) fn warm(choice: DeviceChoice) -> Result<Self, LoadError> {
        let (device, _) = open(choice)?;
        let product = |of: DType| -> candle_core::Result<()> {
            let ones = Tensor::ones((8, 8), of, &device)?;
            ones.matmul(&ones)?.to_dtype(DType::F32)?.to_device(&Device::Cpu).map(drop)
        };
        for of in [DType::F32, DType::F16] {
            product(of).map_err(|e| LoadError::Device { what: crate::text::clean(&e.to_string(), 200) })?;
        }
        Ok(Self { _device: device })
    }
}

fn cpu() -> (Device, EngineDevice) {
    let threads = u32::try_from(candle_core::utils::get_num_threads()).unwrap_or(u32::MAX);
    (Device::Cpu, EngineDevice::Cpu { threads })
}

fn cuda(ordinal: u32) -> Result<(Device, EngineDevice), LoadError> {
    if !cfg!(feature = "cuda") {
        return Err(LoadError::Device { what: "this build has no CUDA support".to_owned() });
    }
    let index = usize::try_from(ordinal).unwrap_or(usize::MAX);
    let device = Device::new_cuda(index)
        .map_err(|e| LoadError::Device { what: crate::text::clean(&e.to_string(), 200) })?;
    Ok((device, EngineDevice::Cuda { ordinal }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_warm_after_one_use() {
        assert!(OpenDevice::warm(DeviceChoice::Cpu).is_ok());
        assert!(matches!(OpenDevice::warm(DeviceChoice::Cuda(99)), Err(LoadError::Device { .. })));
    }

    #[test]
    fn an_explicit_wish_is_never_replaced() {
        assert!(matches!(open(DeviceChoice::Cpu), Ok((_, EngineDevice::Cpu { .. }))));
        if !cfg!(feature = "cuda") {
            assert!(matches!(open(DeviceChoice::Cuda(0)), Err(LoadError::Device { .. })));
            assert!(matches!(open(DeviceChoice::Auto), Ok((_, EngineDevice::Cpu { .. }))));
        }
    }
}
