/* my-job: counts a text and, when it is given a model, asks it for one sentence about the text.
 *
 * What the host gives us (`input`, a chunk's text) is ours to free; what we return is freed for us. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"

/* The name that the job gives its model: potluck exec ... --model chat=smollm2-135m */
static const char MODEL[] = "chat";
static const char ASK[] = "Say in one short sentence what this text is about:\n\n";
/* How much of the text the model reads, in bytes: a small model's context is short. */
static const size_t MAX_READ = 2000;
/* The longest summary, in tokens. */
static const size_t MAX_TOKENS = 64;

/* A text that grows; out of memory is a trap. */
typedef struct {
    char *at;
    size_t length;
} text_t;

static void append(text_t *text, const void *bytes, size_t length) {
    char *grown = realloc(text->at, text->length + length + 1);
    if (grown == NULL)
        abort();
    memcpy(grown + text->length, bytes, length);
    text->at = grown;
    text->length += length;
    grown[text->length] = 0;
}

static void append_string(text_t *text, const char *string) {
    append(text, string, strlen(string));
}

/* As a JSON string. */
static void append_json(text_t *text, const char *bytes, size_t length) {
    append_string(text, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        char escaped[8];
        if (byte == '"' || byte == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", byte);
        else if (byte < 0x20)
            snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        else
            snprintf(escaped, sizeof escaped, "%c", byte);
        append_string(text, escaped);
    }
    append_string(text, "\"");
}

static bool is_space(unsigned char byte) {
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

/* How many bytes the UTF-8 character at `at` has; 0 when it is none. */
static size_t utf8_length(const unsigned char *at, size_t left) {
    static const struct {
        unsigned char mask, lead;
        unsigned least;
    } FORMS[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    for (size_t length = 1; length <= 4 && length <= left; length++) {
        if ((at[0] & FORMS[length - 1].mask) != FORMS[length - 1].lead)
            continue;
        unsigned code = at[0] & (unsigned char)~FORMS[length - 1].mask;
        for (size_t i = 1; i < length; i++) {
            if ((at[i] & 0xc0) != 0x80)
                return 0;
            code = code << 6 | (at[i] & 0x3f);
        }
        bool surrogate = code >= 0xd800 && code <= 0xdfff;
        return code < FORMS[length - 1].least || code > 0x10ffff || surrogate ? 0 : length;
    }
    return 0;
}

/* The longest beginning of `input` that is whole characters and at most `limit` bytes long. */
static size_t whole_characters(const job_list_u8_t *input, size_t limit) {
    size_t at = 0;
    for (size_t step; at < input->len; at += step) {
        step = utf8_length(input->ptr + at, input->len - at);
        if (step == 0 || at + step > limit)
            break;
    }
    return at;
}

static void progress(size_t permille, const char *note) {
    job_string_t text;
    job_string_set(&text, note);
    potluck_job_report_progress((uint32_t)permille, &text);
}

/* The model's error as the job's own; always false, so that a caller can return it. */
static bool fail(potluck_job_llm_error_t *why, job_string_t *err) {
    static const char *const KINDS[] = {"UnknownModel", "InvalidInput", "LimitReached", "NotSupported",
                                        "Engine"};
    text_t text = {0};
    append_string(&text, "the model failed (");
    append_string(&text, KINDS[why->tag]);
    append_string(&text, "): ");
    append(&text, why->val.engine.ptr, why->val.engine.len);
    potluck_job_errors_error_free(why);
    *err = (job_string_t){(uint8_t *)text.at, text.length};
    return false;
}

/* What the model says, at most MAX_TOKENS long. */
static bool answer(potluck_job_llm_borrow_session_t session, text_t *said, job_string_t *err) {
    potluck_job_llm_error_t why;
    bool over = false;
    for (size_t tokens = 0; tokens < MAX_TOKENS && !over;) {
        potluck_job_llm_chunk_t chunk;
        size_t wanted = MAX_TOKENS - tokens < 16 ? MAX_TOKENS - tokens : 16;
        if (!potluck_job_llm_method_session_step(session, (uint32_t)wanted, &chunk, &why))
            return fail(&why, err);
        append(said, chunk.text.ptr, chunk.text.len);
        tokens += chunk.tokens.len;
        over = chunk.finish.is_some;
        potluck_job_llm_chunk_free(&chunk);
        progress(100 + 900 * tokens / MAX_TOKENS, "asking the model");
    }
    return true;
}

/* Appends one sentence about the input, as JSON; `null` when the job has no model. */
static bool summary(const job_list_u8_t *input, text_t *output, job_string_t *err) {
    potluck_job_llm_sampling_t how = {.temperature_milli = 0, .top_p_milli = 1000, .seed = 0};
    potluck_job_llm_own_session_t session;
    potluck_job_llm_error_t why;
    job_string_t model;
    job_string_set(&model, MODEL);
    if (!potluck_job_llm_static_session_open(&model, &how, &session, &why)) {
        if (why.tag != POTLUCK_JOB_ERRORS_ERROR_UNKNOWN_MODEL)
            return fail(&why, err);
        potluck_job_errors_error_free(&why);
        job_string_t line;
        job_string_set(&line, "no model is named chat: counted only");
        potluck_job_report_log(&line);
        append_string(output, "null");
        return true;
    }
    potluck_job_llm_borrow_session_t borrowed = potluck_job_llm_borrow_session(session);
    text_t ask = {0}, said = {0};
    append_string(&ask, ASK);
    append(&ask, input->ptr, whole_characters(input, MAX_READ));
    potluck_job_llm_message_t message = {POTLUCK_JOB_LLM_ROLE_USER, {(uint8_t *)ask.at, ask.length}};
    potluck_job_llm_list_message_t messages = {&message, 1};
    uint32_t held;
    bool ok = potluck_job_llm_method_session_prefill_chat(borrowed, &messages, &held, &why)
                  ? answer(borrowed, &said, err)
                  : fail(&why, err);
    if (ok) {
        size_t from = 0;
        while (from < said.length && is_space((unsigned char)said.at[from]))
            from++;
        while (said.length > from && is_space((unsigned char)said.at[said.length - 1]))
            said.length--;
        append_json(output, said.at + from, said.length - from);
    }
    free(ask.at);
    free(said.at);
    potluck_job_llm_session_drop_own(session);
    return ok;
}

bool exports_job_run(job_list_u8_t *input, job_list_u8_t *ret, job_string_t *err) {
    if (whole_characters(input, input->len) != input->len) {
        job_string_dup(err, "the input is not UTF-8 text");
        job_list_u8_free(input);
        return false;
    }
    progress(100, "counting");
    size_t lines = 0, words = 0;
    bool in_word = false;
    for (size_t i = 0; i < input->len; i++) {
        bool space = is_space(input->ptr[i]);
        words += !space && !in_word;
        in_word = !space;
        lines += input->ptr[i] == '\n';
    }
    lines += input->len > 0 && input->ptr[input->len - 1] != '\n';
    text_t output = {0};
    char counts[128];
    snprintf(counts, sizeof counts, "{\"lines\": %zu, \"words\": %zu, \"bytes\": %zu, \"summary\": ", lines,
             words, input->len);
    append_string(&output, counts);
    bool ok = summary(input, &output, err);
    job_list_u8_free(input);
    if (!ok) {
        free(output.at);
        return false;
    }
    append_string(&output, "}");
    *ret = (job_list_u8_t){(uint8_t *)output.at, output.length};
    return true;
}
