"""Fixtures of in-context embedding models against `drama_models` and `training`."""

from __future__ import annotations

from typing import Any

import numpy as np

from drama_models.pooling import finish, pool
from drama_models.prompts import (
    IN_CONTEXT,
    INSTRUCTED,
    InContextExample,
    InContextPrompter,
    examples_prefix,
    prompted_limit,
    query_limit,
)
from tests.replays.compare import Tolerance, equal
from tests.replays.toy_tokenizer import text_of, toy_tokenizer

Case = dict[str, Any]


def inference_prompts(case: Case, data: Case, tolerance: Tolerance) -> None:
    if "passage" in case:
        _plain_text(case["passage"], case)
        return
    prompt = IN_CONTEXT.before(case["instruction"])
    examples = [InContextExample.of(example, number) for number, example in enumerate(case["examples"] or [])]
    prefix = examples_prefix(examples, prompt, IN_CONTEXT)
    tokenizer = toy_tokenizer([prefix, prompt, case["query"], IN_CONTEXT.end])
    equal(prefix, case["prefix"], "prefix")
    equal(query_limit(case["max_length"], IN_CONTEXT, tokenizer), case["query_budget_tokens"], "query_budget_tokens")
    equal(
        prompted_limit(prefix, case["max_length"], IN_CONTEXT, tokenizer), case["final_max_length"], "final_max_length"
    )
    prompter = InContextPrompter(tokenizer, IN_CONTEXT, prompt, prefix, case["max_length"])
    ids, _ = prompter.encode([case["query"]])
    equal(text_of(ids[0], tokenizer), case["final_text"], "final_text")
    equal(len(ids[0]), case["final_token_count"], "final_token_count")


def gemma2_prompts(case: Case, data: Case, tolerance: Tolerance) -> None:
    before = INSTRUCTED.before(case["instruction"]) if case["role"] == "query" else ""
    _plain_text(before + case["text"], case)


def _plain_text(text: str, case: Case) -> None:
    tokenizer = toy_tokenizer([text])
    tokenizer.enable_truncation(case["max_length"])
    ids = tokenizer.encode(text).ids
    equal(text_of(ids, tokenizer), case["final_text"], "final_text")
    equal(len(ids), case["final_token_count"], "final_token_count")


def pooling(case: Case, data: Case, tolerance: Tolerance) -> None:
    hidden, mask = np.array(case["hidden_states"]), np.array(case["attention_mask"])
    last = pool(hidden, mask, "last")
    tolerance.close(last, case["last_token"], "last_token")
    tolerance.close(finish(last, None, normalise=True), case["last_token_normalized"], "last_token_normalized")
    tolerance.close(pool(hidden, mask, "mean"), case["mean"], "mean")
    # the reference takes the first position, be it padding or not; ours takes the first real token
    tolerance.close(pool(hidden, np.ones_like(mask), "cls"), case["first_token"], "first_token")


KINDS = {
    "icl_inference_prompts": inference_prompts,
    "icl_gemma2_prompts": gemma2_prompts,
    "icl_pooling": pooling,
}
