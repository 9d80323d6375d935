"""Which epoch a data set shows: it follows Keras's `fit`, or a loop of one's own.

Keras calls `on_epoch_begin` and `on_epoch_end` of a PyDataset in `fit`, `evaluate` and `predict`, and before the first
epoch too. It passes neither the epoch's number nor `steps_per_epoch` and `shuffle`; they are local variables of the
calling method, which are read here from its frame. A version of Keras with other names for them is refused: to go on
counting would silently show other samples.
"""

import queue
import sys
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import keras

from ich.data.epoch_plan import EpochPlan
from ich.errors import IchError


class EpochDataset(keras.utils.PyDataset):
    """A data set of numbered epochs: each epoch of `fit` is the next one, `evaluate` and `predict` do not change it.

    `fit(initial_epoch=k)` with k above 0, and `BackupAndRestore`, begin at epoch k. A data set that wraps this one
    hands `on_epoch_begin` and `on_epoch_end` on to it.
    """

    def plan_of(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Make the next batches those of this epoch (0-based)."""
        self._plan = self.plan_of(epoch)  # one assignment, so that no thread sees the order of another epoch

    @property
    def epoch(self) -> int:
        """The epoch whose batches these are, from 0."""
        return self._plan.epoch

    def __len__(self) -> int:
        return len(self._plan)

    def on_epoch_begin(self) -> None:
        """Check how Keras uses the data set, in `fit`, `evaluate` and `predict`; for anybody else do nothing.

        Raises:
            IchError: `predict` on samples that are shuffled or sampled, or `fit` with fewer steps than batches.
        """
        call = keras_call(self)
        if call is None or not call.direct:
            return
        call.check(self._plan)
        # A callback such as BackupAndRestore has changed it since `fit` began. Workers have started by now.
        if 0 < call.initial_epoch == call.epoch != self.epoch:
            call.stop_workers()
            self.set_epoch(call.epoch)
            if call.enqueuer is not None:
                call.enqueuer.start()

    def on_epoch_end(self) -> None:
        """Go to the next epoch, at the end of a loop of one's own or of an epoch of Keras's `fit`.

        Keras also calls it before the first epoch, which is then that of `fit(initial_epoch=…)` if given, and in
        `evaluate` and `predict`, which do not change the epoch. A callback's call during `fit` does nothing more.

        Raises:
            IchError: as `on_epoch_begin`, which a data set that wraps this one may not hand on.
        """
        call = keras_call(self)
        if call is None:
            self.set_epoch(self.epoch + 1)
            return
        if not call.direct:
            return
        call.stop_workers()
        call.check(self._plan)
        if call.method == "fit":
            if not call.resets:
                self.set_epoch(self.epoch + 1)
            elif call.initial_epoch > 0:
                self.set_epoch(call.initial_epoch)

    def check_batches_in_order(self) -> None:
        """Check that the batches which a callback of Keras's running `fit` is told of are those of the data set.

        Raises:
            IchError: Keras shuffles the batches, and does not say how.
        """
        call = keras_call(self, announces=False)
        if call is not None and not call.direct and call.shuffles:
            raise IchError(
                "fit shows the batches in an order of its own, in which a batch has another number; give it"
                " shuffle=False: the generator shuffles the samples itself"
            )


@dataclass(frozen=True)
class KerasCall:
    """A call of `fit`, `evaluate` or `predict` that iterates over a data set."""

    method: str
    direct: bool  # Keras itself has called the method of the data set, not a callback
    resets: bool  # Keras prepares the iteration: nothing of the data set has been used, no epoch has ended
    initial_epoch: int  # of `fit`; `BackupAndRestore` changes it before the first epoch
    epoch: int | None  # the running one of `fit`; None before the first, and in other methods
    shuffles: bool  # whether `fit` shuffles batches
    iterator: Any  # Keras's EpochIterator

    @property
    def enqueuer(self) -> Any:
        """What runs Keras's workers; None without workers."""
        return self.iterator.data_adapter.enqueuer

    def check(self, plan: EpochPlan) -> None:
        """Refuse what would show or predict other samples than it seems to.

        `predict` on samples out of order, and `fit(steps_per_epoch=…)` of fewer steps than the data set has batches:
        Keras keeps its iterator for the next epoch then, whose order is another one, and its workers begin anew, so
        that some samples come twice, others never.

        Raises:
            IchError: as said.
        """
        if self.method == "predict" and not plan.is_in_order:
            self.stop_workers()
            raise IchError(
                "predict would give predictions in the order of this epoch, not in that of the ids; give a generator"
                " with shuffle=False and without sampling"
            )
        steps, batches = self.iterator.steps_per_epoch, self.iterator.data_adapter.num_batches
        if self.method == "fit" and steps is not None and steps < batches:
            self.stop_workers()
            n = steps * plan.batch_size
            advice = (
                f"have the generator's sampling choose {n} samples in place of {len(plan.rows)}, such as Weighted with"
                f" n={n}"
                if plan.sampled
                else f"choose their samples, such as sampling=lambda rng: rng.choice(len(ids), {n}, replace=False)"
            )
            raise IchError(
                f"steps_per_epoch is {steps}, and an epoch has {batches} batches: Keras would show some samples twice"
                f" and others never; leave steps_per_epoch out, and for shorter epochs {advice}"
            )

    def stop_workers(self) -> None:
        """Stop the workers and drop what they have read ahead, which Keras would show in the next epoch."""
        if self.enqueuer is None:
            return
        self.enqueuer.stop()
        while True:
            try:
                self.enqueuer.ready_queue.get_nowait()
            except queue.Empty:
                return


_shown: WeakKeyDictionary[Any, WeakSet] = WeakKeyDictionary()
"""The data sets that each of Keras's data adapters has announced an epoch to: its own, or those that its own wraps."""


def keras_call(data: EpochDataset, announces: bool = True) -> KerasCall | None:
    """Return the call of Keras in which a method of a data set was called; None if there is none.

    Args:
        data: the data set. A callback's call counts if Keras iterates over this data set, or over another one that
            hands Keras's calls on to it; a call by Keras itself always.
        announces: whether the method announces an epoch, which Keras does in no thread without the call.

    Raises:
        IchError: Keras has called the method, and does not say of which epoch.
    """
    frame: FrameType | None = sys._getframe(1)
    callers, by_keras = [], False
    while frame is not None and not hasattr(frame.f_locals.get("epoch_iterator"), "data_adapter"):
        callers.append((frame.f_locals.get("self"), frame.f_code.co_name))
        by_keras |= frame.f_globals.get("__name__", "").startswith("keras.src.trainers.")
        frame = frame.f_back
    if frame is None:
        if by_keras and announces:
            raise _unknown_version()
        return None
    variables, method = frame.f_locals, frame.f_code.co_name
    iterator, adapter = variables["epoch_iterator"], variables["epoch_iterator"].data_adapter
    direct = any(caller is adapter for caller, _ in callers)
    if direct:
        _shown.setdefault(adapter, WeakSet()).add(data)
    elif data not in _shown.get(adapter, ()):
        return None
    resets = any(caller is iterator and name == "reset" for caller, name in callers)
    ends = any(caller is adapter and name == "on_epoch_end" for caller, name in callers) and not resets
    of_fit = {"initial_epoch", "shuffle"} | ({"epoch"} if ends else set())
    expected = {"fit": of_fit, "evaluate": set(), "predict": set()}
    if direct and not (method in expected and expected[method] <= variables.keys()):
        raise _unknown_version()
    first, epoch = variables.get("initial_epoch", 0), variables.get("epoch")
    return KerasCall(method, direct, resets, first, epoch, bool(variables.get("shuffle")), iterator)


def _unknown_version() -> IchError:
    return IchError(
        f"Keras {version('keras')}, or what trains in its place, does not say which epoch it is at in the way that is"
        " known here; install the version of constraints.txt, train by Keras's own fit, or write a loop that calls"
        " set_epoch(epoch) and train_on_batch"
    )
