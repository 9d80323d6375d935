"""Which call of Keras iterates over a data set, at which epoch of `fit`, and with how many steps.

Keras calls `on_epoch_begin` and `on_epoch_end` of a PyDataset in `fit`, `evaluate` and `predict`, and before the first
epoch too. It passes neither the epoch's number nor `steps_per_epoch`; they are local variables of the calling method,
which are read here from its frame. A version of Keras that names them otherwise is refused: to count on would show
other samples without a word.
"""

import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ich.errors import IchError


@dataclass(frozen=True)
class KerasCall:
    """A call of `fit`, `evaluate` or `predict` that iterates over a data set.

    Attributes:
        method: fit, evaluate or predict.
        direct: whether Keras itself has called the method of the data set, and not a callback.
        resets: whether Keras prepares the iteration: nothing of the data set has been used, no epoch has ended.
        initial_epoch: the number of the first epoch of `fit`. `BackupAndRestore` changes it before the first epoch.
        epoch: the number of the running epoch of `fit`; None before the first, and in other methods.
    """

    method: str
    direct: bool
    resets: bool
    initial_epoch: int
    epoch: int | None
    iterator: Any  # Keras's EpochIterator

    def check_steps(self, batch_size: int) -> None:
        """Refuse `fit(steps_per_epoch=…)` of fewer steps than the data set has batches.

        Keras keeps its iterator for the next epoch then, whose order is another one, and its workers begin anew:
        some samples come twice, others never.

        Raises:
            IchError: as said.
        """
        steps, batches = self.iterator.steps_per_epoch, self.iterator.data_adapter.num_batches
        if self.method != "fit" or steps is None or steps >= batches:
            return
        self.stop_workers()
        raise IchError(
            f"steps_per_epoch is {steps}, and an epoch has {batches} batches: Keras would show some samples twice and"
            " others never; leave steps_per_epoch out, and for shorter epochs choose their samples, such as"
            f" sampling=lambda rng: rng.choice(len(ids), {steps * batch_size}, replace=False)"
        )

    def stop_workers(self) -> None:
        """Stop the workers and drop what they have read ahead, which Keras would show in the next epoch."""
        enqueuer = self.iterator.data_adapter.enqueuer
        if enqueuer is None:
            return
        enqueuer.stop()
        while True:
            try:
                enqueuer.ready_queue.get_nowait()
            except queue.Empty:
                return

    @contextmanager
    def workers_stopped(self) -> Iterator[None]:
        """Stop the workers, drop what they have read, and start them again at the end."""
        self.stop_workers()
        yield
        enqueuer = self.iterator.data_adapter.enqueuer
        if enqueuer is not None:
            enqueuer.start()


def keras_call(data: Any) -> KerasCall | None:
    """The call of Keras in which a method of a data set was called; None if there is none.

    Args:
        data: the data set. A callback's call counts if Keras iterates over this data set; a call by Keras itself also
            if it iterates over another one, which hands its calls on.

    Raises:
        IchError: Keras has called the method, and does not say of which epoch.
    """
    frame, callers, by_keras = sys._getframe(1), [], False
    while frame is not None and not hasattr(frame.f_locals.get("epoch_iterator"), "data_adapter"):
        callers.append((frame.f_locals.get("self"), frame.f_code.co_name))
        by_keras |= frame.f_globals.get("__name__", "").startswith("keras.src.trainers.")
        frame = frame.f_back
    if frame is None:
        if by_keras:
            raise _unknown()
        return None
    found, method = frame.f_locals, frame.f_code.co_name
    iterator, adapter = found["epoch_iterator"], found["epoch_iterator"].data_adapter
    direct = any(caller is adapter for caller, _ in callers)
    if not direct and getattr(adapter, "py_dataset", None) is not data:
        return None
    resets = any(caller is iterator and name == "reset" for caller, name in callers)
    ends = any(caller is adapter and name == "on_epoch_end" for caller, name in callers)
    if direct and (
        method not in ("fit", "evaluate", "predict")
        or (method == "fit" and ("initial_epoch" not in found or (ends and not resets and "epoch" not in found)))
    ):
        raise _unknown()
    return KerasCall(method, direct, resets, found.get("initial_epoch", 0), found.get("epoch"), iterator)


def _unknown() -> IchError:
    return IchError(
        f"Keras {version('keras')}, or what trains in its place, does not say which epoch it is at in the way that is"
        " known here; install the version of constraints.txt, train by Keras's own fit, or write a loop that calls"
        " set_epoch(epoch) and train_on_batch"
    )
