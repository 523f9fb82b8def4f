"""nearest-lines: finds the lines of a text that come nearest to a question and asks a model about them.

Input, as JSON: {"query": "...", "text": "..." or "lines": ["...", ...], "k": 3}.
Output, as JSON: {"nearest": [{"line": "...", "number": 7, "score": 0.61}, ...], "answer": "..."}.

The job names two models: `embed`, a sentence encoder, and `chat`, a language model.
"""

import heapq
import json

import wit_world
from componentize_py_types import Err
from wit_world.imports import embeddings, llm, report

# Texts in one call of `embed`: the host takes at most 256, and small batches show progress.
BATCH = 64
# More lines than this are refused: they would take minutes.
MAX_LINES = 10_000
# The longest answer, in tokens.
MAX_TOKENS = 96


class WitWorld(wit_world.WitWorld):
    def run(self, input: bytes) -> bytes:
        query, lines, k = parse(input)
        try:
            nearest = nearest_lines(query, lines, k)
            answer = ask(query, [found["line"] for found in nearest])
        except Err as why:
            kind = type(why.value).__name__.removeprefix("Error_")
            raise Err(f"a model failed ({kind}): {why.value.value}") from why
        return json.dumps({"nearest": nearest, "answer": answer}).encode()


def parse(input: bytes) -> tuple[str, list[tuple[int, str]], int]:
    """The question, the lines that are not empty with their numbers from 1, and how many to find."""
    try:
        job = json.loads(input)
        query = job["query"]
        lines = job["lines"] if "lines" in job else job["text"].splitlines()
        k = job.get("k", 3)
        ok = isinstance(query, str) and query.strip() and isinstance(k, int) and k >= 1
        ok = ok and isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as why:
        raise Err(f"the input is not the JSON that this job takes: {why}") from why
    if not ok:
        raise Err('the input must be {"query": text, "text": text or "lines": [text, ...], "k": 1 or more}')
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(numbered) <= MAX_LINES:
        raise Err(f"there are {len(numbered)} lines; this job takes 1 to {MAX_LINES}")
    return query, numbered, k


def nearest_lines(query: str, lines: list[tuple[int, str]], k: int) -> list[dict]:
    """The `k` lines most like `query`, the nearest first; of equals, the earlier."""
    [wanted] = embeddings.embed("embed", [query])
    scored = []
    for begin in range(0, len(lines), BATCH):
        batch = lines[begin : begin + BATCH]
        vectors = embeddings.embed("embed", [line for _, line in batch])
        # All vectors have length one, so their product is the cosine of the angle between them.
        for (number, line), vector in zip(batch, vectors):
            score = sum(a * b for a, b in zip(wanted, vector))
            scored.append({"line": line, "number": number, "score": round(score, 4)})
        report.progress(700 * (begin + len(batch)) // len(lines), "embedding the lines")
    return heapq.nsmallest(k, scored, key=lambda found: (-found["score"], found["number"]))


def ask(query: str, lines: list[str]) -> str:
    """What the language model answers to `query`, given only `lines`."""
    notes = "\n".join(f"- {line}" for line in lines)
    turns = [
        llm.Message(llm.Role.SYSTEM, "Answer in one or two sentences, from the notes only."),
        llm.Message(llm.Role.USER, f"Notes:\n{notes}\n\nQuestion: {query}"),
    ]
    report.progress(750, "asking the model")
    text, tokens = "", 0
    with llm.Session.open("chat", llm.Sampling(temperature_milli=0, top_p_milli=1_000, seed=0)) as session:
        session.prefill_chat(turns)
        while tokens < MAX_TOKENS:
            chunk = session.step(min(16, MAX_TOKENS - tokens))
            text += chunk.text
            tokens += len(chunk.tokens)
            if chunk.finish is not None:
                break
    return text.strip()
