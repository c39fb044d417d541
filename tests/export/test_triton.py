"""The repository for Triton: a configuration that Triton's own definition reads, versions, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from skumatch.encoder import Encoder
from skumatch.errors import ArtefactError, ConfigError, ModelError
from skumatch.export.tensorrt import beside
from skumatch.export.triton import CONFIG, DIGEST, SPEC, Serving, write_repository
from skumatch.runtime.guard import Guard
from skumatch.runtime.passport import KEY, Passport
from skumatch.runtime.providers import TINY_MODEL
from skumatch.spec import Spec


def model(spec: Spec, guard: Guard | None = None) -> bytes:
    """Return an ONNX model of one node that says it is an encoder of ``spec``."""
    found = onnx.load_from_string(TINY_MODEL)
    onnx.helper.set_model_props(found, {KEY: Passport(spec, guard, {}).to_json()})
    return bytes(found.SerializeToString())


def some_guard(width: int) -> Guard:
    return Guard(torch.nn.functional.normalize(torch.ones(2, width), dim=1), 0.1, 0.2)


def read(config: Path) -> Any:
    """Return ``config`` as Triton's protobuf definition reads it; what it does not know is an error."""
    from google.protobuf import text_format

    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    # by its path: the package itself asks for the whole of gRPC
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", path)
    if spec is None or spec.loader is None:
        pytest.fail(f"{path} is no module")
    definition = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definition)
    return text_format.Parse(config.read_text(), definition.ModelConfig())


def engine(folder: Path, digest: str, most: int) -> Path:
    """Write what stands for an engine, with what skumatch writes beside one."""
    path = folder / "model.engine"
    path.write_bytes(b"engine")
    facts = {"format": 1, "model": digest, "precision": "fp16", "profile": {"usual": 4, "most": most}}
    document = {"facts": facts, "engine": hashlib.sha256(b"engine").hexdigest(), "passport": {}}
    beside(path).write_text(json.dumps(document))
    return path


def test_triton_reads_the_configuration(encoder: Encoder, tmp_path: Path) -> None:
    data = model(encoder.spec)
    made = write_repository(tmp_path / "models", "sku-encoder.v1", data, serving=Serving(16, (4, 16), 500, "gpu", 2))
    home = tmp_path / "models" / "sku-encoder.v1"
    assert made == home / "1" and (made / "model.onnx").read_bytes() == data
    assert sorted(path.name for path in home.iterdir()) == ["1", CONFIG]
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    config = read(home / CONFIG)
    assert (config.name, config.platform, config.max_batch_size) == ("sku-encoder.v1", "onnxruntime_onnx", 16)
    (taken,), (given,) = config.input, config.output
    assert (taken.name, list(taken.dims)) == ("images", [3, 64, 64]) and "TYPE_UINT8" in str(taken)
    assert (given.name, list(given.dims)) == ("embeddings", [32]) and "TYPE_FP32" in str(given)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    (group,) = config.instance_group
    assert group.count == 2 and "KIND_GPU" in str(group) and config.version_policy.latest.num_versions == 1
    assert config.parameters[DIGEST].string_value == encoder.spec.digest
    assert Spec.from_json(json.loads(config.parameters[SPEC].string_value)) == encoder.spec


def test_a_guarded_model_has_the_rows_to_ask_with_too(encoder: Encoder, tmp_path: Path) -> None:
    write_repository(tmp_path, "guarded", model(encoder.spec, some_guard(16)))
    config = read(tmp_path / "guarded" / CONFIG)
    assert [(end.name, list(end.dims)) for end in config.output] == [("embeddings", [32]), ("queries", [32])]


@pytest.mark.parametrize(
    ("precision", "device", "kind"), [("fp32", "auto", "AUTO"), ("int8", "auto", "CPU"), ("int8", "gpu", "GPU")]
)
def test_int8_runs_on_the_cpu_unless_told(
    precision: str, device: str, kind: str, encoder: Encoder, tmp_path: Path
) -> None:
    data = model(replace(encoder.spec, precision=precision))
    write_repository(tmp_path, "one", data, serving=Serving(device=device))
    assert f"kind: KIND_{kind} " in (tmp_path / "one" / CONFIG).read_text()
    read(tmp_path / "one" / CONFIG)


def test_the_next_export_is_a_version_and_keeps_what_the_user_changed(encoder: Encoder, tmp_path: Path) -> None:
    write_repository(tmp_path, "skus", model(encoder.spec))
    config = tmp_path / "skus" / CONFIG
    changed = config.read_text().replace("max_batch_size: 64", "max_batch_size: 8  # ours").replace("  {", "\n    {")
    config.write_text(changed.replace(" }", "\n}"))
    tuned = replace(encoder.spec, digest="f" * 64, name='with "quotes" and \\')
    assert write_repository(tmp_path, "skus", model(tuned)) == tmp_path / "skus" / "2"
    assert (tmp_path / "skus" / "1" / "model.onnx").read_bytes() == model(encoder.spec)
    assert (tmp_path / "skus" / "2" / "model.onnx").read_bytes() == model(tuned)
    assert "max_batch_size: 8  # ours" in config.read_text() and encoder.spec.digest not in config.read_text()
    (tmp_path / "skus" / "11").mkdir()
    assert write_repository(tmp_path, "skus", model(tuned)).name == "12"
    found = read(config)
    assert found.max_batch_size == 8 and found.parameters[DIGEST].string_value == "f" * 64
    assert Spec.from_json(json.loads(found.parameters[SPEC].string_value)) == tuned


def test_what_others_wrote_stays_as_it_is(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / CONFIG).write_text('name: "theirs"\nplatform: "onnxruntime_onnx"\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write_repository(tmp_path, "wider", model(replace(encoder.spec, dim=64)))
    write_repository(tmp_path, "guarded", model(encoder.spec, some_guard(16)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("theirs", "empty", "file"):
        with pytest.raises(ConfigError, match=f"{name} was not written by `skumatch export` - choose another name"):
            write_repository(tmp_path, name, model(encoder.spec))
    for name in ("wider", "guarded"):
        with pytest.raises(ConfigError, match=f"{name} holds a model with other inputs, outputs or platform"):
            write_repository(tmp_path, name, model(encoder.spec))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_engine_is_served_within_its_profile(encoder: Encoder, tmp_path: Path) -> None:
    data, home = model(encoder.spec), tmp_path / "models"
    made = write_repository(home, "fast", data, engine(tmp_path, encoder.spec.digest, 12))
    assert [path.name for path in made.iterdir()] == ["model.plan"]
    assert (made / "model.plan").read_bytes() == b"engine"
    config = read(home / "fast" / CONFIG)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 12)
    assert list(config.dynamic_batching.preferred_batch_size) == [8] and "KIND_GPU" in str(config.instance_group[0])
    assert json.loads(config.parameters[SPEC].string_value)["precision"] == "fp16"


def test_an_engine_that_does_not_fit_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    data, home = model(encoder.spec), tmp_path / "models"
    write_repository(home, "fast", data, engine(tmp_path, encoder.spec.digest, 12))
    with pytest.raises(ConfigError, match="holds a model with other inputs, outputs or platform"):
        write_repository(home, "fast", data)
    with pytest.raises(ConfigError, match=r"has batches of 12, the engine 4 - build it for larger ones"):
        write_repository(home, "fast", data, engine(tmp_path, encoder.spec.digest, 4))
    with pytest.raises(ConfigError, match="a TensorRT engine does not run on the CPU"):
        write_repository(home, "slow", data, engine(tmp_path, encoder.spec.digest, 4), Serving(device="cpu"))
    with pytest.raises(ModelError, match=r"model\.engine was built of another model"):
        write_repository(home, "other", data, engine(tmp_path, "f" * 64, 12))
    (tmp_path / "model.engine").write_bytes(b"engima")
    with pytest.raises(ArtefactError, match=r"model\.engine is not the engine that .*model\.engine\.json speaks of"):
        write_repository(home, "other", data, tmp_path / "model.engine")
    with pytest.raises(ArtefactError, match=r"absent\.engine is no engine of"):
        write_repository(home, "other", data, tmp_path / "absent.engine")
    assert [path.name for path in home.iterdir()] == ["fast"]


def test_bad_names_and_settings_are_one_line(encoder: Encoder, tmp_path: Path) -> None:
    for name in ("", "a/b", "..", ".hidden", "with space"):
        with pytest.raises(ConfigError, match=re.escape(f"Triton cannot name a model '{name}'")):
            write_repository(tmp_path, name, model(encoder.spec))
    with pytest.raises(ModelError, match="this model was not written by `skumatch export`"):
        write_repository(tmp_path, "one", TINY_MODEL)
    for values, words in (
        ({"most": 0, "preferred": ()}, "at least 1"),
        ({"instances": 0}, "at least 1"),
        ({"delay": -1}, "delays at least 0"),
        ({"most": 16}, "no batch of 32 fits into 16"),
        ({"device": "tpu"}, "Triton has no device 'tpu' - choose auto, cpu, gpu"),
    ):
        with pytest.raises(ConfigError, match=words):
            Serving(**values)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_repository_as_it_was(encoder: Encoder, tiny_disk: Path) -> None:
    small = model(encoder.spec)
    write_repository(tiny_disk, "skus", small)
    before = {path: path.read_bytes() for path in tiny_disk.rglob("*") if path.is_file()}
    large = onnx.load_from_string(small)
    large.doc_string = "x" * 2**20
    for name in ("skus", "others"):
        with pytest.raises(ArtefactError, match="no space left"):
            write_repository(tiny_disk, name, large.SerializeToString())
    assert {path: path.read_bytes() for path in tiny_disk.rglob("*") if path.is_file()} == before
    assert [path.name for path in tiny_disk.iterdir()] == ["skus"]
