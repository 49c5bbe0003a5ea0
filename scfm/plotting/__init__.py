"""scfm.pl: figures of annotated data, evaluations and training, returned as matplotlib Axes."""

from scfm.plotting.scores import confusion, loss_curve, method_scores, per_class, reliability
from scfm.plotting.tf_heatmap import tf_heatmap
from scfm.plotting.umap import umap_confidence, umap_labels

__all__ = [
    "confusion",
    "loss_curve",
    "method_scores",
    "per_class",
    "reliability",
    "tf_heatmap",
    "umap_confidence",
    "umap_labels",
]
