"""``skumatch doctor``: show what this machine offers and what hinders skumatch on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skumatch.doctor import Report


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub whether it answers.")] = False,
) -> None:
    """Show versions, devices, runtimes, hub and folders, each tried for real, and what to mend.

    Exit code 1 when torch cannot compute on the CPU, else 0.
    """
    import json

    from skumatch.doctor import examine

    report = examine(offline)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _show(report)
    if not report.torch_runs:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    """Print the report as one table of two columns, then the problems."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(report):
        table.add_row(name, Text(value))
    console.print(table)
    console.print()
    if not report.problems:
        console.print(Text("no problems found", style="green"))
        return
    count = len(report.problems)
    console.print(Text(f"{count} {'problem' if count == 1 else 'problems'}", style="yellow"))
    problems = Table.grid(padding=(0, 1))
    problems.add_column(no_wrap=True)
    problems.add_column(overflow="fold")
    for problem in report.problems:
        problems.add_row("-", Text(problem))
    console.print(problems)


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    """Yield (name, value) per line of the table; a name is left blank where the line belongs to the one above."""
    from skumatch.doctor import gib

    versions, cpu = report.versions, report.cpu
    yield "skumatch", f"{versions['skumatch']}, Python {versions['python']}, {report.platform}"
    yield "packages", ", ".join(f"{k} {v}" for k, v in versions.items() if k not in ("skumatch", "python"))
    cores = f"{cpu.physical or 'unknown'} physical, {cpu.logical} logical, {cpu.available:g} available"
    yield "processor", f"{cpu.model} ({cores})"
    level = report.torch.get("cpu_capability", "")
    yield "", " ".join([*cpu.features, f"(torch uses {level})" if level else ""]).strip() or "no known features"
    yield "memory", f"{gib(report.memory.available)} available of {gib(report.memory.total)}"
    yield "CUDA", f"torch is built for {report.torch.get('cuda', 'none')}, driver {report.torch.get('driver', 'none')}"
    yield from _devices_and_providers(report)
    detail = f" ({report.hub.detail})" if report.hub.detail else ""
    yield "hub", f"{report.hub.endpoint}: {report.hub.state}{detail}"
    for name, folder in (("cache", report.cache), ("temporary", report.temp)):
        state = f"{gib(folder.free_bytes)} free" if folder.writable else f"not writable: {folder.reason}"
        yield name, f"{folder.path} ({state})"


def _devices_and_providers(report: Report) -> Iterator[tuple[str, str]]:
    """Yield a line per torch device and per execution provider of ONNX Runtime."""
    from skumatch.doctor import gib

    for number, device in enumerate(report.devices):
        about = f" ({device.model}, {gib(device.memory)}, compute {device.capability})" if device.model else ""
        yield "" if number else "torch", f"{device.name}{about}: {'runs' if device.runs else device.reason}"
    for number, provider in enumerate(report.providers):
        state = "runs" if provider.usable else f"not usable, {provider.reason}"
        yield "" if number else "ONNX Runtime", f"{provider.name}: {state}"
