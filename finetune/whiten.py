"""PCA-whitening of vectors, fitted on the training pictures. Knows nothing about networks or files."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from skumatch.errors import ConfigError
from skumatch.spec import Vectors

FLOOR = 1e-3  # of the largest eigenvalue: weaker directions are noise, which whitening would blow up
BLOCK = 8192  # rows whose products are summed at once


def fit_pca(vectors: Vectors, dims: int) -> nn.Linear:
    """Return PCA-whitening to ``dims`` dimensions as a linear layer on unit rows ``vectors`` (N, D).

    The layer maps x to diag(l)^-1/2 P (x - mean), P being the eigenvectors of the largest eigenvalues l of the
    covariance (Jegou and Chum, "Negative evidences and co-occurences in image retrieval", ECCV 2012), each turned so
    that its largest entry is positive. In float64. Raises ConfigError when ``dims`` is more than the vectors span.
    """
    rows, width = vectors.shape
    if dims > min(rows - 1, width):
        said = f"serve: pca is {dims}, but {rows} training pictures of {width} dimensions span {min(rows - 1, width)}"
        raise ConfigError(said, "lower pca")
    mean = vectors.mean(0, dtype=np.float64)
    covariance = np.zeros((width, width))
    for start in range(0, rows, BLOCK):
        centred = vectors[start : start + BLOCK].astype(np.float64) - mean
        covariance += centred.T @ centred
    values, columns = np.linalg.eigh(covariance / (rows - 1))
    values, kept = values[::-1][:dims], columns[:, ::-1][:, :dims].T
    kept *= np.sign(kept[np.arange(dims), np.abs(kept).argmax(1)])[:, None]
    matrix = kept / np.sqrt(np.maximum(values, FLOOR * values[0]))[:, None]
    layer = nn.Linear(width, dims)
    layer.weight.data.copy_(torch.from_numpy(matrix))
    layer.bias.data.copy_(torch.from_numpy(-matrix @ mean))
    return layer.requires_grad_(False)
