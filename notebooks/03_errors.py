# %% [markdown]
# # 3 · Errors
#
# How good are the predictions of the demo's run, where are they wrong, and what was the network looking at? Then: what
# the second stage gains, which reads the whole scan. And a viewer with a slider. It takes a minute.
#
# All predictions here are **out of fold**: each slice by the network that did not see its patient in training.
# Everything else would be self-praise. The scans are simulated, so the figures say nothing about real patients.

# %%
import os
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, display

from ich.competition import metrics
from ich.competition.labels import LABELS, METRIC_WEIGHTS
from ich.images import convert, slice_table
from ich.report import diagnostics, figures, galleries, pictures, viewer
from ich.results import compare

# The folder in which `make demo` ran: that of the Makefile, unless ICH_DEMO names another.
os.chdir(os.environ.get("ICH_DEMO") or (".." if Path.cwd().name == "notebooks" else "."))
FIRST, SECOND = Path("runs/demo"), Path("runs/demo-sequence")
for run in (FIRST, SECOND):
    if not (run / "oof.parquet").exists():
        raise FileNotFoundError(f"{Path.cwd()} has no {run}/oof.parquet: run `make demo` there, or set ICH_DEMO")

# %% [markdown]
# ## The score
#
# The competition's metric is the **weighted log loss**: for each label the mean of −log(probability given to what is
# true), and of the six labels the mean, `any` counting twice. 0 is perfect. Saying 0.01 of a bleed that is there costs
# 4.6, saying 0.5 always costs 0.69. The honest zero point is a forecaster who knows only how frequent each label is,
# and predicts that everywhere: the **prevalence floor**. (In the competition it is 0.232, and the winner had 0.044.)
#
# The interval comes from drawing patients anew (bootstrap): slices of one patient are alike, so patients are what
# counts.

# %%
found = compare.read_results([FIRST, SECOND])
truth = found.table[list(LABELS)].to_numpy()
p = found.oof[str(FIRST)].astype(np.float64)

floor = metrics.prevalence_log_loss(truth)
scores = compare.compare(found.table, found.oof, baseline=str(FIRST))
first = scores.loc[str(FIRST)]
print(f"{len(truth):,} slices of {found.table['PatientID'].nunique()} patients")
print(f"prevalence floor     {floor:.4f}")
print(f"{FIRST!s:<20} {first['weighted_log_loss']:.4f}   95 % {first['low']:.4f} to {first['high']:.4f}")
print(f"that is {first['weighted_log_loss'] / floor:.0%} of the floor")

# %% [markdown]
# ## By label
#
# `of_prevalence` is the label's own floor. `auc` tells how well slices are ranked, whatever the probabilities are (0.5
# is chance); `average_precision` looks at the positives and suffers with rare labels; `sensitivity` is at a specificity
# of 90 %. Compare `log_loss` with `of_prevalence` within a row; between rows, rare labels have the smaller losses
# anyway.

# %%
by_label = diagnostics.by_label(found.table, p)
display(by_label.round(3))

figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
places = np.arange(len(by_label))
axes.bar(places, by_label["of_prevalence"], width=0.8, color="0.85", label="prevalence baseline")
axes.bar(places, by_label["log_loss"], width=0.5, color="#56B4E9", label="this run")
axes.vlines(places, by_label["low"], by_label["high"], color="black", linewidth=1.5, label="95 %")
axes.set_xticks(places, by_label.index)
axes.set_ylabel("log loss")
axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# The curves behind the table, and the calibration: of the slices that were given 0.7, do 70 % have the label? Above the
# dotted line the network is too shy, below it too bold. Small counts (lower panels) make ragged curves.

# %%
for figure in (figures.ranking_curves(truth, p), figures.calibration_curves(truth, p)):
    display(Image(pictures.png(figure), width=900))

# %% [markdown]
# ## Where along the scan
#
# Slices by their place in the scan, lowest fifth first. Groups differ in how many bleeds they hold, so look at the
# distance between the dot (the run) and the gray mark (the group's own prevalence).

# %%
table = slice_table.read_table(Path(found.data["images"]) / "slices.parquet")
facts = diagnostics.scan_facts(table, found.table.index)
groups = {
    "place in the scan": diagnostics.by_group(found.table, p, diagnostics.fifths(facts["position"])),
    "bits stored by the scanner": diagnostics.by_group(found.table, p, facts["BitsStored"].astype("Int64")),
}
Image(pictures.png(figures.group_scores(groups)))

# %% [markdown]
# ## The worst misses, the worst false alarms, the most confident hits
#
# Of each label one slice, and of each scan at most one. Each row: the slice in its windows, what the network looked at
# (Grad-CAM: the warmer, the more this region spoke for the label), the slices before and after, and the label's
# probability along the scan. There, shaded slices have the label, and the dashed line is this slice.
#
# Grad-CAM is coarse: its maps have a fraction of the picture's pixels. It answers whether the network looked at the
# bleed or elsewhere, not where a bleed ends.

# %%
results = compare.read_results([FIRST])
gallery = galleries.draw(FIRST, Path(found.data["images"]), results, table, facts, pages=False)
for title, cases in gallery["kinds"].items():
    html = f"<h3>{title}</h3>"
    for case in cases:
        shown = "".join(
            f"<figure style='margin:0 6px 0 0'><img src='{picture.source}' alt='{picture.alt}' width=128>"
            f"<figcaption style='font-size:11px; max-width:128px'>{picture.caption}</figcaption></figure>"
            for picture in case["slices"]
        )
        curve = f"<img src='{case['curve'].source}' alt='{case['curve'].alt}' width=250 style='background:white'>"
        html += f"<p style='margin:12px 0 4px'><b>{case['label']} {case['probability']}</b>, has: {case['truth']}"
        html += f" ({case['id']})</p><div style='display:flex; flex-wrap:wrap'>{shown}{curve}</div>"
    display(HTML(html))

# %% [markdown]
# What to look for:
#
# * A miss at the first or last shaded slice of its scan is an edge: a few pixels of blood, about which readers differ
#   too. A miss in the middle of a run of hits is one that the neighbours could have told.
# * A false alarm right beside a bleed is the same thing from the other side.
# * A false alarm for one kind where another kind is there (subdural for epidural) is a confusion, no hallucination:
#   `any` is right then.
# * A hit whose Grad-CAM lies somewhere else than the blood is luck, or a shortcut.
#
# ## Along a scan, and the second stage
#
# The network judges each slice alone. But a bleed goes through neighbouring slices, so a lonely spike is probably
# false, and a gap within a bleed probably filled. The second stage reads all the first one said of a scan, in its
# order, and corrects it (`scripts/train_sequence.py`). In the competition such a stage took the winner from 0.058 to
# 0.054 and the second place from 0.066 to 0.059 (stage 1 of the competition).
#
# The difference is paired, on the same drawn patients: below 0 is better than the first stage.

# %%
columns = ["weighted_log_loss", "low", "high", "difference", "difference_low", "difference_high"]
display(scores[columns].round(4))
display(scores[list(LABELS)].rename_axis("log loss of").round(4))

# %% [markdown]
# Is the gain more than luck? If the interval of the difference holds 0, these few patients cannot tell.
#
# Here are the two scans whose score gained most, and the one that lost most. Gray: the first stage; orange: after the
# second; shaded: what is true. The probability is that of `any`.

# %%
weights = list(METRIC_WEIGHTS.values())
gained = pd.DataFrame(
    {
        "scan": facts["scan"].to_numpy(),
        "gain": np.average(
            metrics.log_losses(truth, p) - metrics.log_losses(truth, found.oof[str(SECOND)]), axis=1, weights=weights
        ),
    }
)
gained = gained.groupby("scan")["gain"].mean().sort_values(ascending=False)
chosen = [*gained.index[:2], gained.index[-1]]
figure, panels = plt.subplots(1, 3, figsize=(14, 3.2), layout="constrained", sharey=True)
for axes, scan in zip(panels, chosen):
    rows = np.flatnonzero(facts["scan"] == scan)
    rows = rows[np.argsort(facts["order"].to_numpy()[rows])]
    order, has = facts["order"].to_numpy()[rows], truth[rows, LABELS.index("any")]
    axes.bar(order, has, width=1, color="#F0C6A8", edgecolor="#F0C6A8")
    for run, color in ((FIRST, "0.4"), (SECOND, "#D55E00")):
        axes.plot(order, found.oof[str(run)][rows, LABELS.index("any")], ".-", color=color, label=run.name)
    axes.set(title=f"{scan}: {gained[scan]:+.3f}", xlabel="slice of the scan", ylim=(0, 1.02))
panels[0].set_ylabel("probability of any")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=10)
plt.show()

# %% [markdown]
# ## A scan with a slider
#
# Move through the scan with the greatest gain: the slice in each window, and all probabilities along the scan, after
# the second stage. (The slider needs a running notebook; a page on the web shows its first picture at most.) Another
# study: any id of a study, a series or a slice, in place of `chosen[0]`.

# %%
scan = pictures.find_scans(table, chosen[0])
folder, settings = Path(found.data["images"]), convert.read_settings(Path(found.data["images"]))
labels = found.table[list(LABELS)]
second = compare.frame(found.table.index, found.oof[str(SECOND)])
slider = ipywidgets.IntSlider(len(scan) // 2, 0, len(scan) - 1, description="slice", continuous_update=False)
picture = ipywidgets.Image(format="png")
# Not ipywidgets.interact: run without a browser, its output sometimes keeps nbclient waiting (jupyter/nbclient, 312).
ipywidgets.dlink(
    (slider, "value"),
    (picture, "value"),
    lambda place: pictures.png(viewer.slice_view(folder, scan, settings, place, labels, second)),
)
display(ipywidgets.VBox([slider, picture]))

# %% [markdown]
# `scripts/view_study.py runs/demo-sequence ID` draws the same scan as one montage, and `scripts/report.py runs/demo`
# all of the above as one page, `runs/demo/report.html`.
#
# **Try it:** `FIRST = Path("runs/…")` for a run of your own, or the worst slices of one label:
# `found.table.assign(p=p[:, 0]).query("epidural == 1").nsmallest(5, "p")`.
