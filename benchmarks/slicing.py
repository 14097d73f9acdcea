"""Time and memory of slicing a Llama-3.2-1B-shaped bf16 folder to the drama-base shape.

    python -m benchmarks.slicing [--out benchmarks/results/slicing.json]

Weights and masks are random, KV heads are expanded to 32 before (as for the published model), and the folder is sliced
in a process of its own. Memory is the peak of that process beyond what it held before slicing, memory-mapped pages of
the source included. Needs 4 GB of disk for temporary folders.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64,
    "intermediate_size": 8192, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip


def write_source(folder: Path) -> int:
    """A folder of that shape with random bf16 weights; returns the bytes of its largest tensor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**SOURCE))
    model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    model.save_pretrained(folder)
    return max(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def set_up(source: Path, out: Path) -> Callable[[], dict[str, float]]:
    """Masks of the target shape; calling what is returned slices once."""
    import torch
    from transformers import AutoConfig

    from benchmarks.interleaved import peak_mib
    from pruning.masks import Masks
    from pruning.plan import read_run_recipe
    from pruning.shape import BackboneShape
    from pruning.slicing import slice_folder

    torch.manual_seed(0)
    shape = BackboneShape.of(AutoConfig.from_pretrained(source))
    masks = Masks(shape, shape.cut_to(read_run_recipe("drama-base", source).learn_masks.target))
    with torch.no_grad():
        for log_alpha in masks.log_alpha.values():
            log_alpha.normal_()
    values = masks.deterministic(at_target=True)

    def run() -> dict[str, float]:
        before = peak_mib()
        slice_folder(source, values, out, {})
        return {"peak_beyond_mib": peak_mib() - before}

    return run


def main() -> None:
    """Slice, print, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/slicing.json"), help="results file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        source, made = Path(work) / "source", Path(work) / "made"
        largest = write_source(source)
        time.sleep(1)
        measured = interleave({"slice": (set_up, (source, made))}, 1)["slice"]
        output = (made / "model.safetensors").stat().st_size
    mib = 2**20
    bound = (1.3 * output + largest) / mib
    record = {
        "benchmark": "slicing",
        "command": "python -m benchmarks.slicing",
        "settings": {"source": SOURCE, "target": "drama-base"},
        "machine": machine_record(),
        "seconds": round(measured.seconds[0], 1),
        "output_mib": round(output / mib),
        "largest_source_tensor_mib": round(largest / mib),
        "peak_beyond_mib": round(measured.result["peak_beyond_mib"]),
        "bound_mib": round(bound),
    }
    print(  # noqa: T201
        f"{record['seconds']} s, peak {record['peak_beyond_mib']} MiB for {record['output_mib']} MiB of output "
        f"(1.3 x output + largest source tensor: {record['bound_mib']} MiB)"
    )
    write_result(options.out, record)


if __name__ == "__main__":
    main()
