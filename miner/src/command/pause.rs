//! `potluckd pause` and `potluckd resume`: the owner takes the machine back, and lends it again.
//!
//! Owns: what is said of the outcome. Never: ends a process itself: the running potluckd does.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::print_line;
use crate::control::{Question, ask};
use crate::error::CommandError;

pub(super) fn pause(
    state_dir: &Path,
    now: bool,
    length: Option<Duration>,
    json: bool,
) -> Result<(), CommandError> {
    let for_ms = length.map(|length| u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    let answer = told(state_dir, Question::Pause { now, for_ms })?;
    if now && answer.get("freed_ms").is_none_or(Value::is_null) {
        return Err(CommandError::NotFreed);
    }
    print_line(&if json { answer.to_string() } else { pause_prose(&answer) });
    Ok(())
}

pub(super) fn resume(state_dir: &Path, json: bool) -> Result<(), CommandError> {
    let answer = told(state_dir, Question::Resume)?;
    print_line(&if json { answer.to_string() } else { resume_prose(&answer) });
    Ok(())
}

fn told(state_dir: &Path, question: Question) -> Result<Value, CommandError> {
    ask(state_dir, question)?.ok_or_else(|| CommandError::NotRunning { state_dir: state_dir.to_owned() })
}

fn number(answer: &Value, key: &str) -> u64 {
    answer.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn is(answer: &Value, key: &str) -> bool {
    answer.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn jobs(count: u64) -> String {
    if count == 1 { "1 job".into() } else { format!("{count} jobs") }
}

fn pause_prose(answer: &Value) -> String {
    let mut lines = vec![answer.get("words").and_then(Value::as_str).unwrap_or("paused").to_owned()];
    let left = number(answer, "jobs_left");
    if left > 0 {
        lines.push(format!("  {} let finish; `potluckd pause --now` stops them", jobs(left)));
    }
    if let Some(freed) = answer.get("freed_ms").and_then(Value::as_u64) {
        let (stopped, settled) = (number(answer, "jobs_stopped"), number(answer, "jobs_settled"));
        lines.push(format!(
            "  stopped in {} ms, memory freed in {freed} ms; {} stopped, {settled} settled",
            number(answer, "stopped_ms"),
            jobs(stopped),
        ));
    }
    lines.extend(not_kept(answer));
    lines.join("\n")
}

fn resume_prose(answer: &Value) -> String {
    let outcome = match (answer.get("state").and_then(Value::as_str), is(answer, "warm")) {
        (Some("running"), true) => {
            format!("lent again; models in memory after {} ms", number(answer, "elapsed_ms"))
        }
        (Some("running"), false) => "lent again; models are still being loaded".into(),
        (state, _) => format!("paused again meanwhile ({})", state.unwrap_or("?")),
    };
    [outcome].into_iter().chain(not_kept(answer)).collect::<Vec<_>>().join("\n")
}

fn not_kept(answer: &Value) -> Option<String> {
    let kept = is(answer, "survives_restart");
    (!kept).then(|| "  the disk refused to keep this: a restarted potluckd will not know of it".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_owner_reads_what_was_stopped_and_how_fast() {
        let now = json!({
            "words": "paused; `potluckd resume` ends it", "jobs_left": 0, "jobs_stopped": 1,
            "jobs_settled": 1, "stopped_ms": 38, "freed_ms": 120, "survives_restart": true,
        });
        assert_eq!(
            pause_prose(&now),
            "paused; `potluckd resume` ends it\n  stopped in 38 ms, memory freed in 120 ms; 1 job stopped, 1 \
             settled"
        );
        let gently = json!({"words": "pausing", "jobs_left": 2, "freed_ms": null, "survives_restart": false});
        let shown = pause_prose(&gently);
        assert!(shown.contains("2 jobs let finish") && shown.contains("the disk refused"), "{shown}");
        assert!(!shown.contains("memory"), "{shown}");
    }
}
