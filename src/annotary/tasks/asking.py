"""What tasks that ask one model have in common: how images are prepared, and how many at once, the model decides."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from annotary.cards import Card, PreprocessSpec


class Asked(Protocol):
    """What is known of every model that can be asked."""

    card: Card
    streams: int
    batch_size: int


AskedModel = TypeVar("AskedModel", bound=Asked)


class AsksOneModel(Generic[AskedModel]):
    """The side of a task that its one model decides.

    Args:
        model: It.
    """

    def __init__(self, model: AskedModel) -> None:
        self._model = model

    @property
    def source(self) -> str:
        """The id of the model's card."""
        return self._model.card.id

    @property
    def inputs(self) -> tuple[PreprocessSpec, ...]:
        """How the model's images are prepared."""
        return (self._model.card.preprocess,)

    @property
    def streams(self) -> int:
        """How many batches the network works on at once, at its best."""
        return self._model.streams

    @property
    def batch_size(self) -> int:
        """How many images the network takes at once, at its best."""
        return self._model.batch_size
