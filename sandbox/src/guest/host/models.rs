//! Which models a guest may call, and what it hears when one does not answer.
//!
//! Owns: the names. Never: calls one. Called by the imports that take a model's name.

use potluck_protocol::id::ContentHash;

use super::bindings::potluck::job::errors::Error;
use crate::guest::wire::GuestModel;
use crate::tensor::ModelCallError;
use crate::text;

/// The models that the job names, in its order.
#[derive(Debug)]
pub(super) struct Models(Vec<GuestModel>);

impl Models {
    pub(super) fn new(models: Vec<GuestModel>) -> Self {
        Self(models)
    }

    /// The place of the model with this name in the job, or with this hash (`blake3:<hex>`).
    pub(super) fn find(&self, name: &str) -> Option<u8> {
        let by_name = self.0.iter().position(|model| model.name == name);
        let by_hash = || {
            let hash: ContentHash = name.parse().ok()?;
            self.0.iter().position(|model| model.hash == hash)
        };
        by_name.or_else(by_hash).and_then(|place| u8::try_from(place).ok())
    }

    /// As [`Self::find`], with the guest's own error.
    pub(super) fn named(&self, name: &str) -> Result<u8, Error> {
        self.find(name).ok_or_else(|| Error::UnknownModel(text::clean(name, 100)))
    }

    /// Every place, with the two names under which it is found.
    pub(super) fn names(&self) -> impl Iterator<Item = (u8, [String; 2])> {
        (0u8..).zip(&self.0).map(|(place, model)| (place, [model.name.clone(), model.hash.to_string()]))
    }
}

/// What the guest hears.
impl From<ModelCallError> for Error {
    fn from(error: ModelCallError) -> Self {
        let words = error.to_string();
        match error {
            ModelCallError::UnknownSession | ModelCallError::InvalidInput { .. } => Self::InvalidInput(words),
            ModelCallError::TooManySessions | ModelCallError::ContextFull => Self::LimitReached(words),
            ModelCallError::NotSupported { .. } => Self::NotSupported(words),
            ModelCallError::Engine { .. } | ModelCallError::Cancelled | ModelCallError::ModelLost => {
                Self::Engine(words)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_by_its_name_or_its_hash() {
        let hashes = [ContentHash::of(b"one"), ContentHash::of(b"two")];
        let named = |name: &str, hash| GuestModel { name: name.into(), hash };
        // A name that looks like the other one's hash is a name first.
        let trick = hashes[0].to_string();
        let models = Models::new(vec![named("writer", hashes[0]), named(&trick, hashes[1])]);
        assert_eq!(models.find("writer"), Some(0));
        assert_eq!(models.find(&trick), Some(1));
        assert_eq!(models.find(&hashes[1].to_string()), Some(1));
        assert_eq!(models.find(&ContentHash::of(b"three").to_string()), None);
        assert_eq!(models.find(""), None);
        assert!(matches!(models.named("a\nb"), Err(Error::UnknownModel(name)) if name == "a b"));
    }
}
