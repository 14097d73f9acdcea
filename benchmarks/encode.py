"""Our Encoder beside sentence-transformers' `encode`, on the drama-base shape with random weights.

    python -m benchmarks.encode [--texts 128] [--rounds 3] [--out benchmarks/results/encode.json]

Each system holds the same model in a process of its own, so that its peak memory is its own. They encode the same
texts in turn, round by round, so that whatever else the machine does falls on all of them; a ratio is taken within a
round and its median over rounds is reported. Texts are docstrings of Python's standard library. Tokenisation counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SOURCE = Path(__file__).parents[1] / "demo" / "source"  # its tokenizer
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
SHAPE |= {"head_dim": 64, "intermediate_size": 3072, "vocab_size": 128_256}
MAX_LENGTH = 512
SYSTEMS = ("sentence-transformers", "Encoder torch", "Encoder onnx")
BASELINE = SYSTEMS[0]


def write_model(folder: Path, *, onnx: bool = True) -> None:
    """A release-like folder in the drama-base shape: random weights, bidirectional, mean pooling, an ONNX graph."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    from drama_models.profile import Profile
    from export.client_files import sentence_transformers_files
    from export.to_onnx import write_onnx
    from training.start import write_start_folder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SOURCE)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaModel(LlamaConfig(**SHAPE, **ends, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    model = folder / "model"
    write_start_folder(folder / "llama", model, bidirectional=True)
    profile = Profile(
        hidden_size=SHAPE["hidden_size"],
        bidirectional=True,
        pooling="mean",
        query_prompt="Query: ",
        document_prompt="",
        set_ends=False,
        max_length=MAX_LENGTH,
        normalise=True,
        dims=(),
    )
    for name, content in sentence_transformers_files(profile).items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps(content), encoding="utf-8")
    if onnx:
        write_onnx(model)


def sample_texts(count: int) -> list[str]:
    """Docstrings of the standard library, drawn with a fixed seed."""
    from demo.environment import STANDARD_LIBRARY, installed_packages
    from demo.public_names import public_entries, read_package

    library = next(package for package in installed_packages() if package.name == STANDARD_LIBRARY)
    entries = public_entries(read_package(library.root / "email", "email"))
    for name in ("asyncio", "json", "logging", "unittest", "xml", "importlib", "concurrent", "http", "urllib"):
        entries += public_entries(read_package(library.root / name, name))
    texts = [entry.docstring for entry in entries]
    chosen = np.random.default_rng(0).choice(len(texts), count, replace=count > len(texts))
    return [texts[number] for number in chosen]


def set_up(system: str, folder: Path, texts: list[str]) -> Callable[[], NDArray[np.float32]]:
    """Load the model in one system; calling what is returned encodes all texts."""
    encode: Callable[[list[str]], NDArray[np.float32]]
    if system == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(str(folder), device="cpu").encode
    else:
        from drama_models import Encoder

        encode = Encoder.from_pretrained(
            folder, runtime="onnx" if system.endswith("onnx") else "torch"
        ).encode_documents
    encode(texts[:8])  # first calls allocate and choose kernels
    return partial(encode, texts)


def compare(count: int, rounds: int) -> dict[str, Any]:
    """Run all systems in turn.

    Returns:
        Settings, machine, and for each system texts/s, real tokens/s, peak memory in MiB, smallest cosine to
        sentence-transformers' vectors, and the ratio of its speed to theirs (median over rounds of one run).
    """
    from tokenizers import Tokenizer

    texts = sample_texts(count)
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        folder = Path(work) / "model"
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_LENGTH)
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        measured = interleave({system: (set_up, (system, folder, texts)) for system in SYSTEMS}, rounds)
    systems = {}
    for system in SYSTEMS:
        own, theirs = measured[system], measured[BASELINE]
        ratios = [their_s / own_s for their_s, own_s in zip(theirs.seconds, own.seconds, strict=True)]
        systems[system] = {
            "seconds": [round(value, 3) for value in own.seconds],
            "texts_per_second": round(count / statistics.median(own.seconds), 2),
            "tokens_per_second": round(tokens / statistics.median(own.seconds)),
            "ratio": round(statistics.median(ratios), 3),
            "peak_mib": round(own.peak_mib),
            "smallest_cosine": float((own.result * theirs.result).sum(axis=1).min()),
        }
    settings = {"texts": count, "tokens": tokens, "rounds": rounds, "max_length": MAX_LENGTH}
    return {"benchmark": "encode", "settings": settings | SHAPE, "machine": machine_record(), "systems": systems}


def main() -> None:
    """Compare, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=128, help="documents in a round; default: 128")
    parser.add_argument("--rounds", type=int, default=3, help="times that each system encodes them; default: 3")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encode.json"), help="results file")
    options = parser.parse_args()
    result = compare(options.texts, options.rounds)
    result["command"] = f"python -m benchmarks.encode --texts {options.texts} --rounds {options.rounds}"
    print(f"{'':24}{'texts/s':>9}{'tokens/s':>10}{'ratio':>7}{'peak MiB':>10}  smallest cosine")  # noqa: T201
    for system, row in result["systems"].items():
        speed = f"{row['texts_per_second']:9.2f}{row['tokens_per_second']:10,}{row['ratio']:7.2f}"
        print(f"{system:24}{speed}{row['peak_mib']:10,}  {row['smallest_cosine']:.6f}")  # noqa: T201
    write_result(options.out, result)


if __name__ == "__main__":
    main()
