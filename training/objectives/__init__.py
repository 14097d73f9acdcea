"""Training objectives: functions of a batch's embeddings and labels, one idea a file, made to be put together.

An objective is called with query embeddings (B, D), document embeddings (B * N, D), each query's documents in turn, and
`Labels`; it returns a scalar. (A reranker's `Multilayer` takes scores in place of embeddings.) Embeddings come in as
the encoder pooled them, not normalised, so that `Matryoshka` can cut them first. Every objective computes in float32 or
better, whatever the embeddings and autocast say.
"""

from training.objectives.contrastive import Contrastive
from training.objectives.false_negatives import FalseNegatives
from training.objectives.labels import Labels
from training.objectives.listwise import Listwise
from training.objectives.matryoshka import Matryoshka
from training.objectives.multilayer import Multilayer
from training.objectives.objective import Objective
from training.objectives.ordered_distillation import OrderedDistillation
from training.objectives.reranker_distillation import RerankerDistillation
from training.objectives.weighted_sum import WeightedSum

__all__ = [
    "Contrastive",
    "FalseNegatives",
    "Labels",
    "Listwise",
    "Matryoshka",
    "Multilayer",
    "Objective",
    "OrderedDistillation",
    "RerankerDistillation",
    "WeightedSum",
]
