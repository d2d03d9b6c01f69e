"""Targets of fuzz.py beside annotations and images: configurations, weights, run folders, COCO results, ONNX files."""

import contextlib
import io
import json
import math
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from damage import damage_bytes, damage_value

from sparsedet.benchmark.checkpoint import SavedDetector, build_detector, open_checkpoint
from sparsedet.benchmark.compact import write_compact
from sparsedet.benchmark.recipe import Recipe, load_recipe
from sparsedet.benchmark.suite import load_suite
from sparsedet.benchmark.verify import verify_file
from sparsedet.common.checkpoint import FORMAT
from sparsedet.common.config import dump, to_yaml, validate
from sparsedet.common.document import apply_overrides, parse_json, parse_yaml, read_yaml
from sparsedet.detection.data.coco import Category
from sparsedet.detection.evaluation import evaluate, read_results
from sparsedet.export.compact import read_weights
from sparsedet.export.onnx_audit import audit_onnx
from sparsedet.export.onnx_file import write_onnx
from sparsedet.report import render
from sparsedet.sparsity import Sparsifier

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "retina_iou.native.yaml"
UPSTREAM = ROOT / "tests" / "benchmark" / "upstream" / "files"
SMALL = """\
data: {root: data, num_classes: 2}
detector:
  type: retinanet
  backbone: {type: resnet18, width: 16, levels: [3, 4]}
  neck: {channels: 16, num_levels: 2}
  head: {num_convs: 1}
training: {steps: 4, batch_size: 2}
sparsity:
  schedule: {type: level_wise, levels: [0.3, 0.6]}
"""
CATEGORIES = (Category(id=3, name="bright"), Category(id=7, name="dark"))
ODD_LINES = (
    "a: &a [*a]", "x: *x", "<<: *x", "<<: {a: 1}", "? [a, b]", "!!python/object/apply:os.system ['false']", "a: !x 1",
    "[" * 600, "\t", "---", "%YAML 3.0", "base: config.yaml", "base: /dev/zero", "a: 2001-99-99", "a: 1_0:0", "'",
    "seed: 0x" + "f" * 5000, "seed: " + "9" * 5000, "a: &x {<<: *x}",
    'a: "\\ud800\\0\\e"', "data: {root: !!binary aGk=}",
)  # fmt: skip


# --- configurations ----------------------------------------------------------------------------------------


@cache
def sound_configs() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return text and data of recipes, a suite and files of United-Perception."""
    paths = sorted(ROOT.glob("configs/*.yaml"))
    recipes = [apply_overrides(read_yaml(path), ["data.root=data"]).data for path in (*paths, UPSTREAM / NATIVE)]
    base = [str(path) for path in sorted((ROOT / "configs" / "pruning").glob("*.yaml"))[:1]]
    experiments = [{"name": "dense", "recipe": recipes[0]}, {"name": "a", "start": "dense", "recipe": {"base": base}}]
    native = [*recipes, {**recipes[1], "base": base}, {"title": "two", "notes": ["n"], "experiments": experiments}]
    found = [(to_yaml(data), data) for data in native]
    for parts in (["retina_plain.yaml"], ["retina_iou.yaml", "retina_level_wise.tail.yaml"]):
        text = "".join((UPSTREAM / name).read_text() for name in parts)
        found.append((text, parse_yaml(text, "sound", UPSTREAM, (1, 1)).data))
    return tuple(found)


def make_config(random: Random) -> str | bytes:
    """Return the text of a damaged configuration."""
    text, sound = random.choice(sound_configs())
    way = random.random()
    if way < 0.1:
        return damage_bytes(text.encode(), random)
    if way < 0.3:
        lines = text.split("\n")
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(len(lines))
            indent = " " * random.randrange(6)
            lines[place : place + random.randrange(2)] = random.choice(
                ([], lines[place : place + 1] * 2, [indent + random.choice(ODD_LINES)])
            )
        return "\n".join(lines)
    data: Any = deepcopy(sound)
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        data = damage_value(data, random)
    try:
        return json.dumps(data).replace("-Infinity", "-.inf").replace("Infinity", ".inf").replace("NaN", ".nan")
    except (RecursionError, ValueError):
        return "a: " + "[" * 5000


def read_config_text(text: str | bytes, folder: Path) -> None:
    """Load a suite or recipe; what is accepted must be the same after it is written and read again."""
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    suite = load_suite(path)
    for entry, loaded in zip(suite.config.experiments, suite.recipes, strict=True):
        assert (folder / entry.name).resolve().parent == folder.resolve()
        assert validate(Recipe, parse_json(json.dumps(dump(loaded.recipe)), "again")) == loaded.recipe
        if len(text) % 8 == 0:  # slower
            again = folder / "again.yaml"
            again.write_text(to_yaml(dump(loaded.recipe)), encoding="utf-8")
            assert validate(Recipe, read_yaml(again)) == loaded.recipe


# --- weights -----------------------------------------------------------------------------------------------


@cache
def small_recipe() -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.yaml"
        path.write_text(SMALL)
        return load_recipe(path).recipe


@cache
def sound_content() -> dict[str, Any]:
    """Return the content of the checkpoint of a small pruned detector."""
    recipe = small_recipe()
    torch.manual_seed(0)
    model = recipe.detector.build(len(CATEGORIES))
    sparsifier = Sparsifier(model, recipe.sparsity)
    sparsifier.prune_(0)
    return {
        "format": FORMAT,
        "format_version": 1,
        "experiment": "small",
        "recipe": json.dumps(dump(recipe)),
        "categories": [[category.id, category.name] for category in CATEGORIES],
        "level": 0,
        "step": 2,
        "metrics": {"ap": 0.5},
        "model": model.state_dict(),
        "sparsifier": sparsifier.state_dict(),
        "trainer": {},
    }


def copied(value: Any) -> Any:
    """Return a copy of the containers in `value`; tensors are shared."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value


def damage_content(content: dict[str, Any], random: Random) -> Any:
    """Return content of a checkpoint with a tensor, or something else in it, damaged."""
    if random.random() < 0.4:
        holder = content["model"] if random.random() < 0.6 else content["sparsifier"]["masks"]
        if isinstance(holder, dict) and holder:
            key = random.choice(list(holder))
            holder[key] = damage_tensor(holder[key], random)
        return content
    if random.random() < 0.4 and isinstance(content["recipe"], str):
        with contextlib.suppress(RecursionError, ValueError):
            content["recipe"] = json.dumps(damage_value(json.loads(content["recipe"]), random))
        return content
    return damage_value(content, random)


def damage_tensor(tensor: Any, random: Random) -> Any:
    """Return another tensor, or none."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.complex64,
              torch.float8_e4m3fn, torch.uint16)  # fmt: skip
    match random.randrange(9):
        case 0 | 1:
            return tensor.to(random.choice(dtypes))
        case 2:
            return tensor.reshape(-1)
        case 3:
            return tensor.reshape(-1)[:1]
        case 4:
            changed = tensor.clone().reshape(-1)
            if changed.numel() and tensor.is_floating_point():
                changed[random.randrange(changed.numel())] = random.choice((math.nan, math.inf, -0.0, 1.0))
            return changed.reshape(tensor.shape)
        case 5:
            return torch.zeros((), dtype=tensor.dtype).expand(random.choice(((2**20, 2**20), tensor.shape, (0, 2**40))))
        case 6:
            return tensor.to_sparse() if tensor.dtype != torch.bool else tensor.to("meta")
        case 7:
            return torch.nn.Parameter(tensor.clone()) if tensor.is_floating_point() else tensor.unsqueeze(0)
    return random.choice((None, 1.0, "x", [1.0], {}, torch.zeros(0)))


def make_checkpoint(random: Random) -> bytes:
    """Return a damaged checkpoint, of sparsedet or as other programs write them."""
    content: Any = copied(sound_content())
    if random.random() < 0.2:
        content = {"model": content["model"], "sparsifier": content["sparsifier"], "recipe": None}
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        if isinstance(content, dict) and {"model", "sparsifier", "recipe"} <= content.keys():
            with contextlib.suppress(TypeError, KeyError):
                content = damage_content(content, random)
    stream = io.BytesIO()
    try:
        torch.save(content, stream)
    except (RecursionError, RuntimeError, pickle.PicklingError):
        return b""
    way = random.random()
    if way < 0.1:
        return damage_bytes(stream.getvalue(), random)
    return damage_archive(stream, random) if way < 0.35 else stream.getvalue()


def damage_archive(stream: io.BytesIO, random: Random) -> bytes:
    """Return an archive with entries damaged, left out, doubled or compressed, whose sums are right."""
    compression = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    changed = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(changed, "w", compression) as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl") or random.random() < 0.02:
                content = damage_bytes(content, random)
            if random.random() < 0.99:
                target.writestr(name, content)
    return changed.getvalue()


def read_checkpoint(content: bytes, folder: Path) -> None:
    """Open and verify a checkpoint, and start a run from it."""
    path = folder / "checkpoint.pt"
    path.write_bytes(content)
    recipe = small_recipe().model_copy(update={"initial_checkpoint": path, "max_missing": 1.0})
    if content[-1:] < b"\x40":  # either is enough for one input
        check_finite(build_detector(recipe, CATEGORIES)[0])
    else:
        check_saved(open_checkpoint(path))
        verify_file(path)


def check_saved(saved: SavedDetector) -> None:
    check_finite(saved.model)
    parameters = dict(saved.model.named_parameters())
    for name, mask in saved.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape
    assert saved.level >= 0
    assert all(math.isfinite(value) for value in saved.metrics.values())


def check_finite(model: torch.nn.Module) -> None:
    assert all(value.isfinite().all() for value in model.state_dict().values())


@cache
def sound_compact() -> tuple[bytes, ...]:
    """Return compact files, plain and compressed, and what damage to a header is easy to make in."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        for fp16, zstd in ((False, False), (True, False), (False, True)):
            write_compact(path, sound_content(), 0.3, fp16, zstd)
            files.append(path.read_bytes())
    return tuple(files)


def make_compact(random: Random) -> bytes:
    """Return a damaged compact file."""
    content = random.choice(sound_compact())
    if random.random() < 0.25:
        return damage_bytes(content, random)
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header["__metadata__"]
    try:
        for _ in range(random.choice((0, 1, 1, 2))):
            if random.random() < 0.7 and isinstance(metadata.get("sparsedet"), str):
                ours = json.loads(metadata["sparsedet"])
                part = random.choice(("encodings", "encodings", "info", "info", None))
                if isinstance(ours, dict) and part in ours:
                    ours[part] = damage_value(ours[part], random)
                else:
                    ours = damage_value(ours, random)
                metadata["sparsedet"] = json.dumps(ours)
            else:
                header = damage_value(header, random)
                break
        text = json.dumps(header).encode()
    except (RecursionError, ValueError):
        text = b"[" * 100_000
    if random.random() < 0.2:
        rest = damage_bytes(rest, random)
    return len(text).to_bytes(8, "little") + text + rest


def read_compact(content: bytes, folder: Path) -> None:
    """Read a compact file as tensors, then as a detector."""
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    file = read_weights(path)
    assert sum(value.numel() for value in file.state.values()) < 10**8
    saved = open_checkpoint(path)
    check_saved(saved)
    for name, mask in saved.masks.items():
        assert torch.equal(mask, file.state[name] != 0)


# --- what runs leave ---------------------------------------------------------------------------------------


def sound_run() -> dict[str, Any]:
    """Return the files of a small run folder by name; records are the lines of one."""
    record = {
        "experiment": "lamp", "family": "f", "label": "l", "scheduler": "level_wise", "pattern": "unstructured",
        "level": 0, "num_levels": 2, "target_sparsity": 0.3, "allocated_sparsity": 0.3, "measured_sparsity": 0.3,
        "macs_kept": 0.6, "num_macs": 2000, "num_parameters": 1000, "num_nonzero": 700, "ap_interval": [0.5, 0.7],
        "metrics": {"ap": 0.6, "ap50": 0.9}, "loss": 0.25, "steps": 32, "seconds": 4.5, "seed": 0,
        "published_ap": 0.6, "initial_weights": "from scratch", "environment": {"torch": "2.9"},
        "config_hash": "c0ffee", "data_hash": "da7a", "folder": "sparsity-0.3",
    }  # fmt: skip
    dense = record | {"experiment": "dense", "scheduler": "dense", "pattern": "none", "level": None, "folder": "dense"}
    dense |= {"target_sparsity": None, "num_levels": 1}
    entries = [
        {"name": "dense", "family": "f", "label": "l", "scheduler": "dense", "pattern": "none"},
        {"name": "lamp", "family": "f", "label": "l", "start": "dense", "sparsities": [0.3, 0.6]},
    ]
    boxes = [{"image_id": 7, "category_id": 4, "bbox": [3.0, 3.0, 6.0, 4.0], "score": 0.9}]
    image = {"image_id": 7, "file": "samples/7.png", "boxes": boxes}
    return {
        "suite.json": {"title": "t", "notes": ["n"], "experiments": entries},
        "dense/records.jsonl": [dense],
        "lamp/records.jsonl": [record],
        "lamp/samples.json": {"images": [image], "categories": [{"id": 4, "name": "four"}]},
        "lamp/sparsity-0.3/detections.json": boxes,
        "lamp/sparsity-0.3/layers.json": [{"name": "a.b", "sparsity": 0.3}, {"name": "c", "sparsity": 0.1}],
    }


def make_run(random: Random) -> tuple[dict[str, bytes], str]:
    """Return the files of a run folder, one or two of them damaged, and the format of report to make."""
    texts = {}
    files = sound_run()
    damaged = random.choices(list(files), k=random.randrange(1, 3))
    for name, data in files.items():
        try:
            value = damage_value(data, random) if name in damaged else data
            lines = value if name.endswith("jsonl") and isinstance(value, list) else [value]
            texts[name] = "".join(json.dumps(line) + "\n" for line in lines).encode()
        except (RecursionError, ValueError):
            texts[name] = b"[" * 100_000
        if name in damaged and random.random() < 0.1:
            texts[name] = damage_bytes(texts[name], random)
    return texts, random.choice(("rst", "md", "csv", "rst", "md", "csv", "html"))


def read_run(run: tuple[dict[str, bytes], str], folder: Path) -> None:
    """Make a report of a run folder."""
    texts, format_name = run
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    if not (folder / "lamp/samples").exists():
        from PIL import Image

        (folder / "lamp/samples").mkdir()
        Image.new("RGB", (16, 12)).save(folder / "lamp/samples/7.png")
    render(folder, format_name).encode()


TRUTH = {
    "images": [{"id": 1, "width": 64, "height": 48}, {"id": 2, "width": 64, "height": 48}],
    "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1.0, 2.0, 20.0, 10.0], "area": 200.0, "iscrowd": 0}
    ],
}


def make_results(random: Random) -> bytes:
    """Return a damaged file of COCO results."""
    box = [1.0, 2.0, 20.0, 10.0]
    data: Any = [
        {"image_id": image, "category_id": 3, "bbox": list(box), "score": 0.5 / image} for image in (1, 2) for _ in "ab"
    ]
    for _ in range(random.choice((1, 1, 2, 3))):
        data = damage_value(data, random)
    try:
        content = json.dumps(data).encode()
    except (RecursionError, ValueError):
        content = b"[" * 100_000
    return damage_bytes(content, random) if random.random() < 0.1 else content


def read_results_bytes(content: bytes, folder: Path) -> None:
    """Evaluate results; every evaluator must give the same numbers."""
    path = folder / "results.json"
    path.write_bytes(content)
    results = read_results(path)
    ours, theirs = (evaluate(TRUTH, results, evaluator) for evaluator in ("hotcoco", "pycocotools"))
    assert all(math.isclose(ours[name], theirs[name], abs_tol=1e-9) for name in ours), (ours, theirs)


# --- ONNX --------------------------------------------------------------------------------------------------


@cache
def sound_onnx() -> bytes:
    """Return a small graph with convolutions, a linear layer, constants and a branch."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((random.random(shape) * (random.random(shape) > 0.5)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=1, strides=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"]),
        helper.make_node("ConvTranspose", ["n", "t"], ["u"], group=2),
        helper.make_node("Flatten", ["u"], ["f"]),
        helper.make_node("Constant", [], ["k"], value=constant("k", 5, 8)),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "kt"], ["m"]),
        helper.make_node("Gemm", ["m", "g"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [constant("w", 4, 3, 1, 1), constant("s", 4), constant("t", 4, 1, 1, 1), constant("g", 6, 5)],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(path, helper.make_model(graph))
        return path.read_bytes()


def make_onnx(random: Random) -> bytes:
    """Return a damaged ONNX file; most damages are single numbers."""
    content = bytearray(sound_onnx())
    if random.random() < 0.1:
        return damage_bytes(bytes(content), random)
    for _ in range(random.choice((1, 1, 2))):
        content[random.randrange(len(content))] = random.choice((0, 1, 2, 3, 8, 127, 255, random.randrange(256)))
    return bytes(content)


def read_onnx_bytes(content: bytes, folder: Path) -> None:
    """Audit an ONNX file; counts must fit the shapes."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    for tensor in audit_onnx(path).tensors:
        assert 0 <= tensor.num_zeros <= tensor.numel == math.prod(tensor.shape)


FILE_TARGETS: dict[str, tuple[Callable[[Random], Any], Callable[[Any, Path], None]]] = {
    "config": (make_config, read_config_text),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "compact": (make_compact, read_compact),
    "records": (make_run, read_run),
    "results": (make_results, read_results_bytes),
    "onnx": (make_onnx, read_onnx_bytes),
}
