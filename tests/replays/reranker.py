"""Fixtures of the layer-wise reranker against `training.reranker`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import Gemma2Config

from tests.replays.compare import Tolerance, equal
from tests.replays.toy_tokenizer import BOS, text_of, toy_tokenizer
from training.reranker.compression import compress_passages
from training.reranker.inputs import ANSWERS, PASSAGE_TAG, QUERY_TAG, SEPARATOR, pair_inputs
from training.reranker.layerwise_model import LayerwiseReranker, score_places

Case = dict[str, Any]


def inputs(case: Case, data: Case, tolerance: Tolerance) -> None:
    prompt = case["prompt"] or ANSWERS
    tokenizer = toy_tokenizer([QUERY_TAG + case["query"], PASSAGE_TAG + case["passage"], SEPARATOR, prompt])
    (made,) = pair_inputs(
        [(case["query"], case["passage"])],
        tokenizer,
        bos=BOS,
        prompt=prompt,
        max_length=case["max_length"],
        query_max_length=case["query_max_length"],
    )
    equal(text_of(made.ids, tokenizer), case["final_text"], "final_text")
    equal(len(made.ids), case["total_tokens"], "total_tokens")
    equal(made.query_length, case["query_length"], "query_length")
    equal(made.prompt_length, case["prompt_length"], "prompt_length")
    equal(made.padded_length, case["padded_length"], "padded_length")
    mask = [1] * len(made.ids) + [0] * (made.padded_length - len(made.ids))
    equal(mask, case["attention_mask"], "attention_mask")


def token_compression(case: Case, data: Case, tolerance: Tolerance) -> None:
    hidden, mask = torch.tensor(case["hidden_states"], dtype=torch.float64), torch.tensor(case["attention_mask"])
    query, prompt = torch.tensor(case["query_lengths"]), torch.tensor(case["prompt_lengths"])
    hidden = hidden[:, : mask.shape[1]]
    states, kept = compress_passages(hidden, mask, query, prompt, case["compress_ratio"])
    tolerance.close(states, case["new_hidden_states"], "new_hidden_states")
    equal(kept.tolist(), case["new_attention_mask"], "new_attention_mask")
    equal((kept.sum(1) - query - prompt).tolist(), case["new_passage_lengths"], "new_passage_lengths")
    equal(list(range(states.shape[1])), case["new_position_ids"], "new_position_ids")


def score_pooling(case: Case, data: Case, tolerance: Tolerance) -> None:
    logits, mask = torch.tensor(case["logits"], dtype=torch.float64), torch.tensor(case["attention_mask"])
    scores = logits[torch.arange(len(logits)), score_places(mask)]
    tolerance.close(scores, case["scores"], "scores")
    tolerance.close(scores.sigmoid(), case["normalized"], "normalized")


def tiny_model(case: Case, data: Case, tolerance: Tolerance) -> None:
    model = _tiny_model(data)
    seen: list[int] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    given = [torch.tensor(data[name]) for name in ("input_ids", "attention_mask", "query_lengths", "prompt_lengths")]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers without a head
        scores = model(
            *given,
            cutoff_layers=case["cutoff_layers"],
            compress_layers=case["compress_layers"],
            compress_ratio=case["compress_ratio"],
        )
    equal(list(scores), case["output_layers_in_order"], "output_layers_in_order")
    equal(list(range(len(seen))), case["layers_run"][: len(seen)], "layers_run")
    equal(len(seen), max(case["accepted_cutoff_layers"]), "number of layers run")
    equal(seen, case["length_at_layer"][: len(seen)], "length_at_layer")
    for (layer, ours), theirs in zip(scores.items(), case["scores_head_by_layer"], strict=True):
        tolerance.close(ours, theirs, f"scores after layer {layer}")


def _tiny_model(data: Case) -> LayerwiseReranker:
    settings = dict(data["config"])
    start_layer, layer_sep = settings.pop("start_layer"), settings.pop("layer_sep")
    amplitude, phase = settings.pop("amplitude"), settings.pop("phase")
    settings.pop("attention")
    rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    config = Gemma2Config(**settings, rope_parameters=rope)
    config._attn_implementation = "eager"
    model = LayerwiseReranker(config, start_layer=start_layer, layer_sep=layer_sep).double().eval()
    state = {}
    named = zip(data["parameter_names"], data["parameter_shapes"], strict=True)
    for number, (name, shape) in enumerate(named):
        flat = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
        state[name] = (amplitude * torch.sin(0.9 * flat + 1.7 * number + phase)).view(shape)
    model.load_state_dict(state)
    return model


KINDS = {
    "reranker_inputs": inputs,
    "reranker_token_compression": token_compression,
    "reranker_score_pooling": score_pooling,
    "reranker_tiny_model": tiny_model,
}
