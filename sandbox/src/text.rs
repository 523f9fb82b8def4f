//! Strangers' text made fit for a message, a log line or a terminal.
//!
//! Owns: cutting and cleaning. Never: decides what is shown. Called by the engine (names and
//! complaints out of a model file) and by the supervisor (a worker's log).

use std::any::Any;

/// At most `max` bytes of `text`, with control characters replaced by spaces: a name out of a model
/// file must not move a terminal's cursor or break a log line.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let cut = text.get(..text.floor_char_boundary(max)).unwrap_or_default();
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a caught panic says, cut and cleaned.
pub(crate) fn panic_words(panic: &(dyn Any + Send)) -> String {
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no words");
    clean(words, 200)
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn cuts_at_a_character_and_drops_control_bytes() {
        assert_eq!(clean("a\u{1b}[2Jb\n", 100), "a [2Jb ");
        assert_eq!(clean("aé", 2), "a");
        assert_eq!(clean("", 0), "");
    }
}
