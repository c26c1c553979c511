"""How good a model is, without training it: zero-shot classification and retrieval over labelled source shards.

Teachers and students stand in one table: whatever open_clip opens, or a student in the middle of its training. Costs
one pass of the image tower over the shards, on any device; nothing but embeddings is kept, and images if asked to.
"""

from reinforce.evaluation.crossmodal import CrossModalTask
from reinforce.evaluation.linear import LinearTask
from reinforce.evaluation.model import EmbeddingModel, embedding_model_of, load_embedding_model
from reinforce.evaluation.multilabel import MultiLabelTask
from reinforce.evaluation.results import (
    CrossModalResult,
    LinearResult,
    MultiLabelResult,
    RetrievalResult,
    ZeroShotResult,
    render_class_table,
    render_table,
)
from reinforce.evaluation.retrieval import RetrievalTask
from reinforce.evaluation.run import evaluate_models
from reinforce.evaluation.zeroshot import ZeroShotTask

__all__ = [
    "CrossModalResult",
    "CrossModalTask",
    "EmbeddingModel",
    "LinearResult",
    "LinearTask",
    "MultiLabelResult",
    "MultiLabelTask",
    "RetrievalResult",
    "RetrievalTask",
    "ZeroShotResult",
    "ZeroShotTask",
    "embedding_model_of",
    "evaluate_models",
    "load_embedding_model",
    "render_class_table",
    "render_table",
]
