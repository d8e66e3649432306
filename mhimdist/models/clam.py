"""CLAM: attention pooling, with clustering of the most and least attended instances (Lu et al. 2021).

Dimensions: T instances of a batch, B bags, B1 = B + 1 offsets, C classes, E embedding width, H attention
branches (1, or C), I clustered instances of a bag, K = 2 clusters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhimdist import ops
from mhimdist.config import models as model_settings
from mhimdist.data.bags import PackedBags
from mhimdist.errors import ConfigError
from mhimdist.models.interface import BagModel, BagOutput, Projection, softmax_over_bags
from mhimdist.models.layers.gated_attention import GatedAttention
from mhimdist.models.layers.linear import Linear, wide
from mhimdist.tasks import Task, Truth


@dataclass(frozen=True)
class CLAMOutput(BagOutput):
    """The bags' logits, and their clustering losses for every label that a bag may have.

    Attributes:
        inside_loss_BC: the loss of a bag of class c, whose most attended instances should be of class c and
            whose least attended ones should not.
        outside_loss_BC: the loss of a bag of another class, whose most attended instances should not be of
            class c.
    """

    inside_loss_BC: Tensor
    outside_loss_BC: Tensor


def _is_class(classes_N: Tensor, num_classes: int) -> Tensor:
    """`one_hot` as booleans, N x C, without its check of the classes, for which the host reads them."""
    return classes_N[:, None] == torch.arange(num_classes, device=classes_N.device)


def smooth_top1_svm(
    logits_IK: Tensor, targets_I: Tensor, *, temperature: float = 1.0, margin: float = 1.0
) -> Tensor:
    """The smooth top-1 SVM loss of each instance (Berrada et al. 2018, with k = 1), shape I.

    The hinge loss is the maximum of s_j + margin [j != y] over the classes j, minus the true score s_y. The
    maximum is smoothed to tau log sum_j exp(. / tau), which bounds it from above and tends to it as tau tends
    to 0:

        tau log sum_j exp((s_j + margin [j != y] - s_y) / tau)

    For two classes this is tau softplus((s_other - s_y + margin) / tau).

    Args:
        logits_IK: scores s of the K classes.
        targets_I: int64 true class y.
        temperature: tau, above 0.
        margin: alpha, the lead that the true score should have.
    """
    wrong_IK = ~_is_class(targets_I, logits_IK.shape[1])
    lead_IK = logits_IK - logits_IK.gather(1, targets_I[:, None]) + margin * wrong_IK
    return temperature * torch.logsumexp(lead_IK / temperature, dim=1)


class CLAM(BagModel):
    """Gated attention with one branch (SB) or one per class (MB), and one instance classifier per class.

    SB classifies one embedding; MB has one embedding per class, from which that class's logit follows. The
    label's instance classifier should separate the k highest-scored instances of the label's branch from the
    k lowest-scored ones. With subtyping, each other class's classifier should also reject the k
    highest-scored instances of that class's branch, and the loss is the mean over classes.

    With 1,024 features, widths 512 and 256 and two classes, MB has 788,996 parameters, plus 2,052 in the
    instance classifiers.
    """

    def __init__(
        self, settings: model_settings.CLAM, num_features: int, num_outputs: int, *, num_classes: int
    ) -> None:
        """Make the layers; `initialize` draws their weights.

        Args:
            settings, num_features: see `models.build`.
            num_outputs: number O of outputs for a bag.
            num_classes: number C of classes that instances are clustered by; CLAM-MB needs O = C.
        """
        super().__init__()
        self.settings = settings
        self.num_branches = num_classes if settings.name == "clam_mb" else 1
        width = settings.hidden_dim
        self.projection = Projection(num_features, width, settings.dropout)
        self.attention = GatedAttention(
            width, settings.attention_dim, num_heads=self.num_branches, dropout=settings.dropout
        )
        self.head = Linear(width, num_outputs)
        self.instance_heads = nn.ModuleList(Linear(width, 2) for _ in range(num_classes))

    def forward(self, bags: PackedBags, dropout_keys_B: Tensor | None = None) -> CLAMOutput:
        """See `BagModel.forward`; no scores to mask by, one embedding per branch."""
        hidden_TE = self.projection(bags, dropout_keys_B)
        scores_TH = self.attention(hidden_TE, bags.offsets_B1, dropout_keys_B)
        embeddings_BHE = ops.segment_softmax_pool(scores_TH, hidden_TE, bags.offsets_B1)
        if self.num_branches == 1:
            logits_BC = self.head(embeddings_BHE[:, 0])
        else:
            logits_BC = (embeddings_BHE * self.head.weight).sum(2) + self.head.bias
        inside_BC, outside_BC = self._cluster(hidden_TE, scores_TH, bags.offsets_B1)
        return CLAMOutput(logits_BC, embeddings_BHE, None, inside_BC, outside_BC)

    def attention_weights(self, bags: PackedBags, output: BagOutput) -> Tensor:
        """See `BagModel.attention_weights`; a column per branch."""
        scores_TH = self.attention(self.projection(bags, None), bags.offsets_B1)
        return softmax_over_bags(scores_TH, bags)

    def instance_probabilities(self, bags: PackedBags) -> Tensor:
        """See `BagModel.instance_probabilities`: what the model says of a bag of that instance alone."""
        return self._by_head(bags, self.head)

    def _cluster(self, hidden_TE: Tensor, scores_TH: Tensor, offsets_B1: Tensor) -> tuple[Tensor, Tensor]:
        """The bags' clustering losses inside and outside each class, both B x C."""
        count = self.settings.num_clustered
        extremes = [
            ops.segment_top_k(scores_TH, count, offsets_B1, largest=largest) for largest in (True, False)
        ]
        rows_BIH = torch.cat(extremes, dim=1)
        there_BIH = rows_BIH >= 0  # a bag with fewer instances has fewer extremes
        hidden_JE = hidden_TE.index_select(0, rows_BIH.clamp_min(0).flatten())  # J = B x I x H
        hidden_BIHE = wide(hidden_JE).unflatten(0, rows_BIH.shape)
        is_top_I = torch.arange(2 * count, device=hidden_TE.device) < count
        targets_BI = is_top_I.long().expand(rows_BIH.shape[:2])
        inside, outside = [], []
        for label, instance_head in enumerate(self.instance_heads):
            branch = label if self.num_branches > 1 else 0
            logits_BIK, there_BI = instance_head(hidden_BIHE[:, :, branch]), there_BIH[:, :, branch]
            inside.append(self._mean_loss(logits_BIK, targets_BI, there_BI))
            outside.append(self._mean_loss(logits_BIK, torch.zeros_like(targets_BI), there_BI & is_top_I))
        return torch.stack(inside, dim=1), torch.stack(outside, dim=1)

    def _mean_loss(self, logits_BIK: Tensor, targets_BI: Tensor, counts_BI: Tensor) -> Tensor:
        """The mean loss over the instances of each bag that count, shape B."""
        loss_J = self._instance_loss(logits_BIK.flatten(0, 1), targets_BI.flatten())
        loss_BI = torch.where(counts_BI, loss_J.unflatten(0, counts_BI.shape), 0)
        return loss_BI.sum(1) / counts_BI.sum(1)

    def _instance_loss(self, logits_IK: Tensor, targets_I: Tensor) -> Tensor:
        if self.settings.instance_loss == "svm":
            return smooth_top1_svm(logits_IK, targets_I)
        return functional.cross_entropy(logits_IK, targets_I, reduction="none")

    def loss(self, output: BagOutput, truth: Truth) -> Tensor:
        """0.7 x loss of the bag + 0.3 x clustering loss (the default weight), shape B.

        Args:
            output, truth: see `BagModel.loss`.
        """
        assert isinstance(output, CLAMOutput), "it is this network's own output"
        labels_B = truth.labels_B
        bag_loss_B = self._task_loss(output.logits_BC, truth)
        is_label_BC = _is_class(labels_B, output.inside_loss_BC.shape[1])
        if self.settings.subtyping:
            losses_BC = torch.where(is_label_BC, output.inside_loss_BC, output.outside_loss_BC)
            instance_loss_B = losses_BC.mean(1)
        else:
            instance_loss_B = output.inside_loss_BC.gather(1, labels_B[:, None]).squeeze(1)
        weight = self.settings.instance_loss_weight
        return (1 - weight) * bag_loss_B + weight * instance_loss_B


def check_clam(settings: model_settings.CLAM, task: Task) -> None:
    """Check that CLAM is defined for a task.

    Raises:
        ConfigError: the task has no classes, or for CLAM-MB not one output per class.
    """
    if not task.has_classes:
        raise ConfigError(
            f"model.name: {settings.name} clusters instances by class, and {task.name} has no "
            "classes; choose another model"
        )
    if settings.name == "clam_mb" and task.num_outputs != len(task.classes):
        raise ConfigError(
            f"model.name: clam_mb has one branch and one output per class, and {task.name} has "
            f"{task.num_outputs} output(s) for {len(task.classes)} classes; choose clam_sb or another model"
        )
