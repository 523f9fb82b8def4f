//! The layer of named descriptors: socket, model (or nothing), log.
//!
//! Owns: closing everything that a careless parent may have left open. Never: touches the three that
//! the worker is given. Called first by [`super::start`].

use super::layers::Layer;
use super::{JailError, sys};

/// Leaves descriptors 0, 1 and 2 open and no other.
pub(super) fn keep_the_standard_three() -> Result<(), JailError> {
    sys::close_inherited()
        .map_err(|source| JailError::new(Layer::Descriptors, "closing inherited descriptors", source))
}
