"""What `fit` takes as data, behind one face: the next batch, and a position."""

from collections.abc import Callable, Iterator
from typing import Any

from jtok.errors import ArgumentError, ArgumentTypeError, CheckpointError


class Source:
    """Batches in order, from a function of the step, Grain, or any iterable."""

    def __init__(self, data: Any) -> None:
        import grain

        self._count = 0
        self._function: Callable[[int], Any] | None = None
        if isinstance(data, grain.MapDataset):
            # Two batches ahead, in one thread: enough to hide the host's work.
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            data = data.to_iter_dataset(options)
        elif callable(data) and not hasattr(data, "__iter__"):
            self._function = data
            return
        try:
            self._iterator: Iterator[Any] = iter(data)
        except TypeError as error:
            raise ArgumentTypeError(
                f"data: got {type(data).__name__}, expected a Grain dataset, an "
                "iterable of batches, or a function from a step to a batch."
            ) from error

    def next(self) -> Any:
        """The next batch."""
        if self._function is not None:
            batch = self._function(self._count)
        else:
            try:
                batch = next(self._iterator)
            except StopIteration:
                raise ArgumentError(
                    f"data: it ended after {self._count} batches, expected one for "
                    "each of the steps; repeat it or take fewer steps."
                ) from None
        self._count += 1
        return batch

    def position(self) -> dict[str, Any]:
        """Where the data stands, for JSON."""
        position: dict[str, Any] = {"batches": self._count}
        if self._has_state():
            state = self._iterator.get_state()  # type: ignore[attr-defined]
            if isinstance(state, bytes):
                position["state_bytes"] = state.decode("latin-1")
            else:
                position["state"] = state
        return position

    def restore(self, position: dict[str, Any]) -> None:
        """Goes on from a position; an iterable without a state is run through."""
        stateful = "state" in position or "state_bytes" in position
        if stateful and not self._has_state():
            raise CheckpointError(
                "data: the checkpoint was written with data that has a state "
                "(get_state, set_state), this data has none."
            )
        if stateful:
            state = position.get("state")
            if "state_bytes" in position:
                state = position["state_bytes"].encode("latin-1")
            self._iterator.set_state(state)  # type: ignore[attr-defined]
        elif self._function is None:
            while self._count < position["batches"]:
                self.next()
        self._count = position["batches"]

    def close(self) -> None:
        """Stops threads that read ahead."""
        close = getattr(getattr(self, "_iterator", None), "close", None)
        if close is not None and self._has_state():
            close()

    def _has_state(self) -> bool:
        iterator = getattr(self, "_iterator", None)
        return hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
