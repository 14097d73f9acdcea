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
    InstructFormat,
    examples_prefix,
    prompted_limit,
    query_limit,
    token_ids,
)
from tests.replays.compare import Tolerance, equal
from tests.replays.toy_tokenizer import text_of, toy_tokenizer
from training.data.batches import lay_out
from training.data.datasets import task_named
from training.prompts import (
    LIKE_QUERIES,
    ExampleDraws,
    InContextSettings,
    document_texts,
    example_responses,
    query_texts,
)

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


def training_prompts(case: Case, data: Case, tolerance: Tolerance) -> None:
    given, draws, rows = case["params"], case["draws"], case["rows"]
    instruction, _, query_tag = given["query_format"].partition("{}")
    tags = InstructFormat(instruction=instruction, query=query_tag.removesuffix("{}"), response=given["response_tag"])
    settings = InContextSettings(
        query_max_length=given["query_max_len"],
        document_max_length=given["passage_max_len"],
        example_query_max_length=given["example_query_max_len"],
        example_document_max_length=given["example_passage_max_len"],
        tags=tags,
    )
    task = task_named(case["type"] or "retrieval")
    queries = [tags.before(row["prompt"]) + row["query"] for row in rows]
    positives = [row["pos"][drawn] for row, drawn in zip(rows, draws["positive_index"], strict=True)]
    responses = example_responses(task, positives, [row.get("category", "") for row in rows])
    negatives = [[row["neg"][n] for n in drawn] for row, drawn in zip(rows, draws["negative_indices"], strict=True)]
    groups = [[first, *rest] for first, rest in zip(positives, negatives, strict=True)]
    documents, _, _ = lay_out(groups, given["group_size"], "")
    examples = ExampleDraws(counts=draws["number_of_examples"], rows=[drawn or [] for drawn in draws["sampled_rows"]])
    known = [*queries, *documents, *responses, tags.end, "\n\n"]
    tokenizer = toy_tokenizer(known)
    texts = query_texts(queries, responses, examples, tokenizer, settings)
    if task.name in LIKE_QUERIES:
        written = (
            document_texts(group, row["prompt"], tokenizer, settings) for row, group in zip(rows, groups, strict=True)
        )
        documents = [text for group in written for text in group]
    if given["use_teacher_scores"]:
        scored = zip(rows, draws["positive_index"], draws["negative_indices"], strict=True)
        scores = [[row["pos_scores"][p], *(row["neg_scores"][n] for n in drawn)] for row, p, drawn in scored]
        tolerance.close(lay_out(scores, given["group_size"], None)[0], case["teacher_scores"], "teacher_scores")
    equal(texts, case["queries"], "queries")
    equal(documents, case["passages"], "passages")
    for ours, limit, key in (
        (texts, settings.query_max_length, "final_queries"),
        (documents, settings.document_max_length, "final_passages"),
    ):
        equal([text_of(ids, tokenizer) for ids in token_ids(ours, limit, tokenizer)], case[key], key)


def pooling(case: Case, data: Case, tolerance: Tolerance) -> None:
    hidden, mask = np.array(case["hidden_states"]), np.array(case["attention_mask"])
    last = pool(hidden, mask, "last")
    tolerance.close(last, case["last_token"], "last_token")
    tolerance.close(finish(last, None, normalise=True), case["last_token_normalized"], "last_token_normalized")
    tolerance.close(pool(hidden, mask, "mean"), case["mean"], "mean")
    # the reference takes the first position, be it padding or not; ours takes the first real token
    tolerance.close(pool(hidden, np.ones_like(mask), "cls"), case["first_token"], "first_token")


def batching(case: Case, data: Case, tolerance: Tolerance) -> None:
    task = task_named(case["type"] or "normal")
    group = task.group_size(case["configured_group_size"], case["negatives_in_first_row"])
    equal(group, case["group_size"], "group_size")
    equal(task.batch_size(case["default_batch_size"]), case["batch_size"], "batch_size")


KINDS = {
    "icl_batching": batching,
    "icl_inference_prompts": inference_prompts,
    "icl_gemma2_prompts": gemma2_prompts,
    "icl_training_prompts": training_prompts,
    "icl_pooling": pooling,
}
