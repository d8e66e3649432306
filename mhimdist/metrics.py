"""How good the scores of a set of bags are.

Dimensions: N bags, C classes.
"""

import numpy as np
from sklearn import metrics as sk


def auc(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float | None:
    """Area under the ROC curve; for C > 2 the mean over classes of one against the rest.

    None where it is undefined, because some class has no bag or every bag.
    """
    num_classes = probabilities_NC.shape[1]
    if len(np.unique(labels_N)) < num_classes:
        return None
    if num_classes == 2:
        return float(sk.roc_auc_score(labels_N, probabilities_NC[:, 1]))
    return float(sk.roc_auc_score(labels_N, probabilities_NC, multi_class="ovr", average="macro"))


def youden_threshold(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The score that maximises true- minus false-positive rate; the highest such one where several do."""
    false_positive, true_positive, thresholds = sk.roc_curve(labels_N, scores_N)
    # Rounded, so that rates equal but for their last bit count as equal.
    return float(thresholds[np.argmax(np.round(true_positive - false_positive, 12))])


def classification(
    labels_N: np.ndarray, probabilities_NC: np.ndarray, threshold: float | None
) -> dict[str, float | None]:
    """AUC, accuracy, F1, precision and recall; of two classes the second is the positive one.

    Args:
        labels_N: int64 class indices.
        probabilities_NC: class probabilities.
        threshold: for two classes, the least probability called positive; it comes from other bags than
            these. With more classes the most probable one is predicted, and the scores are macro means.
    """
    binary = probabilities_NC.shape[1] == 2
    if binary:
        assert threshold is not None
        predicted_N = (probabilities_NC[:, 1] >= threshold).astype(np.int64)
    else:
        threshold, predicted_N = None, probabilities_NC.argmax(1)
    how = {"average": "binary" if binary else "macro", "zero_division": 0.0}
    return {
        "auc": auc(labels_N, probabilities_NC),
        "accuracy": float(sk.accuracy_score(labels_N, predicted_N)),
        "f1": float(sk.f1_score(labels_N, predicted_N, **how)),
        "precision": float(sk.precision_score(labels_N, predicted_N, **how)),
        "recall": float(sk.recall_score(labels_N, predicted_N, **how)),
        "threshold": threshold,
    }
