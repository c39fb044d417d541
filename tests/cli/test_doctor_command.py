"""``skumatch doctor``: table, JSON and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from skumatch.cli.doctor import doctor

app = typer.Typer(add_completion=False)
app.command()(doctor)


def test_json_is_all_that_is_printed() -> None:
    result = CliRunner().invoke(app, ["--json", "--offline"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["torch_runs"] is True
    assert {"versions", "cpu", "memory", "devices", "providers", "hub", "cache", "temp", "problems"} <= set(report)


def test_table_fits_its_width_and_names_every_part() -> None:
    for columns in (80, 120):
        result = CliRunner().invoke(app, ["--offline"], env={"COLUMNS": str(columns)})
        assert result.exit_code == 0
        assert max(len(line) for line in result.stdout.splitlines()) <= columns
        for word in ("skumatch", "processor", "memory", "torch", "CPUExecutionProvider: runs", "hub", "cache"):
            assert word in result.stdout


def test_a_torch_that_does_not_import_is_exit_1_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", "import typer; from skumatch.cli.doctor import doctor; typer.run(doctor)", "--offline"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "torch cannot compute on cpu: libtorch is broken - install torch again" in result.stdout
    assert result.stderr == ""
