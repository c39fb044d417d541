"""The doctor: machine facts under container limits, devices and providers that really run, hub, folders, advice."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from skumatch.doctor import (
    Device,
    Hub,
    Report,
    check_hub,
    examine,
    examine_torch,
    find_problems,
    public_url,
    read_versions,
)
from skumatch.errors import DeviceError
from skumatch.machine import (
    Cpu,
    Folder,
    Memory,
    allowed_cores,
    cpu_quota,
    limit_threads,
    read_cpu,
    read_memory,
    try_folder,
    usable_cores,
)
from skumatch.runtime.providers import CPU, TINY_MODEL, Provider, available_providers, open_session, probe_providers

GIB = 1024**3
CPUINFO = """processor : {n}
model name : Some Xeon
physical id : 0
core id : {core}
flags : fpu avx2 avx512f avx512_vnni amx_int8

"""


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write a /proc and /sys as a container would see them."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def healthy() -> Report:
    folder = Folder("/cache", True, 100 * GIB)
    return Report(
        platform="Linux",
        versions={"skumatch": "1", "torch": "2.15", "onnxruntime": "1.31 (onnxruntime)"},
        cpu=Cpu("x", 2, 4, 4.0, ("avx2",)),
        memory=Memory(16 * GIB, 8 * GIB),
        torch={"cpu_capability": "AVX2", "cuda": "13.0", "driver": "none", "note": ""},
        devices=(Device("cpu", True),),
        providers=(Provider("CUDAExecutionProvider", False, "libcuda.so.1 is missing"), Provider(CPU, True)),
        hub=Hub("https://hub", "reachable"),
        cache=folder,
        temp=folder,
    )


@contextmanager
def server(status: int) -> Iterator[str]:
    """Serve HEAD requests with one status; yields the address."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_cpu_is_read_from_cpuinfo(tmp_path: Path) -> None:
    blocks = [CPUINFO.format(n=n, core=n // 2) for n in range(4)]  # two cores with two threads each
    cpu = read_cpu(tree(tmp_path, {"proc/cpuinfo": "".join(blocks)}))
    assert (cpu.model, cpu.physical) == ("Some Xeon", 2)
    assert cpu.features == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert cpu.logical == os.cpu_count()


def test_cpu_without_proc_is_unknown_not_an_error(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path)
    assert (cpu.physical, cpu.features) == (None, ())
    assert cpu.available >= 1


def test_cpu_quota_is_the_tightest_of_all_parents_v2(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/box\n",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
        "sys/fs/cgroup/pod/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/cpu.max": "300000 100000\n",
    }
    root = tree(tmp_path, files)
    assert cpu_quota(root) == 0.5
    assert read_cpu(root).available == 0.5


@pytest.mark.parametrize(("quota", "cores"), [("150000", 1.5), ("-1", None)])
def test_cpu_quota_v1(tmp_path: Path, quota: str, cores: float | None) -> None:
    files = {
        "proc/self/cgroup": "2:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(tree(tmp_path, files)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("150000", 1), ("max", allowed_cores())])
def test_threads_are_those_that_the_quota_lets_run_at_once(quota: str, cores: int, tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"})
    assert usable_cores(root) == cores
    given: dict[str, str] = {}
    limit_threads(root, given)
    assert given == ({"OMP_NUM_THREADS": str(cores)} if cores < allowed_cores() else {})
    set_before = {"OMP_NUM_THREADS": "7"}
    limit_threads(root, set_before)
    assert set_before == {"OMP_NUM_THREADS": "7"}


def test_memory_respects_a_v2_limit_and_counts_page_cache_as_free(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {64 * 1024**2} kB\nMemAvailable: {60 * 1024**2} kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": str(4 * GIB),
        "sys/fs/cgroup/memory.current": str(3 * GIB),
        "sys/fs/cgroup/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
    }
    assert read_memory(tree(tmp_path, files)) == Memory(4 * GIB, 3 * GIB)


def test_memory_v1_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {64 * 1024**2} kB\nMemAvailable: {60 * 1024**2} kB\n",
        "proc/self/cgroup": "4:memory:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert read_memory(tree(tmp_path, files)) == Memory(64 * GIB, 60 * GIB)


def test_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    made = try_folder(tmp_path)
    later = try_folder(tmp_path / "not" / "made" / "yet")
    assert made.writable and later.writable
    assert made.free_bytes is not None and made.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    found = try_folder(tmp_path / "file" / "hub")
    assert not found.writable
    assert found.reason


def test_versions_name_what_is_installed() -> None:
    versions = read_versions()
    assert versions["numpy"] == np.__version__
    assert versions["faiss"].endswith(("(faiss-gpu)", "(faiss-cpu)"))


def test_torch_multiplies_on_the_cpu() -> None:
    facts, devices = examine_torch()
    assert devices[0] == Device("cpu", True)
    assert facts["cpu_capability"]


def test_tiny_model_is_what_onnx_builds() -> None:
    from onnx import TensorProto, checker, helper, load_model_from_string

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubles", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="")
    assert load_model_from_string(TINY_MODEL) == model
    checker.check_model(model)


def test_providers_are_believed_only_after_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    found = probe_providers()
    assert [provider.name for provider in found] == available_providers()
    assert Provider(CPU, True) in found
    for provider in found:
        assert provider.usable == (provider.reason == "")
        if not provider.usable:
            with pytest.raises(DeviceError):
                open_session(TINY_MODEL, provider.name)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.gpu
def test_cuda_provider_runs_on_a_gpu() -> None:
    assert Provider("CUDAExecutionProvider", True) in probe_providers()


def test_session_computes_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(TINY_MODEL)
    for model in (TINY_MODEL, tmp_path / "tiny.onnx"):
        session = open_session(model, CPU, threads=1)
        (y,) = session.run(None, {"x": np.array([1, 2, 3, 4], dtype=np.float32)})
        assert y.tolist() == [2, 4, 6, 8]


def test_a_session_that_cannot_be_had_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="without NoSuchProvider"):
        open_session(TINY_MODEL, "NoSuchProvider")
    with pytest.raises(DeviceError):
        open_session(b"not a model", CPU)


@pytest.mark.parametrize(("status", "state"), [(200, "reachable"), (404, "reachable"), (503, "unreachable")])
def test_hub_answers(status: int, state: str) -> None:
    with server(status) as address:
        hub = check_hub(address)
    assert (hub.endpoint, hub.state, hub.detail) == (address, state, f"HTTP {status}")


def test_hub_refused_or_silent_is_unreachable_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert check_hub(address, timeout=0.2).state == "unreachable"
        assert check_hub(address, timeout=30, limit=0.2).detail == "no answer within 0.2 s"
        assert time.monotonic() - start < 3
    refused = check_hub(address)
    assert (refused.state, refused.detail) == ("unreachable", "Connection refused")


def test_hub_address_must_be_http(tmp_path: Path) -> None:
    assert check_hub(tmp_path.as_uri()).detail == "HF_ENDPOINT is not an http(s) address"


def test_report_holds_no_password() -> None:
    assert public_url("https://user:secret@mirror:8443/hub?token=1") == "https://mirror:8443/hub"


def test_a_healthy_machine_has_no_problems() -> None:
    assert find_problems(healthy()) == []


def test_each_hindrance_is_a_problem_with_advice() -> None:
    good = healthy()
    gpu = Device("cuda:0", True, model="H200", memory=140 * GIB, capability="9.0")
    small = Folder("/cache", True, GIB // 2)
    cases = {
        "torch is missing": replace(good, versions={"torch": "missing"}),
        "two builds of onnxruntime": replace(good, versions={"onnxruntime": "1 (onnxruntime-gpu) and 1 (onnxruntime)"}),
        "torch cannot compute on cpu: no": replace(good, devices=(Device("cpu", False, "no"),)),
        "an NVIDIA driver is here (too old)": replace(good, torch={**good.torch, "driver": "470", "note": "too old"}),
        "cannot use CUDAExecutionProvider": replace(good, devices=(*good.devices, gpu)),
        f"cannot use {CPU}: broken": replace(good, providers=(Provider(CPU, False, "broken"),)),
        "of memory are free": replace(good, memory=Memory(GIB, GIB)),
        "https://hub cannot be reached (HTTP 503)": replace(good, hub=Hub("https://hub", "unreachable", "HTTP 503")),
        "set HF_HOME to one that can": replace(good, cache=Folder("/cache", False, None, "Permission denied")),
        "has only 0.5 GiB free - make room or set TMPDIR": replace(good, temp=small),
    }
    for words, report in cases.items():
        (problem,) = find_problems(report)
        assert words in problem
        assert " - " in problem


def test_hub_left_out_by_choice_is_no_problem() -> None:
    for state in ("offline by setting", "not checked"):
        assert find_problems(replace(healthy(), hub=Hub("https://hub", state))) == []


def test_examine_offline_reports_this_machine() -> None:
    report = examine(offline=True)
    assert report.torch_runs
    assert report.hub.state in ("not checked", "offline by setting")
    document = report.to_json()
    assert document["devices"][0]["name"] == "cpu"
    assert document["torch_runs"] is True
    assert set(document["versions"]) > {"skumatch", "python", "torch"}
