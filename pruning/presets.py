"""Named targets: the shapes that the papers published, and ours where a paper leaves one open."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.shape import TargetShape


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A target shape and where it comes from."""

    target: TargetShape
    multi_head: bool
    """Whether grouped KV heads are expanded to one for each query head before pruning."""
    source: str
    """Publication, or our reading of one."""


BASE = TargetShape(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)
LARGE = TargetShape(hidden_size=1024, num_layers=16, num_heads=16, intermediate_size=4032)

PRESETS = {
    "drama-base": Preset(target=BASE, multi_head=True, source="configuration of facebook/drama-base"),
    "drama-large": Preset(
        target=LARGE, multi_head=True, source="our reconstruction of the 265M model of arXiv 2502.18460, table 1"
    ),
    "drama-base-gqa": Preset(target=BASE, multi_head=False, source="drama-base with grouped-query heads kept"),
    "drama-large-gqa": Preset(target=LARGE, multi_head=False, source="drama-large with grouped-query heads kept"),
    "sheared-llama-1.3b": Preset(
        target=TargetShape(hidden_size=2048, num_layers=24, num_heads=16, intermediate_size=5504),
        multi_head=True,
        source="arXiv 2310.06694, from LLaMA-2-7B",
    ),
    "sheared-llama-2.7b": Preset(
        target=TargetShape(hidden_size=2560, num_layers=32, num_heads=20, intermediate_size=6912),
        multi_head=True,
        source="arXiv 2310.06694, from LLaMA-2-7B",
    ),
}
