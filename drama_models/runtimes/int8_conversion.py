"""From the float32 weights of a Llama to int8 tensors: calibrated, quantised, measured, left out where they fail.

The largest inputs of every linear layer on the sample texts, outlier channels moved into the weights (`outliers`),
weights in eight bits with a scale for each row, and the cosine between the embeddings before and after on the same
texts. Below the wanted cosine the layers that lose most go back to float32 one after another; if half of them do not
suffice, the conversion is refused.

Weights are signed bytes where ONNX Runtime multiplies those exactly: on x86 with VNNI, which is more than twice as fast
with them, and on others. Elsewhere they are unsigned, 128 standing for 0, since x86 without VNNI adds two products with
signed bytes in 16 bits, which overflow now and then and double the error of a layer. `byte_products` tries which it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import PrecisionError
from drama_models.pooling import cosines
from drama_models.runtimes.byte_products import quantised_rows, signed_bytes_are_exact
from drama_models.runtimes.graph_names import INT8, WEIGHT
from drama_models.runtimes.int8 import Int8Report
from drama_models.runtimes.llama_runtime import LlamaEncoder
from drama_models.runtimes.outliers import smoothed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from drama_models.profile import Profile
    from drama_models.runtimes.llama_shape import LlamaShape
    from drama_models.runtimes.mapped_weights import MappedWeights

    Tensors = dict[str, NDArray[Any]]


class Conversion:
    """From the float32 weights of a model to int8 tensors that are good enough.

    Args:
        shape: of the model.
        weights: of the model.
        profile: attention direction and pooling.
        threads: of one call.
        signed: store weights as signed bytes; by default where this machine multiplies them exactly.
    """

    def __init__(
        self,
        shape: LlamaShape,
        weights: MappedWeights,
        profile: Profile,
        *,
        threads: int,
        signed: bool | None = None,
    ) -> None:
        self.shape, self.weights, self.profile, self.threads = shape, weights, profile, threads
        self._signed = signed

    def encoder(self, tensors: Tensors, keep_in: Path | None = None) -> LlamaEncoder:
        """An encoder over converted tensors; what is int8 among them runs in int8.

        Args:
            tensors: as of `convert`.
            keep_in: folder to keep the packed session in; see `onnx_session`.
        """
        quantised = [name.removesuffix(INT8) for name in tensors if name.endswith(INT8)]
        return self._encoder(tensors, quantised, keep_in=keep_in)

    def convert(self, samples: Sequence[NDArray[np.int64]], min_cosine: float) -> tuple[Tensors, Int8Report]:
        """Tensors by the names that the graph asks for, and how good they are.

        Args:
            samples: token ids of the sample texts.
            min_cosine: the smallest that is accepted for any of them.

        Raises:
            PrecisionError: not reached with half of the layers left in float32.
        """
        exact, expected = self.evened_out(samples)
        by_loss: list[int] = []
        for number in range(self.shape.layers // 2 + 1):
            if number == 1:  # only now, since it takes a session for every layer
                by_loss = self._by_loss(exact, samples, expected)
            kept = by_loss[:number]
            tensors = self._quantised(exact, set(range(self.shape.layers)) - set(kept))
            reached = self._cosines(tensors, samples, expected)
            if reached.min() >= min_cosine:
                report = Int8Report(float(reached.min()), float(reached.mean()), len(samples), tuple(sorted(kept)))
                return tensors, report
        raise PrecisionError(
            f"int8 reaches a smallest cosine of {reached.min():.4f} on {len(samples)} sample texts, with {len(kept)} "
            f"of {self.shape.layers} layers left in fp32; {min_cosine} is asked for. Use precision='fp32', or pass "
            "sample_texts that are like what you encode."
        )

    def evened_out(self, samples: Sequence[NDArray[np.int64]]) -> tuple[Tensors, NDArray[np.float32]]:
        """The model's own tensors with outlier channels moved into weights, and its embeddings of the samples."""
        encoder = self._encoder(self.weights, watched=True)
        expected = np.concatenate([encoder.embed([ids], self.profile.pooling) for ids in samples])
        peaks = [encoder.peaks([ids]) for ids in samples]
        largest = {name: np.max([peak[name] for peak in peaks], axis=0) for name in peaks[0]}
        tensors: Tensors = {"norm.weight": np.array(self.weights["norm.weight"])}
        for layer in range(self.shape.layers):
            tensors |= smoothed(self.weights, self.shape, largest, layer)
        return tensors, expected

    def _by_loss(
        self, exact: Tensors, samples: Sequence[NDArray[np.int64]], expected: NDArray[np.float32]
    ) -> list[int]:
        """Layers, the one that loses most when it alone is in int8 first."""
        smallest = [
            float(self._cosines(self._quantised(exact, {layer}), samples, expected).min())
            for layer in range(self.shape.layers)
        ]
        return sorted(range(self.shape.layers), key=lambda layer: smallest[layer])

    def _quantised(self, exact: Tensors, layers: set[int]) -> Tensors:
        tensors = dict(exact)
        signed = signed_bytes_are_exact() if self._signed is None else self._signed
        for name in self.shape.linear_sizes():
            if int(name.split(".")[1]) in layers:
                tensors |= quantised_rows(name, tensors.pop(name + WEIGHT), signed=signed)
        return tensors

    def _cosines(
        self, tensors: Tensors, samples: Sequence[NDArray[np.int64]], expected: NDArray[np.float32]
    ) -> NDArray[np.floating]:
        encoder = self.encoder(tensors)
        found = np.concatenate([encoder.embed([ids], self.profile.pooling) for ids in samples])
        return cosines(found, expected)

    def _encoder(
        self,
        tensors: Tensors | MappedWeights,
        quantised: Sequence[str] = (),
        *,
        watched: bool = False,
        keep_in: Path | None = None,
    ) -> LlamaEncoder:
        return LlamaEncoder.built(
            self.shape,
            self.weights,
            tensors,
            bidirectional=self.profile.bidirectional,
            threads=self.threads,
            quantised=quantised,
            watched=watched,
            keep_in=keep_in,
        )
