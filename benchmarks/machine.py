"""Results files: one JSON for each benchmark, with what it was measured on: processor, cores, versions, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drama_models.folders import atomic_file
from drama_models.provenance import installed_versions


def machine_record() -> dict[str, Any]:
    """Processor, cores this process may use, operating system, versions, commit and month."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "versions": installed_versions(),
        "commit": _commit(),
        "month": datetime.now(UTC).strftime("%Y-%m"),
    }


def write_result(out: Path, record: dict[str, Any]) -> None:
    """Write a results file, whole or not at all, and say so."""
    with atomic_file(out) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"made {out}")  # noqa: T201


def _processor() -> str:
    """Model name and the instruction sets that decide the speed of matrix products."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    fast = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in fields["flags"]]
    return f"{fields['model name']} ({' '.join(fast)})"


def _commit() -> str:
    """Short hash, with `-dirty` where the tree differs from it in more than earlier results."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603, S607
