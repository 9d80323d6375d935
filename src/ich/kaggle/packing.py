"""Pack exported models, code and wheels as a data set for Kaggle, complete for offline prediction.

OUT/dataset-metadata.json  title, id and license, as `kaggle datasets create` reads them
OUT/ich-manifest.json      the models' names, and each file's SHA-256; written last
OUT/code/                  src/ich, scripts, requirements.txt, LICENSE
OUT/wheels/                of what Kaggle's image lacks, and of the Keras that wrote the models
OUT/models/<name>/         a model of `ich.own_scans.export` each

The code is packed as its source tree, not as a wheel: Python runs it from where it is mounted, nothing has to be built,
and whoever opens the data set can read it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from packaging.version import Version
from tqdm import tqdm

from ich import folders
from ich.errors import IchError, name_some
from ich.files import copy_file, remove, sha256_of, sweep, write_json
from ich.kaggle.notebook import MANIFEST
from ich.own_scans.export import export_model
from ich.own_scans.model_spec import CARD, read_model
from ich.own_scans.model_spec import MANIFEST as MODEL
from ich.results import environment
from ich.results.result_directory import read_mapping
from ich.training import inference

METADATA = folders.DATA_SET.marker

LICENSES = (
    *("CC0-1.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0", "ODbL-1.0", "DbCL-1.0"),
    *("copyright-authors", "other", "unknown", "CC-BY-4.0", "CC-BY-NC-4.0", "PDDL", "CC-BY-3.0", "CC-BY-3.0-IGO"),
    *("US-Government-Works", "CC-BY-NC-SA-3.0-IGO", "CDLA-Permissive-1.0", "CDLA-Sharing-1.0", "CC-BY-ND-4.0"),
    *("CC-BY-NC-ND-4.0", "ODC-BY-1.0", "LGPL-3.0", "AGPL-3.0", "FDL-1.3", "EU-ODP-Legal-Notice", "apache-2.0"),
    "GPL-3.0",
)
"""Kaggle's names of licenses."""

_OWN = ("code", "wheels", "models")
_DESCRIPTION = f"""Code under the MIT licence (code/LICENSE), and models that it trained on the images of the RSNA \
Intracranial Hemorrhage Detection challenge, which are for non-commercial research under the competition's rules. \
{folders.DATA_SET.says}"""


def metadata(id: str, title: str | None = None, license: str = "other") -> dict:
    """Return the content of dataset-metadata.json.

    Args:
        id: OWNER/SLUG, as its address on Kaggle will be.
        title: of 6 to 50 characters; None takes the slug.
        license: of `LICENSES`.

    Raises:
        IchError: Kaggle would refuse one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]{2,49}", id):
        raise IchError(
            f"--id {id!r} is no id of a data set; expected your name on Kaggle and a name of 3 to 50 small letters,"
            " digits and hyphens, such as --id jane/ich-baseline"
        )
    title = title or id.partition("/")[2]
    if not 6 <= len(title) <= 50:
        raise IchError(f"the title {title!r} has {len(title)} characters; Kaggle wants 6 to 50 (--title)")
    if license not in LICENSES:
        raise IchError(f"Kaggle knows no license {license!r}; there are {', '.join(LICENSES)}")
    return {"title": title, "id": id, "licenses": [{"name": license}], "description": _DESCRIPTION}


@contextmanager
def working_in(out: Path, facts: dict) -> Iterator[None]:
    """Lock a folder, which must be empty or of this data set, and write its dataset-metadata.json.

    Raises:
        IchError: it holds something else, or another process works in it.
    """

    def check() -> None:
        ours = folders.is_ours(out, folders.DATA_SET)
        if ours and (id := read_mapping(out / METADATA, "describes the data set").get("id")) != facts["id"]:
            raise IchError(f"{out} holds the data set {id}, not {facts['id']}; name another folder")

    with folders.locked(out, check):
        sweep(out)
        write_json(out / METADATA, facts)
        yield


def export(results: Sequence[Path], out: Path) -> Version:
    """Write each result as an exported model into `out`/models, within `working_in`.

    Returns:
        The latest version of Keras that wrote one of the models: an older one cannot read them.

    Raises:
        IchError: two results have one name; as `ich.own_scans.export.export_model`.
    """
    names = [path.resolve().name for path in results]
    for path, name in zip(results, names, strict=True):
        if names.count(name) > 1:
            raise IchError(f"{path} has the name of another result to pack; give each once, or rename one of them")
    files = {
        f"models/{name}/{file}"
        for path, name in zip(results, names, strict=True)
        for file in (MODEL, CARD, *read_model(path).files())
    }
    _announce(out, files)
    for path, name in zip(results, names, strict=True):
        export_model(path, out / "models" / name)
    written = [inference.metadata_of(out / file).get("keras_version") for file in files if file.endswith(".keras")]
    if None in written:
        raise IchError(f"a model of {name_some(names)} does not say which Keras wrote it; train its fold again")
    return max(Version(str(version)) for version in written)


def write(root: Path, results: Sequence[Path], wheels: Sequence[Path], out: Path) -> dict[str, str]:
    """Write the rest of a data set, within `working_in` and after `export`; code that is up to date is kept.

    Files that an earlier run wrote are removed if they are not part of it, others never: the manifest lists them, and
    while this writes, both what was there and what will be.

    Args:
        root: of a checkout, whose code is packed.
        results: as for `export`.
        wheels: paths below `out`, as `ich.kaggle.wheels.fetch` gives them.

    Returns:
        The SHA-256 of each file, by its path within `out`.

    Raises:
        IchError: a file cannot be read or written.
    """
    code = _code(root)
    models = [out / "models" / path.resolve().name for path in results]
    there = [*wheels, *(model / name for model in models for name in (MODEL, CARD, *read_model(model).files()))]
    names = {path.relative_to(out).as_posix() for path in there}
    _announce(out, names | code.keys())
    for name, source in tqdm(code.items(), desc="pack", unit="file", disable=None):
        if not (out / name).is_file() or sha256_of(out / name) != sha256_of(source):
            copy_file(source, out / name)
    digests = {name: sha256_of(out / name) for name in sorted(names | code.keys())}
    outdated = [out / name for name in _written(out) - digests.keys()]
    remove(*outdated)
    for folder in sorted(
        {parent for path in outdated for parent in path.parents if out in parent.parents}, reverse=True
    ):
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()
    facts = {"commit": environment.environment()["commit"], "models": [model.name for model in models]}
    write_json(out / MANIFEST, facts | {"files": digests})
    return digests


def _code(root: Path) -> dict[str, Path]:
    """Return the source tree of a checkout: path within the data set -> file."""
    paths = [path for path in (root / "src/ich").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    paths += [*(root / "scripts").glob("*.py"), root / "requirements.txt", root / "LICENSE"]
    return {f"code/{path.relative_to(root).as_posix()}": path for path in sorted(paths)}


def _announce(out: Path, names: set[str]) -> None:
    """List files that will be there, beside those that are: without models, as no manifest of a whole data set has."""
    write_json(out / MANIFEST, {"writing": sorted(_written(out) | names)})


def _written(out: Path) -> set[str]:
    """Return the paths within the folder that an earlier run, complete or not, wrote; never one outside."""
    if not (out / MANIFEST).exists():
        return set()
    manifest = read_mapping(out / MANIFEST, "lists the content of the data set")
    names = {str(name) for key in ("files", "writing") for name in manifest.get(key, ())}
    return {name for name in names if name.split("/")[0] in _OWN and ".." not in name.split("/")}
