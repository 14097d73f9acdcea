"""torch over a folder's safetensors, through transformers' own model classes; never the folder's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drama_models.errors import AttentionDirectionError, MissingExtraError, ModelFolderError
from drama_models.model_folder import check_llama_weights, read_json, weight_files
from drama_models.pooling import pool
from drama_models.runtimes.padding import pad

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from drama_models.profile import Profile


class TorchRuntime:
    """A transformers model in evaluation mode.

    Args:
        folder: model folder.
        profile: attention direction and pooling.
        device: such as "cpu" or "cuda"; None takes a GPU if there is one.
        dtype: "float32" or "bfloat16"; pooling is always in float32.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelFolderError: weights missing, damaged or of the wrong shape.
        AttentionDirectionError: the profile's direction cannot be honoured.
    """

    name = "torch"

    def __init__(self, folder: Path, profile: Profile, device: str | None = None, dtype: str = "float32") -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtraError("runtime='torch'", "torch") from None
        self._torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = read_json(folder / "config.json")
        if config.get("model_type") == "llama":
            check_llama_weights(folder, config)
        else:
            weight_files(folder)
        try:
            model = self._load(transformers, folder, profile, config, dtype=getattr(torch, dtype))
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, ModelFolderError):
                raise
            raise ModelFolderError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
        self._model = model.to(self.device).eval()
        self._pooling = profile.pooling

    def _load(self, transformers: Any, folder: Path, profile: Profile, config: dict[str, Any], dtype: Any) -> Any:
        if config.get("model_type") != "llama":
            model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
            if self._sees_later_tokens(model) != profile.bidirectional:
                wanted = "bidirectional" if profile.bidirectional else "causal"
                raise AttentionDirectionError(
                    f"{folder} is a {wanted} {config.get('model_type')}, which transformers "
                    f"{transformers.__version__} does not run that way; no vectors are better than wrong ones."
                )
            return model
        if profile.bidirectional:
            from drama_models.modeling_drama import DramaModel

            return DramaModel.from_pretrained(folder, dtype=dtype)  # checks its direction itself
        return transformers.LlamaModel.from_pretrained(folder, dtype=dtype)

    def _sees_later_tokens(self, model: Any) -> bool:
        """Whether a change of the last of three tokens reaches the first state."""
        ids = self._torch.tensor([[0, 1, 2], [0, 1, 3]])
        with self._torch.inference_mode():
            first = model(input_ids=ids, attention_mask=self._torch.ones_like(ids)).last_hidden_state[:, 0]
        return bool((first[0] != first[1]).any())

    def embed(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors, (number of texts, hidden size), float32."""
        torch = self._torch
        ids, mask = pad(batch)
        with torch.inference_mode():
            hidden = self._model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            ).last_hidden_state.float()
        return pool(hidden.cpu().numpy(), mask, self._pooling)
