"""transformers' own model for what is not Llama-shaped: packed where it can be, padded where it cannot.

The direction of attention is tried, and refused where it is not the profile's. Only classes of transformers itself are
used, never a folder's code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from drama_models.attention import enable_packing, first_position, pack, sees_later_tokens
from drama_models.errors import AttentionDirectionError, ModelFolderError
from drama_models.model_folder import check_llama_weights, tensor_shapes, weight_files
from drama_models.modeling_drama import DramaModel
from drama_models.packing import pool_packed
from drama_models.pooling import pool
from drama_models.runtimes.linear import prepack_linears
from drama_models.runtimes.padding import pad
from drama_models.setting_kinds import check_bert_settings

if TYPE_CHECKING:
    from pathlib import Path

    from drama_models.profile import Profile


class StockBackend:
    """A transformers model in evaluation mode; errors as of `TorchRuntime`."""

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        config: dict[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        try:
            self.model = _load(folder, profile, config, dtype).to(device).eval()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, StrictDataclassError) as error:
            if isinstance(error, ModelFolderError):
                raise
            raise ModelFolderError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        self.model.config.use_cache = False  # a decoder would keep all keys and values for a next token
        self.device, self.pooling = device, profile.pooling
        self.packed = enable_packing(self.model)
        self.first_position = first_position(self.model)
        if device.type == "cpu":
            prepack_linears(self.model)
        if compiled:
            self.model.compile(dynamic=True)

    def __call__(self, texts: list[Tensor]) -> Tensor:
        """Pooled vectors, (n, D), float32."""
        if self.packed:
            inputs = pack([text.to(self.device) for text in texts], self.first_position)
            return pool_packed(self.model(**inputs).last_hidden_state[0], inputs["cu_seq_lens_q"], self.pooling)
        ids, mask = (torch.from_numpy(array) for array in pad([text.numpy() for text in texts]))
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        return torch.from_numpy(np.ascontiguousarray(pool(states.float().cpu().numpy(), mask.numpy(), self.pooling)))


def _load(folder: Path, profile: Profile, config: dict[str, Any], dtype: torch.dtype) -> Any:
    kind = config.get("model_type")
    if kind == "llama":
        check_llama_weights(folder, config)
        if profile.bidirectional:
            return DramaModel.from_pretrained(folder, dtype=dtype)  # checks its direction itself
    else:
        if kind == "bert":
            check_bert_settings(folder / "config.json", config)
        for path in weight_files(folder):
            tensor_shapes(path)  # names a damaged file
    settings: dict[str, Any] = {"add_pooling_layer": False} if kind in ("bert", "roberta", "xlm-roberta") else {}
    settings |= {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    loaded, info = transformers.AutoModel.from_pretrained(folder, **settings)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))  # which is not used
    if missing:  # transformers has made them up
        raise ModelFolderError(f"{folder} has no tensor {missing[0]!r}; use weights and config.json of one model.")
    model = loaded.eval()
    if sees_later_tokens(model) != profile.bidirectional:
        wanted = "bidirectional" if profile.bidirectional else "causal"
        raise AttentionDirectionError(
            f"{folder} is taken for a {wanted} {kind}, which transformers {transformers.__version__} does not run that "
            f"way; no vectors are better than wrong ones. If it was trained the other way, set "
            f"`is_causal: {str(profile.bidirectional).lower()}` in its config.json."
        )
    return model
