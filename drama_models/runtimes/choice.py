"""Which runtime computes a folder's embeddings, and in which precision.

Left to itself: torch where there is a GPU for it or a precision that only torch has; else ONNX Runtime straight from
the safetensors of a Llama or a BERT; else a graph file that lies in the folder; else torch. bfloat16 of a Llama on a
CPU that has it is OpenVINO's, where that is installed. Nothing below float32 is chosen that was not asked for: int8
changes embeddings visibly, and so can 16 bits.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from drama_models.errors import DeviceError, MissingExtraError, ModelFolderError
from drama_models.model_folder import ONNX_GRAPH, WEIGHTS, has_weights, read_json, weight_files
from drama_models.runtimes.bert_shape import BertShape
from drama_models.runtimes.llama_shape import LlamaShape
from drama_models.runtimes.onnx_session import chosen_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drama_models.profile import Profile
    from drama_models.runtimes import Runtime
    from drama_models.runtimes.int8 import Tokenise

logger = logging.getLogger(__name__)

RuntimeName = Literal["auto", "torch", "onnx", "onnx-file", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
TORCH_TYPES = {"auto": "float32", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SIXTEEN_BITS = ("bf16", "fp16")
KIND_NAMES = {"llama": "Llama", "bert": "BERT"}
NVIDIA_DEVICE = Path("/dev/nvidiactl")


def load_runtime(
    folder: Path,
    profile: Profile,
    tokenise: Tokenise,
    *,
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    device: str | None = None,
    threads: int | None = None,
    compile: bool = False,  # noqa: A002
    sample_texts: Sequence[str] | None = None,
    batch_tokens: int | None = None,
) -> Runtime:
    """The runtime asked for, or the best one here; what was chosen is logged and in its `description`.

    Args:
        folder: model folder.
        profile: attention direction and pooling.
        tokenise: token ids of documents, for int8.
        runtime: "torch"; "onnx", from the safetensors of a Llama or a BERT, else from the folder's graph file;
            "onnx-file", from that file in any case; "openvino", from the safetensors of a Llama; or "auto".
        precision: "fp32", "bf16" (torch, OpenVINO), "fp16" (torch), "int8" (ONNX, from the safetensors of a Llama), or
            "auto", which is float32.
        device: for torch, such as "cuda"; the others know "cpu" only.
        threads: of one call of ONNX Runtime or OpenVINO; see `onnx_session.chosen_threads`.
        compile: for torch: let torch.compile fuse what is between matrix products.
        sample_texts: documents that int8 is calibrated and measured on; built-in ones in eleven scripts by default.
        batch_tokens: tokens computed at a time; by default what the runtime was fastest with. A longer text is a batch
            of its own.

    Raises:
        ModelFolderError: the folder has nothing that this runtime could run, or it is damaged.
        DeviceError: this runtime does not have this device or precision, or `threads` or `batch_tokens` is below 1.
        PrecisionError: int8 loses too much on the sample texts.
        MissingExtraError: the runtime's packages are not installed.
    """
    chosen = _chosen(folder, precision, device, compile) if runtime == "auto" else runtime
    if compile and chosen != "torch":
        raise DeviceError(f"compile=True is for runtime='torch'; runtime={chosen!r} has nothing to compile.")
    if batch_tokens is not None and batch_tokens < 1:
        raise DeviceError(f"batch_tokens={batch_tokens} must be above 0; leave it out for the runtime's own.")
    if threads is not None:
        chosen_threads(threads)
    if device not in (None, "cpu") and chosen != "torch":
        raise DeviceError(f"runtime={chosen!r} computes on the CPU; device={device!r} needs runtime='torch'.")
    loaded: Runtime
    if chosen == "torch":
        loaded = _torch(folder, profile, precision, device, compiled=compile)
    elif precision == "int8":
        loaded = _int8(folder, profile, chosen, threads, tokenise, sample_texts)
    elif chosen == "openvino":
        loaded = _openvino(folder, profile, precision, threads)
    else:
        loaded = _onnx(folder, profile, chosen, precision, threads)
    if batch_tokens is not None:
        loaded.batch_tokens = batch_tokens
    if "auto" in (runtime, precision):
        logger.info("runtime=%r, precision=%r chose %s for %s", runtime, precision, loaded.description, folder)
    return loaded


def _chosen(folder: Path, precision: Precision, device: str | None, compiled: bool) -> RuntimeName:
    if precision == "int8":
        return "onnx"
    if device is not None or compiled or _torch_has_a_gpu():
        return "torch"
    if precision in SIXTEEN_BITS:
        return "openvino" if precision == "bf16" and _openvino_has_bf16_for(folder) else "torch"
    if why_not_from_safetensors(folder) is None or (folder / ONNX_GRAPH).is_file():
        return "onnx"
    if find_spec("torch") is None:
        weight_files(folder)  # where there are none, that is the reason, and torch would not help
        raise MissingExtraError(
            f"Encoding with {folder}, which has no {ONNX_GRAPH} and is neither a Llama nor a BERT,", "torch"
        )
    return "torch"


def _torch(folder: Path, profile: Profile, precision: Precision, device: str | None, *, compiled: bool) -> Runtime:
    if precision not in TORCH_TYPES:
        raise DeviceError(f"precision={precision!r} is not one of torch's here; use {', '.join(TORCH_TYPES)}.")
    from drama_models.runtimes.torch_runtime import TorchRuntime

    return TorchRuntime(folder, profile, device, TORCH_TYPES[precision], compile=compiled)


def _int8(
    folder: Path,
    profile: Profile,
    runtime: RuntimeName,
    threads: int | None,
    tokenise: Tokenise,
    sample_texts: Sequence[str] | None,
) -> Runtime:
    reason = f"runtime={runtime!r} has none" if runtime != "onnx" else why_not_from_safetensors(folder, ("llama",))
    if reason is not None:
        raise DeviceError(f"precision='int8' needs runtime='onnx' and the safetensors of a Llama: {reason}.")
    from drama_models.runtimes.int8 import open_int8
    from drama_models.sample_texts import SAMPLE_TEXTS

    texts = SAMPLE_TEXTS if sample_texts is None else list(sample_texts)
    return open_int8(folder, profile, tokenise, texts, threads=threads)


def _openvino(folder: Path, profile: Profile, precision: Precision, threads: int | None) -> Runtime:
    reason = why_not_from_safetensors(folder, ("llama",))
    if reason is not None:
        raise DeviceError(f"runtime='openvino' needs the safetensors of a Llama: {reason}.")
    from drama_models.runtimes.openvino_runtime import OpenVinoRuntime

    return OpenVinoRuntime(folder, profile, "fp32" if precision == "auto" else precision, threads)


def _openvino_has_bf16_for(folder: Path) -> bool:
    """Whether OpenVINO is installed, runs this folder, and has bfloat16 on this processor."""
    if find_spec("openvino") is None or why_not_from_safetensors(folder, ("llama",)) is not None:
        return False
    from drama_models.runtimes.openvino_runtime import has_bf16

    return has_bf16()


def _onnx(folder: Path, profile: Profile, runtime: RuntimeName, precision: Precision, threads: int | None) -> Runtime:
    if precision in SIXTEEN_BITS:
        other = "'torch' or 'openvino'" if precision == "bf16" else "'torch'"
        has = "fp32 and int8" if runtime == "onnx" else "fp32 alone"
        raise DeviceError(f"precision={precision!r} needs runtime={other}; runtime={runtime!r} has {has}.")
    reason = why_not_from_safetensors(folder)
    if runtime == "onnx" and reason is None:
        if read_json(folder / "config.json").get("model_type") == "bert":
            from drama_models.runtimes.bert_runtime import BertOnnxRuntime

            return BertOnnxRuntime(folder, profile, threads)
        from drama_models.runtimes.llama_runtime import LlamaOnnxRuntime

        return LlamaOnnxRuntime.from_folder(folder, profile, threads)
    if runtime == "onnx" and not (folder / ONNX_GRAPH).is_file():
        raise ModelFolderError(f"{folder} has no {ONNX_GRAPH}, and {reason}; use runtime='torch'.")
    from drama_models.runtimes.onnx_runtime import OnnxRuntime

    return OnnxRuntime(folder, profile, threads)


def reads_graph_file(folder: Path, runtime: RuntimeName) -> bool:
    """Whether a runtime reads the folder's `onnx/model.onnx`; of "auto", whether it could."""
    return runtime == "onnx-file" or (runtime in ("auto", "onnx") and why_not_from_safetensors(folder) is not None)


def why_not_from_safetensors(folder: Path, kinds: Sequence[str] = ("llama", "bert")) -> str | None:
    """What keeps a folder from being run straight from its safetensors; None where nothing does.

    Args:
        folder: model folder.
        kinds: model types that would do.
    """
    if not has_weights(folder):
        return f"it has no {WEIGHTS}"
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in kinds:
        return f"a {kind} is no {' and no '.join(KIND_NAMES[name] for name in kinds)}"
    try:
        (LlamaShape if kind == "llama" else BertShape).from_config(config)
    except ModelFolderError as error:
        return str(error).rstrip(".")
    except (KeyError, TypeError):
        return None  # a damaged configuration: loading says what is wrong with it
    return None


def _torch_has_a_gpu() -> bool:
    """Whether torch would find a GPU; torch is not imported where there cannot be one."""
    if not NVIDIA_DEVICE.exists() or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
