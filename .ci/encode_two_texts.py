"""Encode two texts and search them with the installed wheel, in an environment that has no torch.

python - FOLDER... < .ci/encode_two_texts.py       (outside the checkout, so that the wheel is what is imported)
"""

import sys
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import numpy as np

from drama_models import Encoder, Index, Retriever
from drama_models.index import ModelIdentity

heavy = [package for package in ("torch", "transformers", "sentence_transformers") if find_spec(package)]
if heavy:
    sys.exit(f"this environment has {heavy}; it must hold the wheel and its own requirements only")
for folder in sys.argv[1:]:
    encoder = Encoder.from_pretrained(folder)
    vectors = encoder.encode_documents(["Return the mean along an axis.", "Join two tables on a shared column."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with TemporaryDirectory() as work:
        index = Index(encoder.dim, ModelIdentity.of(encoder))
        index.add(["mean", "join"], vectors)
        index.save(f"{work}/index")
        hits = Retriever(encoder, Index.load(f"{work}/index")).search("join two tables", k=2)
    if {name for name, _ in hits} != {"mean", "join"}:
        sys.exit(f"{folder}: a search for two documents found {hits}")
    print(f"{folder}: {vectors.shape[0]} texts, {vectors.shape[1]} numbers each, by {encoder.runtime.description}")
