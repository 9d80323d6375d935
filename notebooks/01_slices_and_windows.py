# %% [markdown]
# # 1 · Slices and windows
#
# What is in a CT slice, why it is looked at through windows, what a scan is, and what the conversion repaired or put
# aside. It takes half a minute.
#
# All scans here are simulated (`make demo` makes them): no patient is shown, and they are simpler than real ones.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pydicom
from IPython.display import Image, display

from ich import config
from ich.competition import folds
from ich.competition.labels import LABELS
from ich.dicom import archive, reader
from ich.dicom.windows import PRESETS, apply_window
from ich.images import convert, slice_table
from ich.report import pictures

# The folder in which `make demo` ran: that of the Makefile, unless ICH_DEMO names another.
os.chdir(os.environ.get("ICH_DEMO") or (".." if Path.cwd().name == "notebooks" else "."))
if not Path("images/demo/folds.csv").exists():
    raise FileNotFoundError(f"{Path.cwd()} has no images/demo/folds.csv: run `make demo` there, or set ICH_DEMO")

# %% [markdown]
# ## A slice is a table of numbers
#
# A scanner measures how much each small block of the head weakens X-rays. The **Hounsfield unit** (HU) states that
# relative to water: water is 0, air is −1000, and what weakens more than water is positive. A DICOM file stores other
# numbers, and its header says how to turn them into HU: stored value × `RescaleSlope` + `RescaleIntercept` (DICOM
# PS3.3, C.7.6.3 and C.8.2.1). `ich.dicom.reader.read` does that.
#
# We take the slice with the most kinds of bleeding.

# %%
data = config.load(Path("configs/demo.yaml")).data
labels = folds.read_folds(data.folds_path)[list(LABELS)]
files = {member.id: member for member in archive.members(data.sources)}

chosen = labels.sum(axis=1).idxmax()
hu, header = reader.read(files[chosen].read())

print(f"{chosen}: {hu.shape[0]} × {hu.shape[1]} pixels, {hu.dtype}, {hu.min()} to {hu.max()} HU")
print("it shows:", ", ".join(label for label in LABELS if labels.at[chosen, label]))
print(f"{header.BitsStored} bits stored, HU = stored × {header.RescaleSlope:g} + {header.RescaleIntercept:g}")
print(f"a pixel is {header.PixelSpacing[0]:.2f} mm wide")

# %% [markdown]
# ## Where the tissues lie
#
# The histogram counts the pixels of the slice by their HU; on the left its scale is logarithmic, because most of a
# picture is air. On the right is the narrow stretch in which everything happens that this competition is about: brain,
# and fresh blood a few tens of HU above it. The ranges are rounded from textbooks' tables (such as
# [this one](http://radclass.mudr.org/content/hounsfield-units-scale-hu-ct-numbers)); they differ by some HU between
# books, scanners and patients.

# %%
TISSUES = {
    "air": (-1000, -950),
    "fat": (-100, -50),
    "CSF": (0, 15),
    "white matter": (20, 30),
    "gray matter": (37, 45),
    "fresh blood": (50, 80),
    "bone": (300, 2000),
}
figure, panels = plt.subplots(1, 2, figsize=(15, 3.6), layout="constrained")
ranges = (np.arange(-1025, 2026, 25), np.arange(-10, 101))
for axes, edges, wanted in zip(
    panels, ranges, (("air", "fat", "bone"), ("CSF", "white matter", "gray matter", "fresh blood"))
):
    axes.hist(hu.ravel(), bins=edges, color="0.35", log=edges[0] < -100)
    for place, name in enumerate(wanted):
        low, high = TISSUES[name]
        axes.axvspan(low, high, color=f"C{place}", alpha=0.3, linewidth=0, label=f"{name}: {low:,} to {high:,}")
    axes.set(xlabel="HU", ylabel="pixels", xlim=(edges[0], edges[-1]))
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# ## What a window shows
#
# A screen has 256 grays, a slice has some 3,000 different HU. A **window** chooses which of
# them get the grays: all below `center − width/2` is black, all above `center + width/2` is white, and between them
# gray rises evenly. Here is the same slice five times; only the window differs.

# %%
figure, panels = plt.subplots(1, 5, figsize=(15, 3.7), layout="constrained")
for axes, (name, window) in zip(panels, PRESETS.items()):
    axes.imshow(apply_window(hu, window), cmap="gray", vmin=0, vmax=255)
    low, high = window.center - window.width / 2, window.center + window.width / 2
    axes.set_title(f"{name}: {window.center:g} / {window.width:g}\n{low:g} to {high:g} HU", fontsize=11)
    axes.axis("off")
plt.show()

# %% [markdown]
# * **brain** (40 / 80) makes the most of the few HU between gray matter, white matter and blood. Bone and a bright
#   collection beside it are both white.
# * **subdural** (80 / 200) is wider: blood along the skull separates from the bone.
# * **bone** (600 / 2800) shows skull and fractures, and nearly nothing of the brain.
# * **stroke** (40 / 40) is the brain window's narrow sister, **soft_tissue** (40 / 380) the one for all but bone.
#
# The curves below are the windows themselves: HU to gray. One gray step of the brain window is 0.3 HU, of the bone
# window 11 HU, about as much as gray and white matter differ by.

# %%
three = ("brain", "subdural", "bone")
ramp = np.arange(-200, 2100, dtype=np.int16)
figure, panels = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
for axes, limits in zip(panels, ((-100, 250), (-200, 2099))):
    for color, name in zip(("tab:red", "tab:green", "tab:blue"), three):
        axes.plot(ramp, apply_window(ramp, PRESETS[name]), color=color, label=name)
    axes.axvspan(*TISSUES["fresh blood"], color="0.85", label="fresh blood")
    axes.set(xlabel="HU", ylabel="gray", xlim=limits)
    axes.grid(alpha=0.3)
panels[0].legend(fontsize=9)
plt.show()

# %% [markdown]
# ## Why three windows as channels
#
# A network sees only what the PNG holds. One brain window throws away everything above 80 HU: whether a white rim is
# skull or blood is gone for good. The image files of this project have eight bits a channel, and networks trained on
# photographs expect three channels: so three windows travel as the red, green and blue of one picture. The winner of
# the competition used just these three (40/80, 80/200, 600/2800); the second to fifth places used one to three similar
# ones.
#
# As a color picture it looks odd, and that is fine: brain is a dull violet, fluid blue, fresh blood orange, bone
# yellow to white. The blue channel alone tells dense bone from what is merely bright.

# %%
figure, panels = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
channels = [apply_window(hu, PRESETS[name]) for name in three]
for axes, name, channel, color, only in zip(
    panels, three, channels, ("red", "green", "blue"), np.eye(3, dtype="uint8")
):
    axes.imshow(channel[..., None] * only)
    axes.set_title(f"{name} as {color}", fontsize=11)
panels[3].imshow(np.dstack(channels))
panels[3].set_title("all three: what the PNG holds", fontsize=11)
for axes in panels:
    axes.axis("off")
plt.show()

# %% [markdown]
# ## A scan
#
# A scan (a *series*) has mostly 24 to 60 slices in the competition. `pictures.montage` draws all of it, from the PNGs
# that `scripts/preprocess.py` wrote, lowest slice first. Orange captions have a bleed. Another window:
# `window="subdural"`.

# %%
table = slice_table.read_table(data.images / "slices.parquet")
settings = convert.read_settings(data.images)
scan = pictures.find_scans(table, chosen)
montage = pictures.montage(data.images, scan, settings, labels=labels)
Image(pictures.png(montage))

# %% [markdown]
# A bleed spans several neighbouring slices. That is why folds are made of whole patients (a neighbour in training would
# give a held-out slice away), and why a second stage that reads the whole scan helps: notebook 3.
#
# ## The slice table
#
# The conversion leaves one row a slice in `slices.parquet`, read or not. `z` is the place along the scan in
# millimetres, `order` the resulting rank. It is computed along the slices' normal, so that a tilted gantry does no
# harm.

# %%
columns = ["SOPInstanceUID", "order", "z", "Rows", "Columns", "BitsStored", "RescaleIntercept", "repaired", "status"]
display(scan[columns].head())

readable = table[table["status"] == "ok"]
kinds = readable.groupby(["BitsStored", "PixelRepresentation", "RescaleIntercept"]).size().rename("slices")
display(kinds.reset_index())

# %% [markdown]
# The second table is of the scanners' formats: bits stored, unsigned (0) or signed (1), intercept. The competition
# mixes six of these, and the demo imitates them.
#
# What is odd about the scans: slices at one and the same place (`ties`), steps so long that a slice may be missing
# (`gaps`), several directions in one series (`orientations` above 1), slices without a place.

# %%
audit = slice_table.scan_audit(readable)
odd = audit[(audit[["ties", "gaps", "unplaced"]] > 0).any(axis=1) | (audit["orientations"] > 1)]
display(odd)

# %% [markdown]
# ## What was repaired
#
# 123 slices of the competition's training set hold *wrapped* values: whatever should have been negative was stored as a
# large number, so that air is brighter than bone. Read by the header alone, such a slice is useless; `dicom.read` knows
# the defect by the air that is missing, mends these slices only, and says so. (Described by J. Howard, "Cleaning the
# data for rapid prototyping", Kaggle 2019.)

# %%
repaired = readable[readable["repaired"] != ""]
print(f"{len(repaired)} repaired slice(s): {repaired['repaired'].value_counts().to_dict()}")

raw = files[repaired["SOPInstanceUID"].iloc[0]].read()
by_header = pydicom.dcmread(pydicom.filebase.DicomBytesIO(raw))
by_header = by_header.pixel_array * by_header.RescaleSlope + by_header.RescaleIntercept
mended, _ = reader.read(raw)
figure, panels = plt.subplots(1, 2, figsize=(7, 3.8), layout="constrained")
for axes, image, title in zip(panels, (by_header, mended), ("by the header alone", "as ich.dicom.reader reads it")):
    axes.imshow(apply_window(image.astype(np.int16), PRESETS["brain"]), cmap="gray", vmin=0, vmax=255)
    axes.set_title(f"{title}\n{image.min():g} to {image.max():g} HU", fontsize=11)
    axes.axis("off")
plt.show()

# %% [markdown]
# ## What was put aside
#
# A slice that cannot be read keeps its row, with the reason, and gets no picture: nothing is filled in for it. The
# competition has one such file, ID_6431af929, which is cut off.

# %%
with pd.option_context("display.max_colwidth", None):
    display(table.loc[table["status"] != "ok", ["SOPInstanceUID", "split", "status", "reason"]])

# %% [markdown]
# `preprocess.py` also left a contact sheet of random slices and all repaired ones: `images/demo/contact_sheet.png`.
#
# **Try it:** choose another slice (`chosen = …`), or give `PRESETS` above a window of your own:
# `from ich.dicom.windows import Window`, then `apply_window(hu, Window(center=75, width=215))`, as the 5th place
# had it.
#
# Next: [02_batches](02_batches.ipynb), what a network is given.
