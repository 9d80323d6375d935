"""Boosted trees as plain arrays: read out of scikit-learn's fitted classifier, evaluated with NumPy.

scikit-learn stores its trees in pickles only, which run code when they are read, and which other versions refuse.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ich.errors import IchError, one_line

_PAIRS = 25_000  # rows times trees that are walked at once: their arrays stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Trees:
    """Trees whose nodes lie one after the other; a tree's root is first, and children come after their parent.

    Args:
        base: the logit that the trees' values are added to.
        roots: int32, (trees,): each tree's root.
        feature: int16, (nodes,): the feature that a node asks for; of a leaf 0.
        threshold: float32, (nodes,): at most this goes left; of a leaf infinite.
        missing_left: bool, (nodes,): whether NaN goes left, else right.
        children: int32, (nodes, 2): the left and the right child; a leaf's are itself.
        value: float64, (nodes,): what a leaf adds; of other nodes 0.
    """

    base: float
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    children: np.ndarray
    value: np.ndarray

    @classmethod
    def none(cls, base: float) -> "Trees":
        """Return an ensemble without trees, which gives the same logit everywhere."""
        empty = {name: np.zeros((0, 2) if name == "children" else 0, kind) for name, kind in _KINDS.items()}
        return cls(base, **empty)

    @classmethod
    def of_classifier(cls, model: HistGradientBoostingClassifier, columns: np.ndarray) -> "Trees":
        """Read the trees of scikit-learn's fitted binary classifier.

        Thresholds are rounded down to float32, which changes nothing for float32 features.

        Args:
            columns: the features that the classifier was fitted on, numbers of columns of the whole table.

        Raises:
            IchError: this version of scikit-learn stores its trees differently.
        """
        try:
            nodes = [predictor.nodes for (predictor,) in model._predictors]  # no public attribute has them
            base = float(model._baseline_prediction.item())
            starts = np.cumsum([0, *map(len, nodes)])
            table = np.concatenate(nodes)
            leaf = table["is_leaf"].astype(bool)
            if table["is_categorical"].any():
                raise ValueError("a node of categories")
            own = np.arange(len(table))
            shift = np.repeat(starts[:-1], np.diff(starts))
            children = [np.where(leaf, own, table[side].astype(np.int64) + shift) for side in ("left", "right")]
            return cls(
                base,
                starts[:-1].astype(np.int32),
                np.where(leaf, 0, columns[table["feature_idx"]]).astype(np.int16),
                np.where(leaf, np.float32(np.inf), _rounded_down(table["num_threshold"])),
                table["missing_go_to_left"].astype(bool),
                np.stack(children, axis=1).astype(np.int32),
                np.where(leaf, table["value"], 0.0),
            )
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            from sklearn import __version__

            raise IchError(
                f"the trees of scikit-learn {__version__} cannot be read ({one_line(error, named=True)}); install a"
                " version that constraints.txt names, and train again"
            ) from error

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], features: int) -> "Trees":
        """Check arrays that a file holds, and return the trees of them.

        Args:
            features: of the table that the trees read.

        Raises:
            ValueError: they are no trees.
        """
        base = arrays["base"]
        if base.shape != () or base.dtype != np.float64 or not np.isfinite(base):
            raise ValueError("the base is no number")
        trees = cls(float(base), **{name: arrays[name] for name in _KINDS})
        nodes, trees_count = len(trees.feature), len(trees.roots)
        for name, kind in _KINDS.items():
            shape = {"roots": (trees_count,), "children": (nodes, 2)}.get(name, (nodes,))
            if arrays[name].shape != shape or arrays[name].dtype != kind:
                raise ValueError(f"{name} is of {arrays[name].dtype} and shape {arrays[name].shape}")
        own = np.arange(nodes)[:, None]
        ends = np.append(trees.roots, nodes)
        if ends[0] != 0 or (np.diff(ends) <= 0).any():
            raise ValueError("the roots are not in order")
        end = np.repeat(ends[1:], np.diff(ends))[:, None]
        leaf = trees.children == own
        if not ((leaf | (trees.children > own)) & (trees.children < end)).all() or (leaf[:, 0] != leaf[:, 1]).any():
            raise ValueError("children do not come after their parent")
        if not ((trees.feature >= 0) & (trees.feature < features)).all():
            raise ValueError(f"nodes ask for others than {features} features")
        if not np.isfinite(trees.value).all() or np.isnan(trees.threshold).any():
            raise ValueError("a value is not finite, or a threshold NaN")
        return trees

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `of_arrays` takes."""
        return {"base": np.array(self.base, np.float64)} | {name: getattr(self, name) for name in _KINDS}

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Sum the base and the values of the leaves that each row reaches.

        Args:
            features: float32, (n, f); NaN where missing.

        Returns:
            float64, (n,).
        """
        out = np.full(len(features), self.base)
        if not len(self.roots):
            return out
        step, width = max(1, _PAIRS // len(self.roots)), features.shape[1]
        depth = self._depths()
        order = np.argsort(-depth, kind="stable")  # the deep trees first: the others have ended when they go on
        roots, deeper = self.roots[order].astype(np.intp), [np.sum(depth > level) for level in range(depth.max())]
        # Of a missing value the second half of the columns holds -inf, which goes left everywhere; NaN never does.
        feature = np.where(self.missing_left, self.feature + width, self.feature).astype(np.intp)
        children = self.children.astype(np.intp).ravel()
        for start in range(0, len(features), step):
            rows = features[start : start + step].T
            both = np.concatenate([rows, np.where(np.isnan(rows), np.float32(-np.inf), rows)])
            node = np.repeat(roots[:, None], rows.shape[1], axis=1)  # (trees, rows)
            for count in deeper:
                at = node[:count]
                place = feature.take(at) * rows.shape[1] + np.arange(rows.shape[1])
                right = ~(both.take(place) <= self.threshold.take(at))  # not the same as greater: NaN goes right
                node[:count] = children.take(2 * at + right)
            out[start : start + step] += self.value.take(node).sum(axis=0)
        return out

    def _depths(self) -> np.ndarray:
        """Return each tree's largest number of steps from its root to a leaf; int64, (trees,)."""
        depths, level, tree = np.zeros(len(self.roots), np.int64), self.roots, np.arange(len(self.roots))
        while len(level):
            below = self.children[level]
            inner = below != level[:, None]
            level, tree = below[inner], np.repeat(tree, 2).reshape(-1, 2)[inner]
            depths[tree] += 1
        return depths


_KINDS = {
    "roots": np.dtype(np.int32),
    "feature": np.dtype(np.int16),
    "threshold": np.dtype(np.float32),
    "missing_left": np.dtype(bool),
    "children": np.dtype(np.int32),
    "value": np.dtype(np.float64),
}


def _rounded_down(threshold: np.ndarray) -> np.ndarray:
    """Return the largest float32 that is at most each float64."""
    with np.errstate(over="ignore"):  # to infinity, and down from there
        near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
