"""Query by committee: label the samples on which separately trained networks disagree.

Passes per sample: K. Suits classification, multi-label and dense classification (mean over labels and positions).
Memory: two numbers per sample, and K sets of weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_al.acquisition.contract import Acquisition
from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.formulas.disagreement import bald, predictive_entropy, vote_entropy
from lightning_al.functional import top_k
from lightning_al.model.committee import copy_untrained, read_member, reinitialize, train_member
from lightning_al.model.output import ClassOutput, check_output
from lightning_al.model.position_scores import score_passes
from lightning_al.model.predictor import Predictor
from lightning_al.model.weight_swap import copy_to_device_of, weight_passes, weights_of
from lightning_al.numerics.seeding import RandomStream
from lightning_al.scoring.failing_together import raised_on_all_processes

Disagreement = Literal["vote_entropy", "consensus_entropy", "kl_divergence"]


class QueryByCommitteeAcquisition(Acquisition):
    r"""Label the samples on which the members of a committee disagree.

    Networks that explain the labels equally well and still differ on a sample cannot all be right about it. The
    committee is the trained network and either the given checkpoints or more networks, trained at fit end.

    Vote entropy: $-\sum_c \frac{V_c}{K} \log \frac{V_c}{K}$ with $V_c$ votes for class c. Consensus entropy:
    $H(\bar p)$ of the mean prediction. KL divergence: $\frac{1}{K} \sum_k D(p_k \| \bar p)$.

    Args:
        query_size: Samples to label per cycle: a number, or a share of the whole dataset in (0, 1].
        checkpoints: Files with the weights of the other members: Lightning checkpoints or plain state dicts. None
            trains them.
        members: K, at least 2, where members are trained: the fitted network and K - 1 more.
        disagreement: `"vote_entropy"`, with ties broken by the entropy of the consensus; `"consensus_entropy"`; or
            `"kl_divergence"`, the mean divergence from the consensus.
        reinitialize: Start members from fresh weights, by each module's `reset_parameters`; False starts them from
            the weights from before the fit, for pretrained networks, so that only the order of the data differs.
        bootstrap: Train each member on as many labeled samples drawn with replacement.
        trust_checkpoints: Load `checkpoints` with any Python object in them, which can run any code.
        seed: Seed of the members; None takes the datamodule's.
        output: `"softmax"` for one of several classes; `"sigmoid"` for a binary logit, or several labels, over which
            the score is averaged.

    Raises:
        ValueError: If an argument is out of range, or there is no such checkpoint.

    Cost: K forward passes per candidate, and K - 1 trainings on the labeled part, one after the other, each with the
        trainer's epochs, steps, precision, clipping and accumulation, but without its callbacks; each process trains
        all of them. K sets of weights on the device.

    Example:
        >>> QueryByCommitteeAcquisition(query_size=100, members=5).members
        5

    References:
        Seung, Opper and Sompolinsky, Query by Committee (1992); Engelson and Dagan, Minimizing Manual Annotation Cost
        in Supervised Training from Corpora (1996); McCallum and Nigam, Employing EM and Pool-Based Active Learning
        for Text Classification (1998).

    """

    def __init__(
        self,
        query_size: int | float,
        checkpoints: Sequence[str] | None = None,
        members: int = 3,
        disagreement: Disagreement = "vote_entropy",
        reinitialize: bool = True,
        bootstrap: bool = False,
        trust_checkpoints: bool = False,
        seed: int | None = None,
        output: ClassOutput = "softmax",
    ) -> None:
        super().__init__(query_size)
        check_output("QueryByCommitteeAcquisition", output)
        if members < 2:
            raise ValueError(
                f"`QueryByCommitteeAcquisition(members={members})`: expected at least 2 members, which can disagree."
            )
        if disagreement not in get_args(Disagreement):
            raise ValueError(
                f"`QueryByCommitteeAcquisition(disagreement={disagreement!r})`: expected one of "
                f"{get_args(Disagreement)}."
            )
        if checkpoints is not None:
            _check_files(checkpoints)
            if bootstrap or not reinitialize:
                raise ValueError(
                    f"`QueryByCommitteeAcquisition(reinitialize={reinitialize}, bootstrap={bootstrap})` set how "
                    "members are trained, which those from `checkpoints` are already: leave them out."
                )
        self.checkpoints = checkpoints
        self.members = members
        self.disagreement = disagreement
        self.reinitialize = reinitialize
        self.bootstrap = bootstrap
        self.trust_checkpoints = trust_checkpoints
        self.seed = seed
        self.output = output
        self._start: LightningModule | None = None  # the module as it was before the fit, while the fit lasts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep a copy of the untrained module, from which the other members are trained."""
        super().setup(trainer, pl_module, stage)
        trains_members = stage == "fit" and self.checkpoints is None
        if trains_members and trainer.limit_train_batches == 0:  # as in `lightning_al.query`
            raise MisconfigurationException(
                "`QueryByCommitteeAcquisition` trains its members as this fit trains, but it trains no batch. Pass "
                "`checkpoints=` with the weights of the other members."
            )
        self._start = copy_untrained(pl_module) if trains_members else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the copy."""
        self._start = None

    def prepare(self, context: QueryContext) -> None:
        """Read or train the other members; before training, start them only."""
        module = context.predictor.module
        assert isinstance(module, LightningModule)
        if self._start is None:
            other_members = (
                read_member(module, path, trusted=self.trust_checkpoints) for path in self.checkpoints or ()
            )
        elif context.rehearsal:
            other_members = (self._start_member(self._start) for _ in range(1, self.members))
        else:
            other_members = (
                self._train(self._start, module.trainer, context, member) for member in range(1, self.members)
            )
        fitted = {name: tensor.data for name, tensor in weights_of(module).items()}
        self._committee = [fitted, *(copy_to_device_of(module, weights) for weights in other_members)]

    def measure(self, predictor: Predictor, batch: Any) -> Tensor:
        """Return (B, 2) the disagreement on each sample of a batch, and the entropy of the consensus."""
        passes = list(weight_passes(predictor, batch, self._committee, self.output))
        disagreement = {"vote_entropy": vote_entropy, "consensus_entropy": predictive_entropy, "kl_divergence": bald}
        formulas = disagreement[self.disagreement], predictive_entropy
        return torch.stack(
            [score_passes(formula, predictor, batch, passes, self.output) for formula in formulas], dim=1
        )

    def rows_to_gather(self, rows: Tensor, budget: int) -> Tensor:
        """Return the rows that may be picked."""
        return top_k(rows[:, 0], budget, ties=rows[:, 1])

    def select(self, query: Query) -> list[int]:
        """Choose the largest disagreement; ties go to the largest entropy of the consensus."""
        return query.pick(top_k(query.pool[:, 0], query.budget, ties=query.pool[:, 1]))

    def score(self, rows: Tensor) -> Tensor:
        """Return the disagreement of each row."""
        return rows[:, 0]

    def _start_member(self, start: LightningModule) -> dict[str, Tensor]:
        member = copy_untrained(start)
        if self.reinitialize:
            reinitialize(member)
        return weights_of(member)

    def _train(self, start: LightningModule, trainer: Trainer, context: QueryContext, member: int) -> dict[str, Tensor]:
        rank_zero_info(f"QueryByCommitteeAcquisition: member {member + 1} of {self.members} trains.")
        entropy = (RandomStream.TRAINING, context.seed, context.cycle, member)
        with raised_on_all_processes(trainer):
            weights = train_member(start, trainer, entropy, fresh=self.reinitialize, bootstrap=self.bootstrap)
        # processes train the same way, but GPU kernels may round in another order each time
        broadcast: dict[str, Tensor] = trainer.strategy.broadcast(weights)
        return broadcast


def _check_files(checkpoints: Sequence[str]) -> None:
    name = f"`QueryByCommitteeAcquisition(checkpoints={checkpoints!r})`"
    if isinstance(checkpoints, str) or not checkpoints:
        raise ValueError(f"{name}: expected a list of at least one file; None trains the members.")
    for path in checkpoints:
        if not Path(path).is_file():
            raise ValueError(f"{name}: there is no file {str(path)!r}.")
