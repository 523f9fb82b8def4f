"""my-job: counts a text and, when it is given a model, asks it for one sentence about the text.

Raise `Err("...")` to fail with a message for the renter; any other exception is a trap, and its
traceback is in the job's log.
"""

import json

import wit_world
from componentize_py_types import Err
from wit_world.imports import errors, llm, report

# The name that the job gives its model: potluck exec ... --model chat=smollm2-135m
MODEL = "chat"
# How much of the text the model reads, in characters: a small model's context is short.
MAX_READ = 2_000
# The longest summary, in tokens.
MAX_TOKENS = 64


class WitWorld(wit_world.WitWorld):
    def run(self, input: bytes) -> bytes:
        try:
            text = input.decode("utf-8")
        except UnicodeDecodeError as why:
            raise Err("the input is not UTF-8 text") from why
        report.progress(100, "counting")
        counts = {
            "lines": input.count(b"\n") + (input != b"" and not input.endswith(b"\n")),
            "words": len(input.split()),
            "bytes": len(input),
        }
        return json.dumps(counts | {"summary": summary(text)}).encode()


def summary(text: str) -> str | None:
    """One sentence about `text`; None when the job has no model."""
    try:
        session = llm.Session.open(MODEL, llm.Sampling(temperature_milli=0, top_p_milli=1_000, seed=0))
    except Err as why:
        if isinstance(why.value, errors.Error_UnknownModel):
            report.log(f"no model is named {MODEL}: counted only")
            return None
        raise failed(why) from why
    with session:
        try:
            ask = "Say in one short sentence what this text is about:\n\n" + text[:MAX_READ]
            session.prefill_chat([llm.Message(llm.Role.USER, ask)])
            return answer(session)
        except Err as why:
            raise failed(why) from why


def answer(session: llm.Session) -> str:
    """What the model says, at most MAX_TOKENS long."""
    text, tokens = "", 0
    while tokens < MAX_TOKENS:
        chunk = session.step(min(16, MAX_TOKENS - tokens))
        text += chunk.text
        tokens += len(chunk.tokens)
        report.progress(100 + 900 * tokens // MAX_TOKENS, "asking the model")
        if chunk.finish is not None:
            break
    return text.strip()


def failed(why: Err) -> Err:
    """The model's error as the job's own."""
    kind = type(why.value).__name__.removeprefix("Error_")
    return Err(f"the model failed ({kind}): {why.value.value}")
