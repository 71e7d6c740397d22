"""One wheel carries the program and the package."""

import os
import pathlib
import subprocess
import sys

PYTHON = pathlib.Path(__file__).parent.parent


def ran(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def test_the_wheel_carries_both_halves(tmp_path):
    # The profile of the tests, so that what they were run with is not compiled once more.
    ran(sys.executable, "-m", "maturin", "build", "--profile", "dev", "--out", tmp_path, cwd=PYTHON)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    ran(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", installed, wheel)
    assert ran(installed / "bin" / "celeriac", "--version").startswith("celeriac ")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    said = ran(sys.executable, "-c", "import celeriac; print(celeriac.__file__)", env=environment, cwd=tmp_path)
    assert said == str(installed / "celeriac" / "__init__.py")
    # Its types are for those who check theirs.
    assert (installed / "celeriac" / "py.typed").is_file()
    metadata = (next(installed.glob("celeriac-*.dist-info")) / "entry_points.txt").read_text()
    assert "celeriac.backend:Backend" in metadata and "celeriac._kombu:SERIALIZER" in metadata
