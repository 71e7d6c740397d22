"""The types that the package has for its users."""

import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parent.parent

USER = """
import celeriac

def fetched() -> int:
    return 7

async def awaited() -> str:
    return "seven"

async def task() -> None:
    kept: int = celeriac.step("fetched", fetched)
    said: str = await celeriac.step("awaited", awaited)
    celeriac.progress(kept, 10, message=said)
    celeriac.emit("seen", {"kept": kept})
    celeriac.token(said)
    if celeriac.cancelled():
        return
    wrong: str = celeriac.step("fetched", fetched)
"""


def mypy(folder, *files):
    command = [sys.executable, "-m", "mypy", "--cache-dir", folder / "cache", "--config-file", PACKAGE / "pyproject.toml", *files]
    return subprocess.run(list(map(str, command)), cwd=PACKAGE, capture_output=True, text=True)


def test_the_package_is_typed_strictly_and_its_users_are_helped(tmp_path):
    checked = mypy(tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    user = tmp_path / "user.py"
    user.write_text(USER)
    checked = mypy(tmp_path, user)
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    wrong = USER.splitlines().index('    wrong: str = celeriac.step("fetched", fetched)') + 1
    assert len(errors) == 1 and f"user.py:{wrong}: error:" in errors[0], checked.stdout + checked.stderr
