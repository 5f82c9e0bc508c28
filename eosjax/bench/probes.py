"""What a buffer does to the rows that a head learns from: their age, what the age gives away, and how well they are known by heart."""

from __future__ import annotations

import numpy as np

_MOST_ROWS = 1000  # to tell the age from
_FOLDS = 5


def class_from_age(positive: np.ndarray, negative: np.ndarray) -> float:
    """How well the age alone tells the class: the area under the ROC curve of "the older of two is the end".

    0.5: not at all; 1: always. A head that can read the age from the hidden states has that much to gain from it, and to lose with fresh
    rows. NaN without rows of both classes.

    Args:
      positive, negative: ages of the rows of each class.
    """
    if not positive.size or not negative.size:
        return float("nan")
    below = np.searchsorted(np.sort(negative), positive, side="left")
    up_to = np.searchsorted(np.sort(negative), positive, side="right")
    return float(np.mean(below + up_to) / 2 / negative.size)


def age_from_hidden(hidden: np.ndarray, ages: np.ndarray, seed: int = 0) -> float:
    """How well a row's hidden state tells whether it is among the older half: ROC area of a logistic regression, cross-validated.

    Rows that entered together may stem from one image, so that they stay in one fold: what is learnt must hold at other times. 0.5: the
    states do not tell; so it must be while the policy does not change. NaN where there are fewer than five ages in either half.

    Args:
      hidden: [n ...], rows of one class.
      ages: i64 [n].
      seed: of the choice of rows, if there are more than 1000.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not ages.size:
        return float("nan")
    chosen = np.random.default_rng(seed).permutation(len(hidden))[:_MOST_ROWS]
    x, ages = np.asarray(hidden[chosen], np.float32).reshape(chosen.size, -1), ages[chosen]
    old = ages > np.median(ages)
    if min(np.unique(ages[old]).size, np.unique(ages[~old]).size) < _FOLDS:
        return float("nan")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    said = cross_val_predict(model, x, old, groups=ages, cv=StratifiedGroupKFold(_FOLDS), method="decision_function")
    return float(roc_auc_score(old, said))


def class_balanced_loss(logits: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """Cross-entropy of raw logits in a world in which the share `prior` of the rows are ends; NaN without rows of both classes.

    Args:
      logits: f[n].
      labels: bool [n].
      prior: share of ends, between 0 and 1.
    """
    if not 0 < labels.sum() < labels.size:
        return float("nan")
    losses = np.logaddexp(0, np.where(labels, -logits, logits).astype(np.float64))
    return float(prior * losses[labels].mean() + (1 - prior) * losses[~labels].mean())


def drift(now: np.ndarray, before: np.ndarray) -> float:
    """How far the hidden states of the same inputs have moved: the mean over rows of |now - before| / |now|.

    Args:
      now, before: [n ...], of the same rows under the newer and the older policy.
    """
    now, before = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (now, before))
    return float(np.mean(np.linalg.norm(now - before, axis=1) / np.linalg.norm(now, axis=1)))
