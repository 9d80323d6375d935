# %% [markdown]
# # A submission on Kaggle, without network
#
# Models that were trained elsewhere predict the competition's test set here, by `predict_scans.py`: `submission.csv`.
#
# 1. On the machine that has the runs: `python scripts/pack_for_kaggle.py runs/baseline --id OWNER/SLUG --out FOLDER`,
#    then the upload command that it prints. The data set holds the code, the models and the wheels that Kaggle lacks.
# 2. Here, under *Add Input*: that data set, and the competition *RSNA Intracranial Hemorrhage Detection*.
# 3. Under *Settings*: a GPU if you have hours left, Internet off. Then *Save & Run All*.
# 4. Submit `submission.csv` from the notebook's output.
#
# **Disk:** nothing is converted; predictions go to `/tmp`, and only the submission to `/kaggle/working`, which becomes
# the notebook's output.
#
# To resume after an interruption in a running session, run the cell again.

# %%
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

INPUT = Path(os.environ.get("ICH_INPUT", "/kaggle/input"))
WORK = Path(os.environ.get("ICH_WORK", "/tmp/ich"))  # predictions
OUT = Path(os.environ.get("ICH_OUT", "/kaggle/working"))  # submission.csv and submission.json

# Which model to submit: its name, as in runs/. None takes the last one that was packed.
RESULT = os.environ.get("ICH_RESULT")
# How test slices that cannot be read are filled in, such as ["series_mean", "prevalence"]; with none they are refused.
MISSING = []

# %% [markdown]
# ## The data set
#
# It is found by its manifest, wherever Kaggle mounts it. Python runs the code from there; only wheels are installed:
# pip takes those for this Python.

# %%
roots = [path.parent for depth in ("", "*/", "*/*/", "*/*/*/") for path in INPUT.glob(f"{depth}ich-manifest.json")]
if len(roots) != 1:
    raise FileNotFoundError(f"expected one data set of pack_for_kaggle.py below {INPUT}, found {roots or 'none'}")
root = roots[0]

wheels = sorted({wheel.name.split("-")[0] for wheel in (root / "wheels").glob("*.whl")})
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
if wheels:  # over any installed version: an older Keras cannot read the models
    pip += ["--no-index", "--no-deps", "--force-reinstall", "--find-links", str(root / "wheels")]
    subprocess.run([*pip, *wheels], check=True)
print(f"data set {root}; installed: {', '.join(wheels) or 'nothing'}")

# %% [markdown]
# Every file must be as packed, and every package installed. Packages outside the tested versions are listed: if
# something fails below, look there first, and pack again with `--lack NAME`.

# %%
sys.path.insert(0, str(root / "code/src"))
kaggle = importlib.import_module("ich.kaggle.notebook")  # importable only now

pack = kaggle.open_pack(root)
model = RESULT or pack.models[-1]
print(f"models: {', '.join(pack.models)}; to submit: {model}")
for line in kaggle.check_packages(root / "code/requirements.txt"):
    print(f"note: {line}")

# %% [markdown]
# ## The competition's files

# %%
competition = kaggle.find_competition(INPUT)
print(f"test slices: {competition.test}")
print(f"sample submission: {competition.sample}")

# %% [markdown]
# ## Prediction, submission
#
# These are the repository's scripts, each shown with its command. Preprocessing, TTA passes, second stage, weights and
# calibration are the model's own. Slices are read as they are, without slabs, and all series.

# %%
for step in kaggle.steps(pack, model, competition, WORK, OUT, MISSING):
    kaggle.run(step, pack, WORK)

# %% [markdown]
# ## What will be submitted

# %%
submission = pd.read_csv(OUT / "submission.csv")
print(f"{len(submission):,} rows")
submission.head(12)
