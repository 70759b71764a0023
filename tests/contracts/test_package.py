"""Wheel and sdist: both are complete, and the wheel works in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import rldistill

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    """Run a command without the environment variables of this process, such as PYTHONPATH."""
    own = {key: value for key, value in os.environ.items() if key in ("PATH", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env={**own, "HOME": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as `pip install` from PyPI would."""
    hatchling = pytest.importorskip("hatchling", reason="hatchling builds the package")
    folder = tmp_path_factory.mktemp("dist")
    environment = os.environ | {"PYTHONPATH": str(Path(hatchling.__file__).parents[1])}
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, env=environment, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    subprocess.run(
        [*build, "wheel"], cwd=folder / f"rldistill-{rldistill.__version__}", env=environment, check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def scripts(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a new environment, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = next((folder / "lib").glob("python*/site-packages"))
    own = [path for path in sys.path if path.endswith("site-packages")]
    # Appended, so that the wheel takes precedence over an editable installation of the same package.
    (packages / "others.pth").write_text("\n".join([*own, sysconfig.get_paths()["purelib"]]))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, "--ignore-installed", wheel, folder=folder)
    return folder / "bin"


def test_archives_are_complete(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    examples = {path.relative_to(ROOT / "examples") for path in (ROOT / "examples").rglob("*") if path.is_file()}
    wanted = {Path(name).relative_to("rldistill/examples") for name in names if name.startswith("rldistill/examples/")}
    assert wanted == {path for path in examples if "__pycache__" not in path.parts}
    assert {"rldistill/py.typed", "rldistill/__init__.pyi", "rldistill/zoo/pong-dqn/policy.safetensors"} <= {*names}
    assert f"rldistill-{rldistill.__version__}.dist-info/METADATA" in names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith(("tests/", "docs/"))]


def test_wheel_gives_examples_and_run_files(scripts: Path, tmp_path: Path) -> None:
    where = run(scripts / "python", "-c", "import rldistill; print(rldistill.__file__)", folder=tmp_path)
    assert Path(where).is_relative_to(scripts.parent)
    assert run(scripts / "rldistill", "--version", folder=tmp_path).strip() == rldistill.__version__
    assert "pong-dagger" in run(scripts / "rldistill", "examples", folder=tmp_path)
    run(scripts / "rldistill", "examples", "grid", folder=tmp_path)
    assert (tmp_path / "examples/teachers/grid_mpc.py").is_file()
    run(scripts / "rldistill", "init", "--env", "CartPole-v1", "--teacher", "zoo:cartpole-ppo", folder=tmp_path)
    settings = ["collect.steps=400", "recipe=offline", "evaluate.episodes=2", "evaluate.videos=false"]
    run(scripts / "rldistill", "run", "cartpole.yaml", "distill.learning_rate=0.01", *settings, folder=tmp_path)
    assert (tmp_path / "runs/cartpole/report.html").is_file()


def test_import_loads_no_large_package(scripts: Path, tmp_path: Path) -> None:
    code = "import sys, rldistill; print({'numpy', 'torch', 'gymnasium', 'pydantic', 'typer'} & {*sys.modules})"
    assert run(scripts / "python", "-c", code, folder=tmp_path).strip() == "set()"


def test_stages_import_slow_parts_of_scipy_only_on_use(scripts: Path, tmp_path: Path) -> None:
    code = "import sys, rldistill.run.stages; print({'scipy.stats', 'scipy.signal', 'scipy.optimize'} & {*sys.modules})"
    assert run(scripts / "python", "-c", code, folder=tmp_path).strip() == "set()"


def test_quick_demo_writes_a_report(scripts: Path, tmp_path: Path) -> None:
    run(scripts / "rldistill", "demo", "--quick", folder=tmp_path)
    assert (tmp_path / "runs/pong-quick/report.html").stat().st_size > 100_000
