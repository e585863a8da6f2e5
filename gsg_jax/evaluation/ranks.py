"""How many directions embeddings use: RankMe of single images, LiDAR of images and their views."""

import numpy as np
import scipy.linalg

MAX_RANKME_ROWS = 25_600  # the paper's
WITHIN = 1e-4  # LiDAR's, added to the variance within an image


def rankme(rows: np.ndarray) -> float:
    """The exponential of the entropy of the rows' normalised singular values, in [1, F].

    Args:
      rows: embeddings [N, F], not centred; at most 25,600 of them, evenly spaced, are used.

    Source: Garrido et al., ICML 2023 (arXiv 2210.02885), eq. 1.
    """
    rows = rows[:: -(-len(rows) // MAX_RANKME_ROWS)].astype(np.float64)
    squares = np.linalg.eigvalsh(rows.T @ rows)
    return _exponential_entropy(np.sqrt(np.maximum(squares, 0)))


def lidar(views: np.ndarray) -> float:
    """The exponential of the entropy of the eigenvalues of W^-1/2 B W^-1/2, at least 1.

    B is the covariance of the images' means, W that of the views around them, plus 1e-4 I. A
    direction in which only the views of an image differ counts little.

    Args:
      views: embeddings of q views of each image, [N, q, F].

    Source: Thilak et al., ICLR 2024 (arXiv 2312.04000), section 4.
    """
    views = views.astype(np.float64)
    means = views.mean(axis=1)  # [N, F]
    around = (views - means[:, None]).reshape(-1, views.shape[-1])
    means = means - means.mean(axis=0)
    within = around.T @ around / len(around) + WITHIN * np.eye(around.shape[1])
    values = scipy.linalg.eigh(means.T @ means / len(means), within, eigvals_only=True)
    return _exponential_entropy(np.maximum(values, 0))


def _exponential_entropy(values: np.ndarray) -> float:
    """exp(-sum p log p) of non-negative values, p their shares; 0 if all are 0."""
    shares = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
