# %% [markdown]
# # 2 · Batches
#
# A network learns from batches: some slices at a time, with their labels. `ich.data.generator.DataGenerator` makes
# them. This notebook looks at what comes out of it: augmentations, neighbouring slices as channels, what makes it
# repeatable, the last batch, and sampling. It takes half a minute.

# %%
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display

from ich import config
from ich.competition import folds
from ich.competition.labels import LABELS
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.data.sampling import PerSeries, PositiveShare
from ich.report import pictures
from ich.training.run_data import read_slices

# The folder in which `make demo` ran: that of the Makefile, unless ICH_DEMO names another.
os.chdir(os.environ.get("ICH_DEMO") or (".." if Path.cwd().name == "notebooks" else "."))
if not Path("images/demo/folds.csv").exists():
    raise FileNotFoundError(f"{Path.cwd()} has no images/demo/folds.csv: run `make demo` there, or set ICH_DEMO")

# %% [markdown]
# ## A generator
#
# It takes the ids of the samples, their labels (a table with the same ids) and the folder of the PNGs. Here are the
# slices on which fold 0 trains: those of all patients that are not held out.

# %%
settings = config.load(Path("configs/demo.yaml"))
images = settings.data.images / "train"
everything = folds.read_folds(settings.data.folds_path)
train = everything[everything["fold"] != 0]
labels = train[list(LABELS)]
table = read_slices(settings)
scans = table.set_index("SOPInstanceUID").loc[train.index, ["SeriesInstanceUID", "order"]]

plain = DataGenerator(train.index, labels, image_dir=images, batch_size=32, shuffle=True)
x, y = plain[0]
print(f"{len(train):,} slices in {len(plain)} batches an epoch")
print(f"images: {x.dtype}, {x.shape} = (batch, height, width, channels), {x.min()} to {x.max()}")
print(f"labels: {y.dtype}, {y.shape}; the first five:")
display(pd.DataFrame(y[:5].astype(int), columns=list(LABELS), index=plain.ids_of(0)[:5]))

# %% [markdown]
# The channels are the three windows of notebook 1. Images stay whole numbers of 8 bits until they are in the network,
# which scales them itself: a quarter of the bytes travels.
#
# ## Augmentation
#
# A network that sees the same 1,000 slices again and again learns them by heart. So each time it gets a slightly
# different one: mirrored, rotated, moved, scaled. `preview` shows samples as they are (above) and as the network sees
# them (below). First `light`, which the demo uses, then `heavy`, which also crops and changes brightness and contrast,
# as the competition's best entries did.

# %%
size = x.shape[1:3]
light, heavy = (
    DataGenerator(
        train.index, labels, image_dir=images, batch_size=32, shuffle=True, augment=augment.pipeline(name, *size)
    )
    for name in ("light", "heavy")
)
for generator in (light, heavy):
    display(Image(pictures.png(generator.preview(6))))

# %% [markdown]
# Is a mirrored head still a head? Yes: left and right change places, and the labels do not name a side. Upside down
# would not do, because no patient is scanned like that, and colors may not be exchanged, because they are windows.
#
# Here is one slice as eight epochs show it.

# %%
single = DataGenerator(train.index[:1], labels[:1], image_dir=images, augment=heavy.augment)
figure, panels = plt.subplots(1, 8, figsize=(14, 2.2), layout="constrained")
for epoch, axes in enumerate(panels):
    single.set_epoch(epoch)
    axes.imshow(single[0][0][0])
    axes.set_title(f"epoch {epoch}", fontsize=11)
    axes.axis("off")
plt.show()

# %% [markdown]
# ## 2.5-D: a slice with its neighbours
#
# Whoever reads a scan looks at the slices above and below. `neighbours=(-1, 0, 1)` gives a network that too: the
# windows of three slices, one after the other in the channels. The winner did so. The slice table says which slices are
# neighbours; at either end of the scan the last slice is repeated.

# %%
middle = scans.groupby("SeriesInstanceUID")["order"].apply(lambda order: order.sort_values().index[len(order) // 2])
deep = DataGenerator(middle, labels, image_dir=images, batch_size=3, shuffle=False, neighbours=(-1, 0, 1), slices=table)
batch, _ = deep[0]
print(f"a batch is now {batch.shape}: 3 slices × {batch.shape[-1] // 3} windows in the channels")

figure, rows = plt.subplots(len(batch), 3, figsize=(7.5, 2.6 * len(batch)), layout="constrained", squeeze=False)
for panels, image, id in zip(rows, batch, deep.ids_of(0)):
    for axes, part, where in zip(panels, np.split(image, 3, axis=-1), ("slice before", id, "slice after")):
        axes.imshow(part)
        axes.set_title(where, fontsize=11)
        axes.axis("off")
plt.show()

# %% [markdown]
# ## The same again
#
# An experiment that cannot be repeated proves little. What a sample looks like here depends on the seed, the epoch and
# its id, and on nothing else. A second generator gives the same batches, to the last bit:

# %%
options = {"image_dir": images, "batch_size": 32, "shuffle": True, "augment": light.augment}
second = DataGenerator(train.index, labels, **options, seed=0)
first_epoch = [light[k][0] for k in range(len(light))]
print("a second generator:", all(np.array_equal(second[k][0], batch) for k, batch in enumerate(first_epoch)))

# %% [markdown]
# Nor does it matter who makes the batches. Here four threads make them in reverse order, then Keras's own workers do,
# as in training (the "model" is one that returns its input). A prediction is in the order of the ids, unshuffled; what
# a slice looks like does not depend on it:

# %%
with ThreadPoolExecutor(4) as pool:
    backwards = list(pool.map(lambda k: second[k][0], reversed(range(len(second)))))
print("four threads, backwards:", all(map(np.array_equal, reversed(backwards), first_epoch)))

mirror = keras.Sequential([keras.Input(x.shape[1:], dtype="uint8"), keras.layers.Identity(dtype="uint8")])
by_workers = mirror.predict(DataGenerator(train.index, labels, **options | {"shuffle": False}, workers=3), verbose=0)
shown = train.index.get_indexer(np.concatenate([light.ids_of(k) for k in range(len(light))]))
print("three Keras workers:", np.array_equal(by_workers[shown], np.concatenate(first_epoch)))

# %% [markdown]
# The next epoch has another order and other augmentations, and epoch 0 can be had again. Another seed is another
# experiment.

# %%
before = light.ids_of(0)
light.set_epoch(1)
print("the first batch of epoch 1 has the same slices:", set(light.ids_of(0)) == set(before))
print("epoch 1 as a whole has the same slices:", sorted(light.ids) == sorted(second.ids))
light.set_epoch(0)
print("epoch 0 again:", np.array_equal(light[0][0], first_epoch[0]))
other = DataGenerator(train.index, labels, **options, seed=1)
print("seed 1 gives the same batch:", np.array_equal(other[0][0], first_epoch[0]))

# %% [markdown]
# ## The last batch
#
# The slices rarely divide by the batch size. The last batch holds what is left: no slice is dropped, none comes twice.

# %%
sizes = [len(light[k][0]) for k in range(len(light))]
seen = np.concatenate([light.ids_of(k) for k in range(len(light))])
print(f"batches of {sizes[0]}, the last of {sizes[-1]}; {len(seen):,} slices in all, {len(set(seen)):,} different ones")

# %% [markdown]
# ## A few slices of each scan
#
# Neighbouring slices tell nearly the same. The winner's network saw a few of each scan in an epoch, others in the next:
# `PerSeries`. An epoch becomes shorter, and every scan counts the same, be it thick or thin. `centre_weighted` prefers
# the middle of the scan, where most bleeds are.

# %%
ordered = scans.sort_values(["SeriesInstanceUID", "order"])
few = PerSeries(ordered["SeriesInstanceUID"], n=4, centre_weighted=True)
sampled = DataGenerator(ordered.index, labels, image_dir=images, batch_size=32, shuffle=True, sampling=few)
print(f"an epoch: {len(sampled)} batches instead of {len(plain)}")

longest = ordered["SeriesInstanceUID"].value_counts().index[0]
counts = pd.Series(0, ordered.index)
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
for epoch in range(200):
    sampled.set_epoch(epoch)
    ids = pd.Index(np.concatenate([sampled.ids_of(k) for k in range(len(sampled))]))
    counts[ids] += 1
    if epoch < 10:
        shown = ordered.loc[ids[ordered.loc[ids, "SeriesInstanceUID"] == longest], "order"]
        left.plot(shown, np.full(len(shown), epoch), "s", color="C0", markersize=6)
left.set(xlabel="slice of one scan", ylabel="epoch", title="which of its slices ten epochs show")
left.set_xlim(-1, ordered.loc[ordered["SeriesInstanceUID"] == longest, "order"].max() + 1)
own = ordered["SeriesInstanceUID"] == longest
right.bar(ordered.loc[own, "order"], counts[own] / 200, width=0.9)
right.set(xlabel="slice of one scan", ylabel="share of epochs", title="how often, in 200 epochs")
plt.show()

# %% [markdown]
# `PositiveShare` balances otherwise: all slices with a bleed, and as many without as make the share that is asked for.
# (The share changes what probabilities mean: a network trained like this expects bleeds to be that frequent.)

# %%
any_bleed = labels["any"].to_numpy() == 1
half = DataGenerator(train.index, labels, image_dir=images, shuffle=True, sampling=PositiveShare(any_bleed, 0.5))
print(f"share of bleeds: {any_bleed.mean():.2f} of all slices,", end=" ")
print(f"{np.concatenate([half[k][1][:, LABELS.index('any')] for k in range(len(half))]).mean():.2f} of an epoch's")

# %% [markdown]
# **Try it:** another seed in `DataGenerator(…, seed=3)`, five neighbours (`neighbours=(-2, -1, 0, 1, 2)`), or an
# augmentation of your own: any albumentations transform, as `augment=A.GridDistortion(p=1)`.
#
# Next: [03_errors](03_errors.ipynb), what a trained network gets wrong.
