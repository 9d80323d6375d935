"""The typed schema of configs/: defaults live here and nowhere else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from ich.errors import IchError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path, dict)) else value


class WindowConfig(_Section):
    center: float  # HU
    width: float = Field(gt=0)  # HU


# pydantic names the kind of a window in the place of an error, where the file has no such step: the bar tells it from a
# key. Without kinds, an error in a mapping would come with the complaint that it is no preset's name.
_AnyWindow = Annotated[
    Annotated[str, Tag("|preset")] | Annotated[WindowConfig, Tag("|window")],
    Discriminator(lambda value: "|preset" if isinstance(value, str) else "|window"),
]


class Data(_Section):
    # Folders and zips of DICOM slices, one or a list.
    sources: Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)]
    # Of all slices; null tells by the nearest folder with train or test in its name.
    split: Literal["train", "test"] | None = None
    # The long label CSV; null takes the file *_train.csv of the sources.
    labels: Path | None = None
    # null takes the file *_sample_submission.csv of the sources.
    sample_submission: Path | None = None
    # The folder of the PNGs and of slices.parquet.
    images: Path
    # The file of folds; null takes folds.csv in the images' folder.
    folds: Path | None = None

    @property
    def folds_path(self) -> Path:
        return self.folds or self.images / "folds.csv"


class Preprocess(_Section):
    # A preset's name, or {center: , width: }, each; of channels one or three, of hu none.
    windows: Annotated[list[_AnyWindow], BeforeValidator(_as_list)] = ["brain"]
    # Pixels a side; null keeps the slices' own.
    size: int | None = Field(None, ge=16)
    # What becomes of slices that are not square: pad with air, or stretch.
    fit: Literal["pad", "stretch"] = "pad"
    # Keep only a square around the head, each slice for itself.
    crop: bool = False
    # channels: a PNG a slice, windows as channels; separate: a grey PNG a window; hu: a 16-bit PNG of HU + 1024.
    files: Literal["channels", "separate", "hu"] = "channels"


class Folds(_Section):
    n: int = Field(5, ge=2)
    seed: _Seed = 0
    # Work with the slices that have labels and a patient, and the labels that have slices; say how many are left out.
    allow_unmatched: bool = False


class Model(_Section):
    # small_cnn, or a model of keras.applications by its name.
    name: str = "EfficientNetV2B0"
    # imagenet, the path of a weights file, or null.
    weights: str | None = "imagenet"
    dropout: float = Field(0.2, ge=0, lt=1)


class Train(_Section):
    seed: _Seed = 0
    epochs: int = Field(6, ge=1)
    batch_size: int = Field(32, ge=1)
    # none, light or heavy: ich.augment.PIPELINES.
    augment: str = "light"
    # AdamW's, at the top of a linear warm-up, from which it falls to 0 on a cosine.
    learning_rate: float = Field(1e-3, gt=0)
    warmup_epochs: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    # The gradient's norm over all weights is at most this.
    clip_norm: float = Field(1.0, gt=0)
    # Of the loss, a label each; null takes the metric's.
    label_weights: list[float] | None = None
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"


class Predict(_Section):
    batch_size: int = Field(64, ge=1)


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("1 works in this process, -1 on all cores, 0 not at all")
    return value


class Machine(_Section):
    """What works on a run: it changes no result."""

    # Workers that convert, as joblib's n_jobs, and what they are; dask needs its scheduler's address.
    jobs: Annotated[int, AfterValidator(_not_zero)] = -1
    backend: Literal["processes", "threads", "dask"] = "processes"
    scheduler: str | None = None
    # Threads, or processes, that read and augment images.
    workers: int = Field(4, ge=1)
    processes: bool = False


class Config(_Section):
    """One experiment: all that decides its result, where its data are, and what works on it."""

    # The run's directory is runs/<name>, its submission submissions/<name>.csv.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    data: Data
    preprocess: Preprocess = Preprocess()
    folds: Folds = Folds()
    model: Model = Model()
    train: Train = Train()
    predict: Predict = Predict()
    machine: Machine = Machine()

    def resolved(self) -> str:
        """The config as YAML, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for place, key in enumerate(keys) if key in keys[:place]]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} stands twice in one section, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config and set single values of it.

    Args:
        path: a YAML file.
        overrides: `section.key=value` each; the value is read as YAML.

    Raises:
        IchError: no such file, no YAML, an unknown key or a value that does not fit, each named by its path in the
            file; an override that is not of the form.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except OSError as error:
        raise IchError(f"config {path} cannot be read: {error.strerror or error}; configs/ holds examples") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IchError(f"config {path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise IchError(
            f"config {path} holds {type(content).__name__}, expected sections of keys; configs/ holds examples"
        )
    content = {key: {} if value is None else value for key, value in content.items()}  # a section left empty
    for override in overrides:
        _set(content, override)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise IchError(f"config {path}: " + "; ".join(map(_complaint, error.errors()))) from error


def differences(one: Config, other: Config) -> list[str]:
    """The values in which two configs train differently, `path: one's / other's`.

    Where the data are and what works on them does not count: a run knows its data by their digests.
    """
    aside = {"data", "predict", "machine"}
    flat_one, flat_other = (dict(_flatten(c.model_dump(mode="json", exclude=aside))) for c in (one, other))
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [
        f"{key}: {flat_one.get(key)} / {flat_other.get(key)}"
        for key in keys
        if flat_one.get(key) != flat_other.get(key)
    ]


def _flatten(section: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(content: dict, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise IchError(f"--set {override!r} is not of the form section.key=value")
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise IchError(f"--set {override!r}: {key} is no section")
    try:
        content[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise IchError(f"--set {override!r}: the value is no YAML: {error}") from error


def _complaint(error: dict) -> str:
    loc = [part for part in error["loc"] if part not in ("|preset", "|window")]
    where = ".".join(map(str, loc))
    if error["type"] == "extra_forbidden":
        section = Config
        for part in loc[:-1]:
            if isinstance(part, str):  # else it is a place in a list
                section = _section_within(section.model_fields[part].annotation)
        return f"{where} is no known key; there are {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {error['input']!r}: {error['msg']}"


def _section_within(annotation: Any) -> type[_Section] | None:
    """The section that a field holds, be it in a list or among other types."""
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return annotation
    return next(filter(None, map(_section_within, get_args(annotation))), None)
