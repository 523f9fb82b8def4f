//! A conversation as the text that the model was trained to continue.
//!
//! Owns: the chat template out of the model file, run with a budget, and the two fallbacks when the
//! file has none. Never: reads files (there is no loader), reads a clock, or renders without a
//! bound on steps, memory and output. Called by [`super::generate`].

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use potluck_protocol::job::ChatMessage;
use potluck_protocol::limits::MAX_JOB_BYTES;
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use super::error::LoadError;
use super::gguf::Header;
use super::tokens::Vocabulary;
use crate::text;

/// The longest template, in bytes; real ones are below 20 KiB.
const MAX_TEMPLATE_BYTES: usize = 256 * 1024;
/// The longest prompt, in bytes: the largest job and as much again for the template's own text.
const MAX_PROMPT_BYTES: usize = 2 * MAX_JOB_BYTES;
/// Steps of one rendering: minijinja charges one for an instruction and one for each 64 bytes that
/// it makes, so this also bounds its memory to about 64 MB.
const FUEL: u64 = 1_000_000;
const NAME: &str = "chat";

/// Why a conversation does not become a prompt. Fault: renter, or whoever wrote the template.
#[derive(Debug, Clone, PartialEq, Eq, ThisError, Serialize, Deserialize)]
pub enum TemplateError {
    /// The template raised an exception of its own.
    #[error("{message}")]
    Refused {
        /// The template's words.
        message: String,
    },
    /// The prompt or the work to make it is past its bound.
    #[error("it takes more than the allowed work or {limit} bytes to render")]
    TooLong {
        /// The largest prompt in bytes.
        limit: u64,
    },
    /// The template failed.
    #[error("it failed: {what}")]
    Failed {
        /// Why.
        what: String,
    },
}

/// How conversations are written for one model.
pub(crate) struct ChatTemplate {
    kind: Kind,
}

enum Kind {
    /// The file's own template, parsed.
    File { environment: Box<Environment<'static>>, bos: String, eos: String },
    /// `<|im_start|>role ... <|im_end|>`.
    ChatMl,
    /// Messages as paragraphs: for models that were never taught turns.
    Plain,
}

impl ChatTemplate {
    /// Takes the template out of the header, or falls back to what the vocabulary suggests.
    ///
    /// # Errors
    /// [`LoadError`] when the file's template is too long or is no template.
    pub(crate) fn read(header: &Header, vocabulary: &Vocabulary) -> Result<Self, LoadError> {
        let Some(source) = header.text("tokenizer.chat_template") else {
            let chat_ml = vocabulary.has_control("<|im_start|>") && vocabulary.has_control("<|im_end|>");
            return Ok(Self { kind: if chat_ml { Kind::ChatMl } else { Kind::Plain } });
        };
        Self::parse(source, vocabulary.bos(), vocabulary.eos())
    }

    fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, LoadError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let limit = u64::try_from(MAX_TEMPLATE_BYTES).unwrap_or(u64::MAX);
            return Err(LoadError::TooLarge { what: "chat template".to_owned(), limit });
        }
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| LoadError::Engine { what: text::clean(&e.to_string(), 200) })?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        // As the library that the templates were written for sets them.
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| LoadError::Corrupt {
            what: format!("chat template: {}", text::clean(&e.to_string(), 200)),
        })?;
        let kind =
            Kind::File { environment: Box::new(environment), bos: bos.to_owned(), eos: eos.to_owned() };
        Ok(Self { kind })
    }

    /// The prompt: the conversation, and the opening of the model's own turn.
    ///
    /// # Errors
    /// [`TemplateError`]; nothing past the bounds is ever built.
    pub(crate) fn render(&self, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        match &self.kind {
            Kind::File { environment, bos, eos } => render_file(environment, messages, bos, eos),
            Kind::ChatMl => {
                let mut prompt = String::new();
                for message in messages {
                    prompt +=
                        &format!("<|im_start|>{}\n{}<|im_end|>\n", message.role.name(), message.content);
                }
                Ok(prompt + "<|im_start|>assistant\n")
            }
            Kind::Plain => {
                let mut prompt = String::new();
                for message in messages {
                    prompt += &message.content;
                    prompt += "\n\n";
                }
                Ok(prompt)
            }
        }
    }
}

/// What templates call to refuse a conversation.
fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
}

/// Marks an error as the template's own word.
#[derive(Debug, ThisError)]
#[error("raised by the template")]
struct Raised;

fn render_file(
    environment: &Environment<'static>,
    messages: &[ChatMessage],
    bos: &str,
    eos: &str,
) -> Result<String, TemplateError> {
    let turns: Vec<_> = messages
        .iter()
        .map(|message| context! { role => message.role.name(), content => message.content.as_str() })
        .collect();
    let values = context! {
        messages => turns,
        add_generation_prompt => true,
        bos_token => bos,
        eos_token => eos,
    };
    let mut prompt = Bounded { bytes: Vec::new() };
    let template = environment.get_template(NAME).map_err(|e| failure(&e))?;
    template.render_captured_to(values, &mut prompt).map_err(|e| failure(&e))?;
    String::from_utf8(prompt.bytes).map_err(|_| TemplateError::Failed { what: "not text".to_owned() })
}

fn failure(error: &Error) -> TemplateError {
    use std::error::Error as _;
    let limit = u64::try_from(MAX_PROMPT_BYTES).unwrap_or(u64::MAX);
    let shown = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.kind() {
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => TemplateError::TooLong { limit },
        _ if error.source().is_some_and(|s| s.is::<Raised>()) => {
            TemplateError::Refused { message: text::clean(&shown, 200) }
        }
        _ => TemplateError::Failed { what: text::clean(&shown, 200) },
    }
}

/// A buffer that takes no more than the longest prompt.
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(chunk.len()) > MAX_PROMPT_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use potluck_protocol::job::Role;

    use super::*;

    fn say(role: Role, content: &str) -> ChatMessage {
        ChatMessage { role, content: content.into() }
    }

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        ChatTemplate::parse(source, "<s>", "</s>").unwrap().render(messages)
    }

    #[test]
    fn a_template_sees_what_it_expects() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\
                      [{{ m.content.strip() }}]{% endif %}\n{% endfor %}\
                      {% if add_generation_prompt %}>{% endif %}{{ eos_token }}";
        assert_eq!(render(source, &[say(Role::User, " a<b ")]).unwrap(), "<s>[a<b]></s>");
    }

    #[test]
    fn a_template_may_refuse() {
        let source = "{{ raise_exception('roles must alternate') }}";
        assert_eq!(
            render(source, &[]),
            Err(TemplateError::Refused { message: "roles must alternate".into() })
        );
    }

    #[test]
    fn endless_and_huge_templates_run_out() {
        let spin = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(spin, &[]), Err(TemplateError::TooLong { .. })));
        let double = format!("{{% set x = 'a' %}}{}{{{{ x }}}}", "{% set x = x ~ x %}".repeat(60));
        assert!(matches!(render(&double, &[]), Err(TemplateError::TooLong { .. })));
        let flood = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        assert!(matches!(
            render(flood, &[say(Role::User, &"x".repeat(4096))]),
            Err(TemplateError::TooLong { .. })
        ));
        let repeat = "{{ 'x' * 1000000000000 }}";
        assert!(render(repeat, &[]).is_err());
    }

    #[test]
    fn a_template_cannot_reach_files() {
        for source in ["{% include '/etc/passwd' %}", "{% import 'x' as y %}{{ y }}"] {
            assert!(matches!(render(source, &[]), Err(TemplateError::Failed { .. })));
        }
    }

    #[test]
    fn nonsense_and_bulk_are_refused_at_load() {
        assert!(matches!(ChatTemplate::parse("{% for %}", "", ""), Err(LoadError::Corrupt { .. })));
        let bulk = "x".repeat(MAX_TEMPLATE_BYTES + 1);
        assert!(matches!(ChatTemplate::parse(&bulk, "", ""), Err(LoadError::TooLarge { .. })));
        let deep = format!("{}{}", "{{ (", "(".repeat(100_000));
        assert!(matches!(ChatTemplate::parse(&deep, "", ""), Err(LoadError::Corrupt { .. })));
    }
}
