//! `potluck:job/llm`: conversations with a language model.
//!
//! Owns: the guest's handles to sessions. Never: holds a model or samples a token. Called by the
//! guest; every method but one asks the daemon and waits.

use potluck_protocol::job::{ChatMessage, FinishReason, Role};
use wasmtime::component::Resource;

use super::Host;
use super::bindings::potluck::job::{errors, llm};
use super::outbox::Answer;
use crate::tensor::{ModelReply, ModelRequest, Prompt};

/// One conversation, open in the model's worker.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct Session {
    model: u8,
    session: u32,
    context_tokens: u32,
}

/// A result for the guest, inside of what ends it.
type Given<T> = wasmtime::Result<Result<T, errors::Error>>;

impl Host {
    fn ask_session(
        &self,
        session: &Resource<Session>,
        request: impl FnOnce(u32) -> ModelRequest,
    ) -> wasmtime::Result<Answer> {
        let Session { model, session, .. } = *self.table.get(session)?;
        Ok(self.outbox.ask(model, request(session))?)
    }

    fn prefill_with(&self, session: &Resource<Session>, prompt: Prompt) -> Given<u32> {
        let answer = self.ask_session(session, |session| ModelRequest::Prefill { session, prompt })?;
        Ok(given(answer, |reply| match reply {
            ModelReply::Prefilled { total_tokens } => Some(total_tokens),
            _ => None,
        }))
    }
}

/// What the guest gets of `answer`.
pub(super) fn given<T>(
    answer: Answer,
    take: impl FnOnce(ModelReply) -> Option<T>,
) -> Result<T, errors::Error> {
    let other = || errors::Error::Engine("the model answered something else".into());
    take(answer?).ok_or_else(other)
}

impl errors::Host for Host {}

impl llm::Host for Host {}

impl llm::HostSession for Host {
    fn open(&mut self, model: String, how: llm::Sampling) -> Given<Resource<Session>> {
        let model = match self.models.named(&model) {
            Ok(model) => model,
            Err(unknown) => return Ok(Err(unknown)),
        };
        let llm::Sampling { temperature_milli, top_p_milli, seed } = how;
        let answer =
            self.outbox.ask(model, ModelRequest::OpenSession { temperature_milli, top_p_milli, seed })?;
        let opened = given(answer, |reply| match reply {
            ModelReply::Session { session, context_tokens } => {
                Some(Session { model, session, context_tokens })
            }
            _ => None,
        });
        Ok(match opened {
            Ok(session) => Ok(self.table.push(session)?),
            Err(error) => Err(error),
        })
    }

    fn context_tokens(&mut self, session: Resource<Session>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&session)?.context_tokens)
    }

    fn prefill(&mut self, session: Resource<Session>, text: String) -> Given<u32> {
        self.prefill_with(&session, Prompt::Text(text))
    }

    fn prefill_chat(&mut self, session: Resource<Session>, messages: Vec<llm::Message>) -> Given<u32> {
        let messages = messages.into_iter().map(|llm::Message { role, content }| ChatMessage {
            role: match role {
                llm::Role::System => Role::System,
                llm::Role::User => Role::User,
                llm::Role::Assistant => Role::Assistant,
            },
            content,
        });
        self.prefill_with(&session, Prompt::Chat(messages.collect()))
    }

    fn prefill_tokens(&mut self, session: Resource<Session>, tokens: Vec<u32>) -> Given<u32> {
        self.prefill_with(&session, Prompt::Tokens(tokens))
    }

    fn step(&mut self, session: Resource<Session>, n: u32) -> Given<llm::Chunk> {
        let answer = self.ask_session(&session, |session| ModelRequest::Step { session, tokens: n })?;
        Ok(given(answer, |reply| match reply {
            ModelReply::Stepped { tokens, text, finish } => {
                let finish = finish.map(|reason| match reason {
                    FinishReason::Stop => llm::Finish::Stop,
                    FinishReason::Length | FinishReason::Cancelled | FinishReason::Failed => {
                        llm::Finish::Length
                    }
                });
                Some(llm::Chunk { tokens, text, finish })
            }
            _ => None,
        }))
    }

    fn drop(&mut self, session: Resource<Session>) -> wasmtime::Result<()> {
        let Session { model, session, .. } = self.table.delete(session)?;
        // Whether the model's worker could still close it changes nothing for the guest.
        let _ = self.outbox.ask(model, ModelRequest::CloseSession { session })?;
        Ok(())
    }
}
