"""Mask learning and recovery on a small model: they reach their goal, resume, and refuse bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from drama_models.checkpoints import claim, last_checkpoint, writing_folder
from drama_models.errors import CorpusError, ModelFolderError, ShapeError, TrainingError
from drama_models.provenance import chain, read_provenance
from pruning.corpus import Corpus, tokenise
from pruning.held_out import held_out_figures
from pruning.learn_masks import MASKS, LearnMasksRecipe, MaskTrainer, learn_masks, load_masks, mask_optimizer
from pruning.masked_model import MaskedCausalLM
from pruning.masks import Masks
from pruning.recover import RecoverRecipe, recover
from pruning.shape import BackboneShape, TargetShape
from pruning.slicing import slice_folder
from tests.conftest import TEXTS
from tests.pruning.logs import read_log

TARGET = TargetShape(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=50)
SMALL: dict[str, Any] = {
    "sequence_length": 32,
    "batch_size": 2,
    "log_every": 5,
    "held_out_sequences": 4,
    "precision": "fp32",
    "trainer": {"use_cpu": True},
}


@pytest.fixture(scope="module")
def masks_folder(llama_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks after 200 steps."""
    out = tmp_path_factory.mktemp("stages") / "masks"
    recipe = LearnMasksRecipe(
        model=llama_folder, corpus=corpus_folder, out=out, target=TARGET, steps=200, warmup_steps=5,
        sparsity_warmup_steps=60, mask_learning_rate=0.3, multiplier_learning_rate=0.3, **SMALL,
    )  # fmt: skip
    learn_masks(recipe)
    return out


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about processors")
def test_half_precision_is_for_processors_too(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    settings = SMALL | {"precision": "bf16", "trainer": {}}
    recover(RecoverRecipe(model=llama_folder, corpus=corpus_folder, out=tmp_path / "out", steps=2, **settings))
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2


def test_masks_reach_the_target_and_the_slice_has_exactly_that_shape(masks_folder: Path, tmp_path: Path) -> None:
    figures = json.loads((masks_folder / "provenance.json").read_text(encoding="utf-8"))["figures"]["expected_sizes"]
    assert set(figures) == {"hidden", "layer", "head", "intermediate"}
    for name, size in figures.items():
        assert size["expected"] == pytest.approx(size["target"], rel=0.05), name
    shape = slice_folder(masks_folder, load_masks(masks_folder), tmp_path / "sliced", {})
    assert (shape.hidden_size, shape.num_layers, shape.num_heads, shape.intermediate_size) == (32, 2, 4, 50)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced")
    learned: Any = AutoModelForCausalLM.from_pretrained(masks_folder)
    assert model.num_parameters() == shape.total_parameters(model.config.vocab_size, tied=True)
    log = [json.loads(line) for line in (masks_folder / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 200
    assert log[0]["hidden"] > log[-1]["hidden"]
    whole = BackboneShape.of(learned.config).prunable_parameters
    assert log[-1]["sparsity"] == pytest.approx(1 - shape.prunable_parameters / whole, abs=0.03)
    assert log[0]["sparsity"] < log[-1]["sparsity"]


def test_gates_are_in_their_range_after_every_step(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe = LearnMasksRecipe(
        model=llama_folder, corpus=corpus_folder, out=tmp_path / "masks", target=TARGET, steps=4, warmup_steps=0,
        mask_learning_rate=20.0, **SMALL,
    )  # fmt: skip
    stock: Any = AutoModelForCausalLM.from_pretrained(llama_folder)
    source = BackboneShape.of(stock.config)
    model = MaskedCausalLM(stock, Masks(source, source.cut_to(TARGET)), 0)
    largest: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            largest.append(max(float(value.detach().abs().max()) for value in model.masks.log_alpha.values()))

    trainer = MaskTrainer(recipe, model, Corpus.open(corpus_folder))
    trainer.add_callback(Watch())
    trainer.train()
    assert largest == pytest.approx([4.60517] * 4)


def test_linear_multipliers_can_climb_slower(llama_folder: Path) -> None:
    """Adam's first step is its rate, whatever the gradient."""
    stock: Any = AutoModelForCausalLM.from_pretrained(llama_folder)
    source = BackboneShape.of(stock.config)
    folders: dict[str, Any] = {"model": llama_folder, "corpus": llama_folder, "out": llama_folder}
    for factor in (1.0, 0.1):
        model = MaskedCausalLM(stock, Masks(source, source.cut_to(TARGET)), 0)
        recipe = LearnMasksRecipe(**folders, multiplier_learning_rate=0.5, linear_multiplier_factor=factor)
        optimizer = mask_optimizer(model, recipe)
        model.lagrangian.penalty(model.masks.scores(), 0).backward()
        optimizer.step()
        for name in model.masks.log_alpha:
            assert model.lagrangian.lambda_1[name].item() == pytest.approx(-0.5 * factor, rel=1e-4)  # below its target
            assert model.lagrangian.lambda_2[name].item() == pytest.approx(0.5, rel=1e-4)


def test_masks_that_have_not_converged_are_not_cut(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe = LearnMasksRecipe(
        model=llama_folder, corpus=corpus_folder, out=tmp_path / "masks", target=TARGET, steps=3, **SMALL
    )
    learn_masks(recipe)
    with pytest.raises(TrainingError, match=r"hidden expects 4\d\.\d, target 32.*--force"):
        load_masks(tmp_path / "masks")
    assert (load_masks(tmp_path / "masks", force=True)["hidden"] != 0).sum() == 32


@pytest.mark.parametrize("damage", ["text", "list", "shape", "size", "absent", "cut", "gate"])
def test_damaged_masks_are_told_in_a_sentence(damage: str, masks_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    shapes = json.loads((masks_folder / "masks.json").read_text(encoding="utf-8"))
    state = load_file(masks_folder / MASKS)
    if damage == "shape":
        del shapes["source"]["num_heads"]
    if damage == "size":
        shapes["source"]["hidden_size"] += 8
    if damage == "gate":
        del state["log_alpha.head"]
    written = {"text": '{"source"', "list": "[]"}.get(damage, json.dumps(shapes))
    (folder / "masks.json").write_text(written, encoding="utf-8")
    if damage != "absent":
        save_file(state, folder / MASKS)
    if damage == "cut":
        (folder / MASKS).write_bytes((folder / MASKS).read_bytes()[:-8])
    with pytest.raises(ModelFolderError, match=r"The masks in .* are damaged \(.*; run learn-masks again"):
        load_masks(folder)


def recover_recipe(model: Path, corpus: Path, out: Path, **changes: Any) -> RecoverRecipe:
    settings = SMALL | {"steps": 12, "learning_rate": 2e-3, "save_every": 4, "log_every": 1} | changes
    return RecoverRecipe(model=model, corpus=corpus, out=out, **settings)


def test_recovery_lowers_the_held_out_loss_and_records_it(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    record = recover(recover_recipe(llama_folder, corpus_folder, tmp_path / "made", steps=40))
    before, after = (record["figures"][key] for key in ("held_out_before", "held_out"))
    for domain in ("long", "short"):
        assert after[domain]["loss"] < before[domain]["loss"]
    assert record["figures"]["tokens"] == 40 * 2 * 32
    assert [line["step"] for line in read_log(tmp_path / "made")] == list(range(1, 41))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "made").dtype == torch.bfloat16
    stages = chain(read_provenance(tmp_path / "made"))
    assert [stage["stage"] for stage in stages] == ["pruning.recover"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_held_out_loss_is_the_models_own(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe = recover_recipe(llama_folder, corpus_folder, tmp_path / "x", batch_size=3)
    model = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    corpus = Corpus.open(corpus_folder)
    rows = torch.tensor(corpus.sequences("long", "held_out", 32)[:4].astype("int64"))
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten()).item()
    figures = held_out_figures(model, corpus, **recipe.held_out)["long"]
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    split = corpus.domains["long"]["held_out"]
    assert figures["bits_per_byte"] == pytest.approx(expected / 0.6931472 * split.tokens / split.text_bytes, rel=1e-5)


def test_a_model_that_predicts_nothing_is_infinitely_perplexed(llama_folder: Path, corpus_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    model.model.norm.weight.data.mul_(1e4)  # losses in the thousands, whose exponential no float holds
    figures = held_out_figures(model, Corpus.open(corpus_folder), length=32, batch_size=2, limit=2)["long"]
    assert 710 < figures["loss"] < float("inf")
    assert figures["perplexity"] == float("inf")


class InterruptedRunError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recover(recover_recipe(llama_folder, corpus_folder, tmp_path / "whole", save_dtype="float32"))
    recipe = recover_recipe(llama_folder, corpus_folder, tmp_path / "cut", save_dtype="float32")
    from pruning.language_modelling import LanguageModelTrainer

    stock = LanguageModelTrainer.training_step

    def step(self: LanguageModelTrainer, *inputs: Any) -> Any:
        if self.state.global_step == 6:
            raise InterruptedRunError
        return stock(self, *inputs)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelTrainer, "training_step", step)
        with pytest.raises(InterruptedRunError):
            recover(recipe)
    assert not recipe.out.exists()
    kept = last_checkpoint(recipe.out)
    assert kept is not None
    assert kept.name == "checkpoint-4"
    (writing_folder(recipe.out) / "checkpoint-8").mkdir(parents=True)  # what a kill in the middle of writing leaves
    resumed = recover(recipe)
    assert resumed["figures"]["held_out"] == whole["figures"]["held_out"]
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "cut"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=0, msg=name)


def test_two_runs_do_not_make_one_folder(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    folders: dict[str, Any] = {"model": llama_folder, "corpus": corpus_folder, "out": tmp_path / "made"}
    with claim(tmp_path / "made"):
        with pytest.raises(TrainingError, match="Another run is making"):
            recover(recover_recipe(**folders))
        with pytest.raises(TrainingError, match="Another run is making"):
            learn_masks(LearnMasksRecipe(**folders, target=TARGET, steps=3, **SMALL))
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe = recover_recipe(llama_folder, corpus_folder, tmp_path / "made", learning_rate=1e30, save_every=1)
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step \d+; .*last checkpoint"):
        recover(recipe)
    assert not (tmp_path / "made").exists()
    assert last_checkpoint(tmp_path / "made") is not None


def test_what_does_not_fit_is_refused_before_training(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    from tests.conftest import make_llama

    other = make_llama(tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text + " ", encoding="utf-8")
    with pytest.raises(CorpusError, match="another tokenizer"):
        recover(recover_recipe(other, corpus_folder, tmp_path / "made"))
    with pytest.raises(ShapeError, match="cannot be cut"):
        learn_masks(
            LearnMasksRecipe(
                model=llama_folder, corpus=corpus_folder, out=tmp_path / "m", target=TargetShape(num_layers=9), **SMALL
            )
        )
    with pytest.raises(ValueError, match="not a multiple of gradient_accumulation=2"):
        recover_recipe(llama_folder, corpus_folder, tmp_path / "x", batch_size=3, gradient_accumulation=2)


def test_gradient_accumulation_takes_the_same_steps(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text" / "all").mkdir(parents=True)
    (tmp_path / "text" / "all" / "a.txt").write_text("\n\n".join(TEXTS * 6), encoding="utf-8")
    tokenise(tmp_path / "text", llama_folder, tmp_path / "corpus")
    losses = []
    for parts in (1, 2):
        recipe = recover_recipe(
            llama_folder,
            tmp_path / "corpus",
            tmp_path / f"made{parts}",
            batch_size=4,
            gradient_accumulation=parts,
            steps=4,
        )
        recover(recipe)
        losses.append([line["loss"] for line in read_log(recipe.out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_query_heads_are_cut_inside_groups(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    target = TargetShape(num_heads=3, num_kv_heads=3)
    learn_masks(
        LearnMasksRecipe(
            model=llama_folder, corpus=corpus_folder, out=tmp_path / "masks", target=target, steps=40, warmup_steps=2,
            sparsity_warmup_steps=10, **SMALL,
        )
    )  # fmt: skip
    shape = slice_folder(tmp_path / "masks", load_masks(tmp_path / "masks", force=True), tmp_path / "sliced", {})
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.hidden_size) == (3, 3, 8, 48)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sliced")
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (24, 48)
    assert (tmp_path / "masks" / "expected_sizes.svg").read_text(encoding="utf-8").count('<g id="axes_') == 1
    assert not (tmp_path / "sliced" / "expected_sizes.svg").exists()
