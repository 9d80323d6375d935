"""The sections data, preprocess and folds: the slices, their conversion to PNGs, the split of patients."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from ich.config.section import Section, Seed, as_list, refuse_unused


class WindowConfig(Section):
    center: float  # HU
    width: float = Field(gt=0)  # HU


# pydantic names the kind of a window in the place of an error, where the file has no such step: the bar tells it from a
# key. Without kinds, an error in a mapping would come with the complaint that it is no preset's name.
_AnyWindow = Annotated[
    Annotated[str, Tag("|preset")] | Annotated[WindowConfig, Tag("|window")],
    Discriminator(lambda value: "|preset" if isinstance(value, str) else "|window"),
]


class External(Section):
    """Labeled scans beside the competition's."""

    # A folder of scripts/preprocess.py, by a config of its own with data.split=train and the same section preprocess.
    images: Path
    # A CSV like the competition's, or one with the columns SOPInstanceUID and the six labels.
    labels: Path
    # Weight of their slices in the loss, where the competition's have 1.
    weight: float = Field(1.0, gt=0)


class Data(Section):
    # Folders and zips of DICOM slices: a path, or a list of them.
    sources: Annotated[list[Path], BeforeValidator(as_list), Field(min_length=1)]
    # The split of all slices; null takes it from the nearest folder with train or test in its name.
    split: Literal["train", "test"] | None = None
    # The long label CSV; null takes the file *_train.csv of the sources.
    labels: Path | None = None
    # The sample submission; null takes the file *_sample_submission.csv of the sources.
    sample_submission: Path | None = None
    # The folder of the PNGs and of slices.parquet.
    images: Path
    # The file of folds; null takes folds.csv in the images' folder.
    folds: Path | None = None

    # Further scans with labels of their own: in the training set of every fold, never held out nor predicted.
    external: list[External] = Field([])

    @property
    def folds_path(self) -> Path:
        return self.folds or self.images / "folds.csv"


class Preprocess(Section):
    # Names of presets (ich.dicom.windows.PRESETS) or {center: …, width: …} in HU; files=channels takes one or three,
    # files=hu none.
    windows: Annotated[list[_AnyWindow], BeforeValidator(as_list)] = Field(["brain"])
    # Side of the PNGs in pixels; null keeps the slices' own.
    size: int | None = Field(None, ge=16)
    # How slices that are not square become square.
    fit: Literal["pad", "stretch"] = "pad"
    # Crop to a square around the head, found for each slice.
    crop: bool = False
    # channels: one PNG for each slice, windows as channels; separate: a gray PNG for each window; hu: a 16-bit PNG of
    # HU + 1024.
    files: Literal["channels", "separate", "hu"] = "channels"

    @field_validator("fit")
    @classmethod
    def _has_a_size(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("size", 0) is None:
            reason = "needs preprocess.size, the side of the square that slices are fitted to"
            return refuse_unused(cls, "fit", value, reason, info)
        return value

    @field_validator("crop")
    @classmethod
    def _nothing_to_fit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("fit", "pad") != "pad":
            reason = "needs preprocess.crop=false: what is cropped is square already"
            refuse_unused(cls, "fit", info.data["fit"], reason, info)
        return value


class Folds(Section):
    # Number of folds.
    n: int = Field(5, ge=2)
    # Seed of the assignment of patients to folds.
    seed: Seed = 0
    # Leave out slices without labels or patient, and labels without slices; their number is printed.
    allow_unmatched: bool = False
