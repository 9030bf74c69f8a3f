"""The vectors in which a strategy measures distances: features, principal components of inputs, or rows of a file."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_al.acquisition.query import Query, QueryContext
from lightning_al.data.batch import first_input
from lightning_al.data.embedding_file import open_embedding_file, read_embeddings
from lightning_al.formulas.principal_components import principal_components
from lightning_al.model.features import Features

# Principal components of the inputs: enough to tell pictures apart, few enough to leave out noise.
COMPONENTS = 50
# Candidates whose inputs the components are fitted on, and the most numbers of these inputs, which are held in memory.
MAX_FIT_SAMPLES = 2000
MAX_FIT_NUMBERS = 2**27

EmbeddingReader: TypeAlias = Callable[[Any], tuple[Tensor | None, Tensor]]
"""Returns the outputs of a batch, or None without a forward pass, and one row of embeddings per sample."""


class EmbeddingSource:
    """One vector per sample, from the source that a strategy was given as `embeddings=`.

    Rows of a file need no pass over the data: they are read by dataset index when samples are selected.

    Args:
        owner: The name of the strategy, for messages.
        source: `"model"` for features of the model that was trained; `"input"` for the first 50 principal components
            of the flattened inputs, fitted on up to 2,000 candidates; or the path of a `.npy` file with one row per
            sample of the dataset.
        features: Name of the module whose output are the features; None takes the input of the last linear layer.
        unit_length: Whether vectors are scaled to length 1.

    Raises:
        ValueError: If the source is none of these, or there is a name of a module for another source than the model.

    """

    def __init__(self, owner: str, source: str, features: str | None = None, unit_length: bool = False) -> None:
        self.in_file = source.endswith(".npy")
        if not self.in_file and source not in ("model", "input"):
            raise ValueError(
                f'`{owner}(embeddings={source!r})`: expected "model", "input", or the path of a .npy file with one row '
                "per sample."
            )
        if features is not None and source != "model":
            raise ValueError(
                f"`{owner}(embeddings={source!r}, features={features!r})`: a module was named, but its features are "
                'not used. Leave out `features`, or use embeddings="model".'
            )
        self.owner = owner
        self.source = source
        self.features = features
        self.unit_length = unit_length

    def check(self, dataset_size: int) -> None:
        """Raise if there is a file, and it has not one row per sample."""
        if self.in_file:
            open_embedding_file(self.source, dataset_size)

    def prepare(self, context: QueryContext) -> EmbeddingReader:
        """Return a function from a batch to its outputs, if there was a forward pass, and its rows.

        Rows have no columns if embeddings are in a file; `of_query` reads them.

        Raises:
            ValueError: If no features are found, or inputs differ in size.

        """
        if self.in_file:
            return lambda batch: _without_columns(context.predictor(batch))
        read: EmbeddingReader
        if self.source == "model":
            read = Features(context.predictor, context.batch, self.features)
        else:
            read = _InputReader(self.owner, context)
        return _with_unit_length(read) if self.unit_length else read

    def of_query(self, query: Query, begin: int = 0) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the candidates (N, D) and of the labeled part (M, D).

        Args:
            query: The query, with rows of `prepare`'s function.
            begin: The column at which they begin.

        """
        if not self.in_file:
            return query.pool[:, begin:], query.labeled_rows()[:, begin:]
        candidates, labeled = (read_embeddings(self.source, part) for part in (query.indices, query.labeled_indices))
        return (normalize(candidates), normalize(labeled)) if self.unit_length else (candidates, labeled)


class _InputReader:
    """Principal components of the inputs of a batch."""

    def __init__(self, owner: str, context: QueryContext) -> None:
        self._owner = owner
        self._width = _flat_inputs(context.batch).shape[1]
        count = min(len(context.candidates), MAX_FIT_SAMPLES, max(1, MAX_FIT_NUMBERS // self._width))
        rows = torch.linspace(0, len(context.candidates) - 1, count).long().unique()
        batches = context.read([context.candidates[row] for row in rows.tolist()])
        self._mean, self._directions = principal_components(
            torch.cat([self._inputs(batch).cpu() for batch in batches]), COMPONENTS
        )

    def __call__(self, batch: Any) -> tuple[None, Tensor]:
        inputs = self._inputs(batch)
        return None, (inputs - self._mean.to(inputs)) @ self._directions.to(inputs)

    def _inputs(self, batch: Any) -> Tensor:
        inputs = _flat_inputs(batch)
        if inputs.shape[1] != self._width:
            raise ValueError(
                f'`{self._owner}(embeddings="input")`: expected inputs of one size, got {self._width} and '
                f'{inputs.shape[1]} numbers per sample. Resize them, or use "model" or a .npy file.'
            )
        return inputs


def _flat_inputs(batch: Any) -> Tensor:
    inputs = first_input(batch)
    return inputs.reshape(len(inputs), -1).float()


def _without_columns(outputs: Tensor) -> tuple[Tensor, Tensor]:
    return outputs, outputs.flatten(1)[:, :0]


def _with_unit_length(read: EmbeddingReader) -> EmbeddingReader:
    def run(batch: Any) -> tuple[Tensor | None, Tensor]:
        outputs, rows = read(batch)
        return outputs, normalize(rows)

    return run
