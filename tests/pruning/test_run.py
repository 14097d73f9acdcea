"""The whole run by one command: stages that are done stay, and mistakes are answered in a sentence."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, Qwen2Config

from drama_models.checkpoints import checkpoint_folder, checkpoints
from drama_models.errors import ModelFolderError, TrainingError
from drama_models.provenance import chain, read_provenance
from drama_models.recipe import load_recipe, run_command
from pruning.__main__ import COMMANDS
from pruning.proportions import updated_proportions
from pruning.run import RunRecipe, run
from tests.conftest import make_llama

FEW: dict[str, Any] = {
    "steps": 2, "warmup_steps": 0, "batch_size": 2, "sequence_length": 32, "held_out_sequences": 2,
    "precision": "fp32", "trainer": {"use_cpu": True},
}  # fmt: skip

FOLDERS = ["--model={model}", "--corpus={corpus}", "--out={out}"]
RUN = ["{recipe}", *FOLDERS]
LEARN = [*FOLDERS, "--target.num_layers=2", "--sequence_length=32", "--precision=fp32"]
WRONG_NUMBERS = [
    ("--batch_size=0", "batch_size=0 must be at least 1."),
    ("--gradient_accumulation=-1", "gradient_accumulation=-1 must be at least 1."),
    ("--sequence_length=1", "sequence_length=1 must be at least 2."),
    ("--held_out_sequences=0", "held_out_sequences=0 must be at least 1."),
    ("--log_every=0", "log_every=0 must be at least 1."),
    ("--warmup_steps=-1", "warmup_steps=-1 must be at least 0."),
    ("--seed=-1", "seed=-1 must be at least 0."),
    ("--learning_rate=-1", "learning_rate=-1.0 must be at least 0."),
    ("--learning_rate=.nan", "learning_rate=nan must be at least 0."),
    ("--adam_beta2=1.5", "adam_beta2=1.5 must be below 1."),
    ("--min_lr_rate=2", "min_lr_rate=2.0 must be at most 1."),
    ("--sparsity_warmup_steps=-5", "sparsity_warmup_steps=-5 must be at least 0."),
    ("--proportions={{long: .nan}}", "Proportions must be positive numbers"),
    ("--trainer={{loging_steps: 2}}", "trainer has no field 'loging_steps'; did you mean 'logging_steps'?"),
    ("--trainer={{logging_steps: some}}", "The trainer refuses its settings: "),
    ("--trainer={{torch_compile: true, gradient_checkpointing: true}}", "leave one out of trainer."),
    ("--target.num_layers=3", "nothing would be cut"),
]


def write_recipe(path: Path, **changes: Any) -> Path:
    target = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 50}
    learn = FEW | {"target": target, "sparsity_warmup_steps": 1}
    settings = {"expand_kv_heads": True, "force": True, "learn_masks": learn, "recover": FEW}
    path.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return path


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pruning", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_one_command_makes_a_backbone_and_goes_on(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "run.yaml"), tmp_path / "run"
    words = ["run", recipe, f"--model={llama_folder}", f"--corpus={corpus_folder}", f"--out={out}"]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    assert f"made {out / 'backbone'}: BackboneShape(hidden_size=32, num_layers=2, num_heads=4" in first.stdout
    model = AutoModelForCausalLM.from_pretrained(out / "backbone")
    assert (model.config.num_key_value_heads, model.config.hidden_size) == (4, 32)
    stages = [stage["stage"] for stage in chain(read_provenance(out / "backbone"))]
    assert stages == ["pruning.expand_kv_heads", "pruning.learn_masks", "pruning.slice", "pruning.recover"]
    (out / "backbone" / "provenance.json").rename(tmp_path / "gone")
    again = command(*words)
    assert [line for line in again.stderr.splitlines() if "done before" in line or "starts" in line] == [
        "expanded: done before", "masks: done before", "sliced: done before", "backbone: starts",
    ]  # fmt: skip
    other = command(*words, "--learn_masks.learning_rate=0.5")
    assert other.returncode == 2
    assert "masks was made with other settings (learning_rate=0.0001); remove it" in other.stderr


def test_a_multi_head_source_is_not_expanded(corpus_folder: Path, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", num_key_value_heads=6)
    path = write_recipe(tmp_path / "run.yaml", expand_kv_heads=True)
    recipe = load_recipe(RunRecipe, path, model=model, corpus=corpus_folder, out=tmp_path / "run")
    shape = run(recipe)
    assert (shape.num_heads, shape.num_kv_heads) == (4, 4)
    assert not (tmp_path / "run" / "expanded").exists()


def test_a_stage_is_known_by_the_content_of_what_it_read(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_recipe(tmp_path / "run.yaml", expand_kv_heads=False), tmp_path / "run"
    moved, other = (Path(shutil.copytree(corpus_folder, tmp_path / name / corpus_folder.name)) for name in "ab")
    run(load_recipe(RunRecipe, path, model=llama_folder, corpus=corpus_folder, out=out))
    capsys.readouterr()
    run(load_recipe(RunRecipe, path, model=llama_folder, corpus=moved, out=out))
    assert capsys.readouterr().err.count("done before") == 3
    tokens = next(other.glob("long/train*"))
    tokens.write_bytes(tokens.read_bytes()[::-1])
    with pytest.raises(TrainingError, match=rf"masks was made from another corpus than {other}; remove it"):
        run(load_recipe(RunRecipe, path, model=llama_folder, corpus=other, out=out))
    with pytest.raises(TrainingError, match="backbone was made from another corpus"):
        run(load_recipe(RunRecipe, path, model=llama_folder, corpus=moved, recover_corpus=other, out=out))
    with pytest.raises(TrainingError, match=r"backbone was made with other settings \(teacher=None\)"):
        run(
            load_recipe(RunRecipe, path, model=llama_folder, corpus=moved, out=out, **{"recover.teacher": llama_folder})
        )


def test_recovery_goes_on_with_the_shares_of_mask_learning(
    llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    reference = tmp_path / "reference.json"
    reference.write_text('{"long": 9.0, "short": 0.1}', encoding="utf-8")
    follows = FEW | {"update_proportions": "doremi", "update_every": 1, "reference_losses": str(reference)}
    path = write_recipe(tmp_path / "run.yaml", expand_kv_heads=False, recover=follows)
    learned = yaml.safe_load(path.read_text(encoding="utf-8"))["learn_masks"] | follows
    write_recipe(path, expand_kv_heads=False, learn_masks=learned, recover=follows)
    out = tmp_path / "run"
    run(load_recipe(RunRecipe, path, model=llama_folder, corpus=corpus_folder, out=out))
    masks, backbone = (read_provenance(out / name) for name in ("masks", "backbone"))
    assert masks is not None
    assert backbone is not None
    updates = masks["figures"]["proportion_updates"]
    assert [update["step"] for update in updates] == [1, 2]  # the last of them after the last step
    assert updates[-1]["proportions"]["short"] > 0.99
    assert backbone["recipe"]["proportions"] == updates[-1]["proportions"]
    (first, *_) = backbone["figures"]["proportion_updates"]
    assert first["step"] == 0  # before recovery trains
    shares, losses = list(updates[-1]["proportions"].values()), list(first["losses"].values())
    assert list(first["proportions"].values()) == pytest.approx(updated_proportions(shares, losses, [9.0, 0.1]))


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "pruning.expand_kv_heads"}', '{"recipe": 1, "inputs": {}}'])
def test_a_stage_whose_record_is_damaged_is_said(
    content: str, llama_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "expanded").mkdir(parents=True)
    (out / "expanded" / "provenance.json").write_text(content, encoding="utf-8")
    recipe = load_recipe(
        RunRecipe, write_recipe(tmp_path / "run.yaml"), model=llama_folder, corpus=corpus_folder, out=out
    )
    with pytest.raises(ModelFolderError, match=r"expanded/provenance\.json (is damaged|does not say how)"):
        run(recipe)


@pytest.mark.parametrize("stage", ["learn-masks", "recover"])
def test_a_damaged_record_of_the_model_is_said_before_a_step(
    stage: str, llama_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = shutil.copytree(llama_folder, tmp_path / "model"), tmp_path / "made"
    (model / "provenance.json").write_text("{", encoding="utf-8")
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(FEW), encoding="utf-8")
    words = [stage, str(tmp_path / "few.yaml"), f"--model={model}", f"--corpus={corpus_folder}", f"--out={out}"]
    target = ["--target.num_layers=2"] if stage == "learn-masks" else []
    assert run_command("pruning", COMMANDS, [*words, *target]) == 2
    printed = capsys.readouterr().err
    assert "model/provenance.json is damaged" in printed
    assert "step 1/" not in printed


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        (
            {"learn_masks": {"stepz": 3}},
            ["run", *RUN],
            "line 4: RunRecipe has no field 'learn_masks.stepz'; did",
        ),
        (
            {"learn_masks": {"target": {"num_layers": 9}}},
            ["run", *RUN],
            "num_layers=9 cannot be cut from a source",
        ),
        ({}, ["run", *RUN, "--corpus=nowhere"], "nowhere is not a tokenised corpus"),
        ({}, ["run", *RUN, "--model=nowhere"], "nowhere has no config.json; pass the folder of a Llama-shaped model"),
        ({}, ["run", "drama-huge"], "no preset and no recipe file called 'drama-huge'"),
        ({}, ["slice", "--model={model}", "--out={out}"], "has no masks.json; pass a folder made by"),
        ({}, ["recover", "--model=nowhere", "--corpus={corpus}", "--out={out}"], "nowhere has no tokenizer.json"),
        ({}, ["tokenise", "--text={out}", "--model=nowhere", "--out={out}"], "nowhere has no config.json"),
        ({}, ["expand-kv-heads", "--model={model}", "--out={out}", "--num_kv_heads=4"], "choose one of [3, 6]"),
        ({}, ["expand-kv-heads", "--model={model}", "--out={out}", "--num_kv_heads=0"], "choose one of [3, 6]"),
        ({}, ["expand-kv-heads", "--model={model}", "--out={out}", "--num_kv_heads=-3"], "choose one of [3, 6]"),
        ({}, ["drop-layers", *FOLDERS, "--num_layers=2", "--seed=-1"], "seed=-1 must be at least 0."),
        ({}, ["reference-loss", *FOLDERS, "--batch_size=0"], "batch_size=0 must be at least 1."),
        *(({}, ["learn-masks", *LEARN, number], message) for number, message in WRONG_NUMBERS),
        ({}, ["learn-masks", "--model={other}", "--corpus={corpus}", "--out={out}"], "of type 'qwen2'; only models"),
    ],
)
def test_mistakes_are_answered(
    changes: dict[str, Any],
    words: list[str],
    message: str,
    llama_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path / "run.yaml", **({"expand_kv_heads": False} | changes))
    Qwen2Config().save_pretrained(tmp_path / "other")
    places = {"model": llama_folder, "corpus": corpus_folder, "other": tmp_path / "other", "recipe": recipe}
    call = [word.format(out=tmp_path / "out", **places) for word in words]
    assert run_command("pruning", COMMANDS, call) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run.yaml"]


@pytest.mark.slow
def test_a_disk_that_fills_up_loses_nothing(llama_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: writing fails in the same places, for every user."""
    weights = (llama_folder / "model.safetensors").stat().st_size
    settings = FEW | {"steps": 4, "save_every": 2, "model": str(llama_folder), "corpus": str(corpus_folder)}
    recipe, out = tmp_path / "recover.yaml", tmp_path / "made"
    recipe.write_text(yaml.safe_dump(settings | {"out": str(out)}), encoding="utf-8")

    def limited(size: int) -> Any:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    for size in (weights // 2, weights + weights // 2):  # the weights of a checkpoint do not fit; then Adam's state
        result = command("recover", recipe, preexec_fn=limited(size))
        assert result.returncode == 2, result.stderr
        assert "no room left on the disk" in result.stderr
        assert "Traceback" not in result.stderr
        assert not out.exists()
        assert checkpoints(out) == []
    assert command("recover", recipe).returncode == 0
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 48
    assert not checkpoint_folder(out).exists()
