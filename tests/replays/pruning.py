"""Pruning fixtures against `pruning`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pruning.hard_concrete import (
    clamp_,
    deterministic_mask,
    expected_score,
    initial_log_alpha,
    sample,
    sparsity,
    zero_probability,
)
from pruning.kv_heads import expand_kv_heads
from pruning.lagrangian import Lagrangian, constraint_penalty, overall_sparsity, target_sparsities, warmed_up
from pruning.learn_masks import LearnMasksRecipe, mask_optimizer
from pruning.masked_model import MaskedCausalLM
from pruning.masked_weights import MaskValues, masked_parameters
from pruning.masks import Masks, expected_parameters, mask_shapes
from pruning.proportions import updated_proportions
from pruning.scaling_law import extrapolated_loss
from pruning.shape import BackboneShape, TargetShape
from pruning.slicing import renumbered, slice_tensor, sliced_config, sliced_shape
from tests.replays.compare import Tolerance, equal

Case = dict[str, Any]


def hard_concrete(case: Case, data: Case, tolerance: Tolerance) -> None:
    kind = case["kind"]
    log_alpha = torch.tensor(case.get("log_alpha", 0.0), requires_grad=kind == "sample_gradient")
    if kind in ("sample", "sample_gradient"):
        z = sample(log_alpha, torch.tensor(case["uniform"]))
        tolerance.close(z, case["z"], "z")
        if kind == "sample_gradient":
            tolerance.close(torch.autograd.grad(z.sum(), log_alpha)[0], case["grad_log_alpha"], "gradient")
    elif kind == "expected_score":
        tolerance.close(zero_probability(log_alpha), case["prob_zero"], "prob_zero")
        tolerance.close(expected_score(log_alpha), case["score"], "score")
        tolerance.close(sparsity(expected_score(log_alpha)), case["sparsity"], "sparsity")
    elif kind == "clamp":
        after = clamp_(torch.tensor(case["log_alpha_before"]))
        tolerance.close(after, case["log_alpha_after"], "log_alpha_after")
        tolerance.close(expected_score(after), case["score"], "score")
    elif kind in ("deterministic", "deterministic_rows"):
        wants_target = case.get("use_target_size", True)
        mask = deterministic_mask(log_alpha, case["target_size"] if wants_target else None)
        tolerance.close(mask, case["z"], "z")
        rows = mask if mask.ndim == 2 else mask[None]
        kept = [row.nonzero().flatten().tolist() for row in rows]
        equal(kept, case.get("kept_per_row", [case.get("kept")]), "kept")
        if "expected_zeros" in case:
            expected = zero_probability(log_alpha).sum()
            tolerance.close(expected, case["expected_zeros"], "expected_zeros")
    else:
        raise NotImplementedError(kind)


def init(case: Case, data: Case, tolerance: Tolerance) -> None:
    if case["kind"] == "initial_values":
        drawn = initial_log_alpha(torch.tensor(case["standard_normal"]))
        tolerance.close(drawn, case["log_alpha_drawn"], "log_alpha_drawn")
        clamped = clamp_(drawn.clone())
        tolerance.close(clamped, case["log_alpha_after_first_forward"], "log_alpha_after_first_forward")
        tolerance.close(expected_score(clamped), case["score"], "score")
        tolerance.close(sparsity(expected_score(clamped)), case["sparsity"], "sparsity")
        tolerance.close(deterministic_mask(clamped), case["deterministic_z"], "deterministic_z")
    elif case["kind"] == "zeros_at_init_without_target":
        clamped = clamp_(torch.full((case["size"],), 5.0))
        mask = deterministic_mask(clamped)
        equal(int((mask == 0).sum()), case["num_zeros"], "num_zeros")
        if (mask != 0).any():
            tolerance.close(mask.max(), case["kept_value"], "kept_value")
    elif case["kind"] == "sparsity_bounds":
        bounds = [sparsity(expected_score(clamp_(torch.full((1,), 10.0 * sign)))) for sign in (-1, 1)]
        tolerance.close(bounds[0], case["max_sparsity"], "max_sparsity")
        tolerance.close(bounds[1], case["min_sparsity"], "min_sparsity")
    else:
        raise NotImplementedError(case["kind"])


def _shapes(config: Case) -> tuple[BackboneShape, BackboneShape]:
    source = BackboneShape(
        hidden_size=config["hidden"],
        num_layers=config["layers"],
        num_heads=config["heads"],
        num_kv_heads=config["kv_heads"] if "kv_heads" in config else config["heads"],
        head_dim=config["head_dim"],
        intermediate_size=config["intermediate"],
    )
    wanted = config.get("target", {})
    target = TargetShape(
        hidden_size=wanted.get("hidden"),
        num_layers=wanted.get("layers"),
        num_heads=wanted.get("heads"),
        intermediate_size=wanted.get("intermediate"),
    )
    return source, source.cut_to(target)


def _targets(source: BackboneShape, target: BackboneShape) -> dict[str, float]:
    found = target_sparsities(mask_shapes(source), mask_shapes(target))
    layer = found.get("layer", 0.0)
    halves = {"head_layer": layer, "mlp": layer}  # the reference's two halves of a layer mask
    return dict.fromkeys(mask_shapes(source), 0.0) | found | halves


def expected_size(case: Case, data: Case, tolerance: Tolerance) -> None:
    source, target = _shapes(case["config"])
    scores = {name: expected_score(torch.tensor(values)) for name, values in case["log_alpha"].items()}
    targets = _targets(source, target)
    for name, score in scores.items():
        tolerance.close(score, case["scores"][name], f"scores {name}")
        tolerance.close(sparsity(score), case["sparsity"][name], f"sparsity {name}")
        tolerance.close(targets[name], case["target_sparsity"][name], f"target_sparsity {name}")
    equal(source.prunable_parameters, case["prunable_params_source"], "prunable_params_source")
    equal(target.prunable_parameters, case["prunable_params_target"], "prunable_params_target")
    overall = 1 - target.prunable_parameters / source.prunable_parameters
    tolerance.close(overall, case["overall_target_sparsity"], "overall_target_sparsity")
    tolerance.close(expected_parameters(scores, source), case["expected_params"], "expected_params")
    tolerance.close(overall_sparsity(scores, source), case["expected_overall_sparsity"], "expected_overall_sparsity")


def lagrangian(case: Case, data: Case, tolerance: Tolerance) -> None:
    if case["kind"] == "warmup_schedule":
        ours = [
            warmed_up(case["final_sparsity"], step, case["warmup_steps"], case["start_sparsity"])
            for step in case["steps"]
        ]
        tolerance.close(ours, case["targets"], "targets")
        return
    source, target = _shapes(case["config"])
    log_alpha = {name: torch.tensor(values, requires_grad=True) for name, values in case["log_alpha"].items()}
    scores = {name: expected_score(values) for name, values in log_alpha.items()}
    expected = overall_sparsity(scores, source)
    if case["kind"] == "per_dimension":
        targets = _targets(source, target)
        wanted = {name: targets[name] for name in log_alpha}
        constraint = Lagrangian(wanted, case["warmup_steps"], case["start_sparsity"])
        multipliers = {}
        for name in log_alpha:
            for order, parameters in (("1", constraint.lambda_1), ("2", constraint.lambda_2)):
                parameters[name].data.fill_(case["lambdas"][f"lambda_{order}_{name}"])
                multipliers[f"lambda_{order}_{name}"] = parameters[name]
        loss = constraint.penalty(scores, case["step"])
        now = constraint.targets_at(case["step"])
        for name, score in scores.items():
            tolerance.close(sparsity(score).mean(), case["info"][f"expected_{name}_sparsity"], f"expected {name}")
            tolerance.close(now[name], case["info"][f"target_{name}_sparsity"], f"target {name}")
        final = 1 - target.prunable_parameters / source.prunable_parameters
        goal = warmed_up(final, case["step"], case["warmup_steps"], case["start_sparsity"])
        tolerance.close(goal, case["info"]["target_sparsity"], "target_sparsity")
    else:
        multipliers = {name: torch.tensor(value, requires_grad=True) for name, value in case["lambdas"].items()}
        goal = warmed_up(case["target_sparsity"], case["step"], case["warmup_steps"], case["start_sparsity"])
        loss = constraint_penalty(expected, goal, multipliers["lambda_1"], multipliers["lambda_2"])
        tolerance.close(goal, case["info"]["target_sparsity"], "target_sparsity")
    tolerance.close(expected, case["info"]["expected_sparsity"], "expected_sparsity")
    tolerance.close(loss, case["loss"], "loss")
    if "grad_lambdas" not in case:
        return
    loss.backward()
    for name, parameter in multipliers.items():
        tolerance.close(parameter.grad, case["grad_lambdas"][name], f"gradient of {name}")
    for name, values in log_alpha.items():
        tolerance.close(values.grad, case["grad_log_alpha"][name], f"gradient of log_alpha {name}")


def optimizer(case: Case, data: Case, tolerance: Tolerance) -> None:
    source, target = _shapes(case["config"])
    masks = Masks(source, target)
    model = MaskedCausalLM(_llama(case["config"] | {"vocab": 3}), masks, case["warmup_steps"])
    _fill_masks(masks, case["log_alpha_initial"])
    targets = {name: _targets(source, target)[name] for name in masks.log_alpha}
    model.lagrangian = Lagrangian(targets, case["warmup_steps"], case.get("start_sparsity", 0.0))
    recipe = LearnMasksRecipe(
        model=Path(),
        corpus=Path(),
        out=Path(),
        mask_learning_rate=case["mask_lr"],
        multiplier_learning_rate=-case["multiplier_lr"],
        adam_beta2=case["betas"][1],
        weight_decay=case["weight_decay"],
    )
    adam = mask_optimizer(model, recipe)
    for record in case["history"]:
        masks.clamp()
        scores = masks.scores()
        loss = model.lagrangian.penalty(scores, record["step"])
        tolerance.close(loss, record["loss"], "loss")
        now = model.lagrangian.targets_at(record["step"])
        for name, score in scores.items():
            tolerance.close(sparsity(score).mean(), record["expected"][name], f"step {record['step']} expected {name}")
            tolerance.close(now[name], record["target"][name], f"step {record['step']} target {name}")
        adam.zero_grad()
        loss.backward()
        adam.step()
        for name, values in masks.log_alpha.items():
            tolerance.close(values, record["log_alpha_after"][name], f"step {record['step']} log_alpha {name}")
            for order, parameters in (("1", model.lagrangian.lambda_1), ("2", model.lagrangian.lambda_2)):
                after = record["lambdas_after"][f"lambda_{order}_{name}"]
                tolerance.close(parameters[name], after, f"step {record['step']} lambda_{order}_{name}")


def _llama(config: Case) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config["hidden"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config.get("kv_heads", config["heads"]),
            head_dim=config["head_dim"],
            intermediate_size=config["intermediate"],
            vocab_size=config["vocab"],
            rms_norm_eps=config.get("rms_norm_eps", 1e-5),
            rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10_000.0)},
            tie_word_embeddings=config.get("tied", False),
        )
    ).eval()


def _fill(model: LlamaForCausalLM, order: list[str]) -> None:
    """The fixtures' weight formula: parameter number k of `order`, flat element n."""
    state = model.state_dict()
    for k, name in enumerate(order):
        full = name if name in state else f"model.{name}"
        tensor = state[full]
        wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + 1.3 * k + 0.2)
        values = 0.35 * wave if tensor.ndim == 2 else 1 + 0.2 * wave
        tensor.copy_(values.view_as(tensor))


def masked_forward(case: Case, data: Case, tolerance: Tolerance) -> None:
    source, _ = _shapes(case["config"])
    ids = torch.tensor(case["input_ids"])
    for tied in (False, True):
        stock = _llama(case["config"] | {"tied": tied})
        _fill(stock, [name for name in case["parameter_order"] if not (tied and name == "lm_head.weight")])
        values = {name: torch.tensor(z, requires_grad=True) for name, z in case["masks"].items()}
        model = MaskedCausalLM(stock, Masks(source, source), warmup_steps=0)
        output = model.call_with(values, input_ids=ids, labels=ids)
        if tied:
            tolerance.close(output.logits[:, -1], case["tied_logits_last_token"], "tied logits")
            continue
        tolerance.close(output.logits, case["logits"], "logits")
        tolerance.close(output.loss, case["loss"], "loss")
        output.loss.backward()
        for name, mask in values.items():
            tolerance.close(mask.grad, case["grad_masks"][name], f"gradient of the {name} mask")


def _sliced_model(stock: LlamaForCausalLM, config: Case, masks: MaskValues) -> LlamaForCausalLM:
    """What `pruning.slicing` writes, loaded into a stock model."""
    changed = sliced_config(stock.config.to_dict(), sliced_shape(masks))
    exported = LlamaForCausalLM(LlamaConfig(**changed)).eval()
    layers = masks.kept_layers()
    state = {
        new: slice_tensor(name, weight, masks)
        for name, weight in stock.state_dict().items()
        if (new := renumbered(name, layers))
    }
    exported.load_state_dict(state)
    return exported


def _fill_masks(masks: Masks, log_alpha: Case) -> None:
    for name, values in log_alpha.items():
        if name in masks.log_alpha:
            masks.log_alpha[name].data.copy_(torch.tensor(values))
        else:  # the reference has a mask here although source and target are the same size
            masks.log_alpha[name] = torch.nn.Parameter(torch.tensor(values))


def _short(name: str, wanted: Case) -> str:
    return name if name in wanted else name.removeprefix("model.")


def slicing(case: Case, data: Case, tolerance: Tolerance) -> None:
    source, target = _shapes(case["config"])
    learned = Masks(source, target)
    _fill_masks(learned, case["log_alpha"])
    values = learned.deterministic(at_target=True)
    for name, mask in values.items():
        tolerance.close(mask, case["masks"][name], f"{name} mask")
    stock = _llama(case["config"])
    _fill(stock, case["source_parameter_order"])
    exported = _sliced_model(stock, case["config"], MaskValues(values, source, tied=False))
    ours = {_short(name, case["exported_shapes"]): tensor for name, tensor in exported.state_dict().items()}
    equal({name: list(t.shape) for name, t in ours.items()}, case["exported_shapes"], "exported shapes")
    for name, total in case["exported_sum"].items():
        tolerance.close(ours[name].double().sum(), total, f"sum of {name}")
        tolerance.close(ours[name].double().abs().sum(), case["exported_abs_sum"][name], f"absolute sum of {name}")
    masks = MaskValues(values, source, tied=False)
    equal(masks.values["hidden"].nonzero().flatten().tolist(), case["kept"]["hidden"], "kept hidden")
    equal(masks.kept_layers(), case["kept"]["layer"], "kept layers")
    for name in ("head", "intermediate"):
        rows = [row.nonzero().flatten().tolist() for row in masks.values[name]]
        equal(rows, case["kept"][name], f"kept {name}")
    ids = torch.tensor(case["input_ids"])
    wanted = torch.tensor(case["consistent_logits"])
    logits = exported(input_ids=ids if ids.ndim == 2 else ids[None]).logits
    tolerance.close(logits.view_as(wanted), wanted, "consistent logits")


def gqa(case: Case, data: Case, tolerance: Tolerance) -> None:
    source, _ = _shapes(case["config"])
    stock = _llama(case["config"])
    _fill(stock, case["parameter_order"])
    ids = torch.tensor(case["input_ids"])[None]
    tolerance.close(stock(input_ids=ids).logits[0, -1], case["logits_last_token"], "logits")
    full = _llama(case["config"] | {"kv_heads": source.num_heads})
    expanded = expand_kv_heads(stock.state_dict(), source, source.num_heads)
    full.load_state_dict(expanded)
    tolerance.close(full(input_ids=ids).logits[0, -1], case["logits_last_token"], "expanded logits")
    equal(list(expanded["model.layers.0.self_attn.k_proj.weight"].shape), case["expanded_k_proj_shape"], "k_proj shape")
    heads = stock.model.layers[0].self_attn.k_proj.weight.unflatten(0, (source.num_kv_heads, source.head_dim))
    copies = expanded["model.layers.0.self_attn.k_proj.weight"].unflatten(0, (source.num_heads, source.head_dim))
    equal([int((heads == copy).all((1, 2)).nonzero()[0]) for copy in copies], case["expanded_kv_source_head"], "source")
    values = {name.replace("kv_group", "head"): torch.tensor(z) for name, z in case["masks"].items()}
    masks = MaskValues(values, source, tied=False)
    exported = _sliced_model(stock, case["config"], masks)
    equal(
        {name: list(t.shape) for name, t in exported.state_dict().items()}, case["exported_shapes"], "exported shapes"
    )
    for name, total in case["exported_abs_sum"].items():
        tolerance.close(exported.state_dict()[name].double().abs().sum(), total, f"absolute sum of {name}")
    tolerance.close(exported(input_ids=ids).logits[0], case["masked_logits"], "exported logits")
    masked = MaskedCausalLM(stock, Masks(source, source), warmup_steps=0).call_with(values, input_ids=ids)
    tolerance.close(masked.logits[0], case["masked_logits"], "masked logits")


def rmsnorm(case: Case, data: Case, tolerance: Tolerance) -> None:
    """One norm as the final norm of a model with no layers to speak of: the mask rules for norms, both ways."""
    x, weight, z = (torch.tensor(case[key]) for key in ("x", "weight", "hidden_z"))
    source = BackboneShape(
        hidden_size=len(weight), num_layers=1, num_heads=1, num_kv_heads=1, head_dim=1, intermediate_size=1
    )
    masks = MaskValues({"hidden": z}, source, tied=False)
    cut = slice_tensor("model.norm.weight", weight, masks)
    kept = z.nonzero().flatten()
    tolerance.close(cut, case["pruned_weight"], "pruned weight")
    tolerance.close(_rms(x[:, kept], cut, case["eps"]), case["pruned_output"], "pruned output")
    full = masked_parameters({"model.norm.weight": weight}, masks, {"eps": torch.tensor(case["eps"])})
    tolerance.close(full["eps"], case["zero_padded"]["eps"], "eps of the full-width norm")
    tolerance.close(full["model.norm.weight"], case["zero_padded"]["weight"], "weight of the full-width norm")
    alive = x * (z != 0)
    ours = _rms(alive, full["model.norm.weight"], float(full["eps"]))
    tolerance.close(ours, case["masked_output"], "masked output")
    other = case["full_mean_training"]
    tolerance.close(weight[kept] * z[kept] / masks.norm_scale, other["export_weight"], "export of a full-mean norm")
    tolerance.close(case["eps"] / masks.norm_eps_scale, other["export_eps"], "eps of a full-mean norm")
    exported = _rms(x[:, kept], weight[kept] * z[kept] / masks.norm_scale, case["eps"] / masks.norm_eps_scale)
    tolerance.close(exported, other["output_kept"], "output of a full-mean norm")


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def shapes(case: Case, data: Case, tolerance: Tolerance) -> None:
    source = BackboneShape(
        hidden_size=case["hidden"],
        num_layers=case["layers"],
        num_heads=case["heads"],
        num_kv_heads=case["kv_heads"],
        head_dim=case["head_dim"],
        intermediate_size=case["intermediate"],
    )
    equal(source.attention_parameters * source.num_layers, case["attention_params"], "attention_params")
    equal(source.mlp_parameters * source.num_layers, case["mlp_params"], "mlp_params")
    equal(source.norm_parameters, case["norm_params"], "norm_params")
    equal(source.non_embedding_parameters, case["non_embedding_params"], "non_embedding_params")
    total = source.total_parameters(case["vocab"], tied=case["tied"] or not case["has_lm_head"])
    equal(total, case["total_params"], "total_params")
    equal(case["vocab"] * case["hidden"], case["embedding_matrix_params"], "embedding_matrix_params")


def dynamic_loading(case: Case, data: Case, tolerance: Tolerance) -> None:
    reference, update = case["reference_losses"], case["update_type"]
    if case["kind"] == "update":
        found = updated_proportions(case["proportions"], case["losses"], reference, update=update)
        tolerance.close(found, case["new_proportions"], "new_proportions")
    elif case["kind"] == "chain":
        proportions = case["proportions"]
        for losses, expected in zip(case["losses_per_evaluation"], case["proportions_after_each"], strict=True):
            proportions = updated_proportions(proportions, losses, reference, update=update)
            tolerance.close(proportions, expected, "proportions_after_each")
    else:
        raise NotImplementedError(case["kind"])


def reference_loss(case: Case, data: Case, tolerance: Tolerance) -> None:
    for domain, losses in case["losses"].items():
        found = extrapolated_loss(dict(zip(case["sizes"], losses, strict=True)), case["target_size"])
        tolerance.close(found, case["predicted"][domain], domain)


KINDS = {
    "pruning_hard_concrete": hard_concrete,
    "pruning_init": init,
    "pruning_expected_size": expected_size,
    "pruning_lagrangian": lagrangian,
    "pruning_optimizer": optimizer,
    "pruning_masked_forward": masked_forward,
    "pruning_slicing": slicing,
    "pruning_gqa": gqa,
    "pruning_rmsnorm": rmsnorm,
    "pruning_shapes": shapes,
    "pruning_dynamic_loading": dynamic_loading,
    "pruning_reference_loss": reference_loss,
}
