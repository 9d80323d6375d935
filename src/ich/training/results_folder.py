"""Another folder for a run's results, where the run's own directory cannot be written into."""

from pathlib import Path

from ich import folders
from ich.config import differences, load
from ich.errors import IchError
from ich.files import copy_file, replacing
from ich.results import commands
from ich.results.predictions import read_provenance
from ich.training.run_directory import Run


def with_results_in(run: Run, folder: Path) -> Run:
    """Return the same run with another folder for its results.

    The folder gets a copy of all but the models, so that what was predicted is not predicted again.

    Raises:
        IchError: the folder has models of its own, or results of another run, or anything else.
    """
    if folder.resolve() == run.path.resolve():
        return run
    results = Run(folder, run.config)

    def check() -> None:
        if not folders.is_ours(folder, folders.RESULT):
            return
        if any(folder.glob("fold*/model.keras")):
            raise IchError(f"{folder} is a run with models of its own; give a new folder for the results of {run.path}")
        if not _are_of(run, results):
            raise IchError(f"{folder} holds the results of another run than {run.path}; give a new folder")

    with folders.locked(folder, check):
        # Later, what is missing of all folds together was removed, as it is about to be made in another way.
        begun = results.config_path.exists()
        files = [run.environment_path, run.path / commands.FILE, *([] if begun else [run.oof_path, run.score_path])]
        for k in range(run.config.folds.n):
            files += [run.fold(k) / "oof.parquet", *run.passes(k).glob("*.parquet")]
        for file in files:
            target = folder / file.relative_to(run.path)
            if file.exists() and not target.exists():
                copy_file(file, target)
        section = load((results if begun else run).config_path).predict
        with replacing(results.config_path) as temporary:
            temporary.write_text(run.config.model_copy(update={"predict": section}).resolved())
    return results


def _are_of(run: Run, results: Run) -> bool:
    """Return whether the results in another directory, if any, were made by this run's config and models."""
    if results.environment() != run.environment():
        return False
    if results.config_path.exists() and differences(load(results.config_path), load(run.config_path)):
        return False
    for k in range(run.config.folds.n):
        theirs, own = (read_provenance(directory.fold(k) / "oof.parquet") or {} for directory in (results, run))
        if theirs.get("model") not in (None, own.get("model")):
            return False
    return True
