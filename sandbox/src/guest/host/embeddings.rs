//! `potluck:job/embeddings`: sentence vectors.
//!
//! Owns: the shape in which a guest gets them. Never: computes one. Called by the guest.

use super::Host;
use super::bindings::potluck::job::{embeddings, errors};
use super::llm::given;
use crate::tensor::{ModelReply, ModelRequest};

impl embeddings::Host for Host {
    fn embed(
        &mut self,
        model: String,
        texts: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<Vec<f32>>, errors::Error>> {
        let model = match self.models.named(&model) {
            Ok(model) => model,
            Err(unknown) => return Ok(Err(unknown)),
        };
        let count = texts.len();
        let answer = self.outbox.ask(model, ModelRequest::Embed { texts })?;
        Ok(given(answer, |reply| match reply {
            ModelReply::Vectors { dim, rows, data } => rows_of(count, dim, rows, &data),
            _ => None,
        }))
    }
}

/// One vector for each of `count` texts; `None` when there are more or fewer.
fn rows_of(count: usize, dim: u32, rows: u32, data: &[f32]) -> Option<Vec<Vec<f32>>> {
    let dim = usize::try_from(dim).ok().filter(|dim| *dim > 0)?;
    let fits = usize::try_from(rows) == Ok(count) && count.checked_mul(dim) == Some(data.len());
    fits.then(|| data.chunks_exact(dim).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::rows_of;

    #[test]
    fn as_many_vectors_as_texts() {
        assert_eq!(rows_of(2, 1, 2, &[1.0, 2.0]), Some(vec![vec![1.0], vec![2.0]]));
        assert_eq!(rows_of(1, 2, 2, &[1.0; 4]), None);
        assert_eq!(rows_of(2, 2, 2, &[1.0; 3]), None);
        assert_eq!(rows_of(1, 0, 1, &[]), None);
    }
}
