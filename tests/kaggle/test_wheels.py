import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ich.errors import IchError
from ich.kaggle import wheels

ROOT = Path(__file__).parents[2]


def write_wheel(folder, name, version="1.0", tag="py3-none-any"):
    """One that pip takes for a wheel; nothing of it can be imported."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def names(requirements):
    return [str(requirement) for requirement in requirements]


def test_the_repositorys_requirements_are_read_without_their_reasons():
    requirements = wheels.read_requirements(ROOT / "requirements.txt")
    assert {"albumentations", "isal", "tensorflow"} <= {requirement.name for requirement in requirements}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(requirements) == len(lines)


def test_requirements_that_cannot_be_read_are_reported(tmp_path):
    with pytest.raises(IchError, match=r"r.txt cannot be read \(.*\); expected a distribution a line"):
        wheels.read_requirements(tmp_path / "r.txt")
    (tmp_path / "r.txt").write_text("numpy>=2\nwhat is this\n")
    with pytest.raises(IchError, match=r"a line of .*r.txt, 'what is this', names no distribution; write it as pip"):
        wheels.read_requirements(tmp_path / "r.txt")


def test_what_is_lacking():
    requirements = [Requirement("isal>=1.6,<2"), Requirement("PyYAML>=6"), Requirement("keras>=3.10")]
    assert names(wheels.lacking(requirements, ["pyyaml", "KERAS"])) == ["isal<2,>=1.6"]
    assert names(wheels.lacking(requirements, ["pyyaml", "keras"], ["Keras", "other_one"])) == [
        "isal<2,>=1.6",
        "keras>=3.10",
        "other_one",
    ]
    assert names(wheels.lacking(requirements, ["pyyaml"], ["keras==3.15.1"])) == ["isal<2,>=1.6", "keras==3.15.1"]
    with pytest.raises(IchError, match="what is lacking, 'no name', names no distribution"):
        wheels.lacking(requirements, [], ["no name"])


def test_each_python_gets_its_wheel_and_what_is_there_stays(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "wheels"
    write_wheel(source, "both")
    for version in ("1.0", "1.1", "2.0"):
        for python in ("cp311", "cp312"):
            write_wheel(source, "each", version, f"{python}-{python}-manylinux_2_28_x86_64")
    write_wheel(source, "each", "1.2", "cp312-cp312-win_amd64")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("each==1.0\nboth==7\n")
    requirements = [Requirement("each<2"), Requirement("both==1.0")]  # an exact version is not put in question
    fetched = wheels.fetch(requirements, ["3.11", "3.12"], folder, constraints, source)
    assert sorted(path.name for path in fetched) == sorted(path.name for path in folder.iterdir())
    assert {path.name.split("-")[-2] for path in fetched} == {"none", "cp311", "cp312"}
    assert {path.name.split("-")[1] for path in fetched} == {"1.0"}
    assert wheels.fetch(requirements, ["3.11", "3.12"], folder, constraints, tmp_path / "nowhere") == fetched


def test_a_wheel_that_is_not_to_be_had_is_reported(tmp_path):
    source = tmp_path / "source"
    write_wheel(source, "each", "1.0", "cp311-cp311-manylinux_2_28_x86_64")
    with pytest.raises(
        IchError, match=r"no wheel of each for Python 3.12 \(.*each.*\); put one into a folder and name"
    ):
        wheels.fetch([Requirement("each")], ["3.11", "3.12"], tmp_path / "wheels", source=source)
    with pytest.raises(IchError, match=r"no wheel of each for Python 3,12 \(version part must be an integer\)"):
        wheels.fetch([Requirement("each")], ["3,12"], tmp_path / "wheels", source=source)
