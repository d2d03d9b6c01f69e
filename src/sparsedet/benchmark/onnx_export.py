"""From a checkpoint to an ONNX file, checked, and a JSON file beside it that says what is in it."""

import hashlib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedet.benchmark.analysis import example_inputs
from sparsedet.benchmark.checkpoint import SavedDetector, open_checkpoint
from sparsedet.benchmark.console import Console
from sparsedet.benchmark.onnx_compare import check_images, compare
from sparsedet.benchmark.onnx_modules import onnx_module
from sparsedet.common.config import dump
from sparsedet.common.errors import ConfigError
from sparsedet.common.files import require_new, write_json
from sparsedet.detection.data.splits import Splits, open_splits
from sparsedet.export.counting import count_tensor
from sparsedet.export.onnx_audit import OnnxAudit, audit_graph
from sparsedet.export.onnx_export import OPSET, export_onnx
from sparsedet.export.onnx_file import SUFFIX, read_onnx, require_onnx
from sparsedet.export.onnx_nms import nms_translations
from sparsedet.sparsity import measure, profile_model
from sparsedet.sparsity.weights import find_weights

FORMAT = "sparsedet-onnx"
FORMAT_VERSION = 1
DIMS = {"images": {0: "batch", 2: "height", 3: "width"}, "image_sizes": {0: "batch"}}
TRACED_STRIDES = 8, 10  # the graph is traced with images of so many strides; any other size works
PACKAGES = ("sparsedet", "torch", "torchvision", "onnx", "onnxscript", "onnxslim", "onnxruntime")


@dataclass(frozen=True)
class OnnxOptions:
    """How a detector is exported.

    Attributes:
        post_processing: end with boxes, scores and labels instead of raw outputs.
        fp16: store and compute in float16; box arithmetic, NMS, inputs and outputs stay float32.
        slim: let onnxslim remove what is not needed.
        keep_batch_norm: do not fold batch norms.
        input_shape: (B, 3, H, W) on which MACs are counted; None: as the recipe says, or of a validation image.
    """

    post_processing: bool = False
    fp16: bool = False
    slim: bool = True
    keep_batch_norm: bool = False
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: the ONNX file; the JSON file beside it holds `about`.
        about: plain data about it.
        faults: what is not as it should be; empty when all holds.
    """

    path: Path
    about: dict[str, Any]
    faults: tuple[str, ...]

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that say the result."""
        about, check = self.about, self.about["check"]
        sparsity, macs = about["sparsity"], about["macs"]
        measured = [f"{words} {check[key]:.3g}" for key, words in MEASURED.items() if check[key] is not None]
        if check["relative_difference"]:
            measured.append(f"largest relative difference {max(check['relative_difference'].values()):.2g}")
        extra = sum(weight["num_extra_zeros"] for weight in about["weights"])
        dead = sum(weight["num_extra_dead_channels"] for weight in about["weights"])
        verdict = [f"fault: {fault}" for fault in self.faults]
        return (
            f"written: {self.path} ({about['num_bytes'] / 1e6:.1f} MB) and {sidecar_path(self.path)}",
            f"zeros: {sparsity['all']:.4%} of all conv/linear weights in the model; {macs['kept']:.1%} of "
            f"{macs['dense'] / 1e9:.3g} GMACs are not with a zero",
            f"audit: {len(about['weights'])} weights, {about['num_tensors']} tensors in the file, "
            f"{extra} zeros and {dead} dead output channels more than in the model",
            f"compared with PyTorch on {check['images']}: {', '.join(measured)}",
            *(verdict or ["verified: all zeros of the model are in the file"]),
        )


MEASURED = {
    "num_boxes": "boxes",
    "unmatched": "share without partner",
    "box_difference_px": "largest box difference in pixels",
    "score_difference": "largest score difference",
}


def sidecar_path(path: Path) -> Path:
    """Return the JSON file that belongs to the ONNX file `path`."""
    return path.with_suffix(".json")


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    options: OnnxOptions = OnnxOptions(),
    overrides: tuple[str, ...] = (),
    force: bool = False,
) -> OnnxExport:
    """Write the detector of a checkpoint as ONNX, look for all its zeros in the file, and compare what both find.

    Args:
        checkpoint: of a run folder.
        output: file to write, ending in .onnx.
        options: how it is exported.
        overrides: ``key=value`` laid on the recipe, such as another ``data.root``.
        force: overwrite existing files.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: an argument is wrong, or the detector does not fit into one file.
        MissingExtraError: a package of the extra ``onnx`` is not installed.
        StorageError: a file exists already, or cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxslim", "onnxruntime"):
        require_onnx(package)
    _check_output(output, force)
    saved = open_checkpoint(checkpoint, overrides)
    module = onnx_module(saved.model, options.post_processing).eval()
    height, width = (count * saved.model.stride for count in TRACED_STRIDES)
    traced = {"images": torch.zeros(2, 3, height, width), "image_sizes": torch.tensor([[height, width]] * 2)}
    export_onnx(
        module,
        tuple(traced[name] for name in module.input_names),
        output,
        input_names=module.input_names,
        output_names=module.output_names,
        dynamic_dims=[DIMS[name] for name in module.input_names],
        fp16=options.fp16,
        slim=options.slim,
        keep_batch_norm=options.keep_batch_norm,
        translations=nms_translations(),
    )
    graph = read_onnx(output).graph
    audit = audit_graph(output, graph, expected_weights(saved))
    splits = _open_splits(saved)
    inputs = example_inputs(saved.recipe, splits, saved.model.stride, torch.device("cpu"))
    shape = options.input_shape or tuple(inputs[0].shape)
    images = check_images(splits, saved.model.stride, shape)
    comparison = compare(module, output, images, options.fp16)
    faults = (*audit.faults, *([comparison.fault] if comparison.fault else []))
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **_about_file(output, graph, options),
        **_about_source(saved, checkpoint),
        **_about_use(saved),
        **_about_zeros(saved, audit, shape),
        "check": comparison.as_dict(),
        "faults": list(faults),
    }
    write_json(sidecar_path(output), about)
    return OnnxExport(output, about, faults)


def expected_weights(saved: SavedDetector) -> dict[str, Tensor]:
    """Return what an ONNX file of a detector must hold, for `audit_onnx`: its weights with its masks on."""
    weights = {weight.name: weight.tensor.detach() for weight in find_weights(saved.model)}
    return {**weights, **{name: weights[name].where(mask, 0.0) for name, mask in saved.masks.items()}}


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != SUFFIX:
        raise ConfigError(f"output: expected a file name that ends in {SUFFIX}, got '{output}'. Correct it.")
    for path in (output, sidecar_path(output)):
        require_new(path, force)


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape that ``B,3,H,W`` says.

    Raises:
        ConfigError: it is not of this form.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts) or int(parts[1]) != 3:
        raise ConfigError(f"--input-shape: expected B,3,H,W, got '{text}'. Write for example 1,3,480,640.")
    return tuple(map(int, parts))


def _open_splits(saved: SavedDetector) -> Splits | None:
    data = saved.recipe.data
    has_annotations = all((data.root / split.annotations).exists() for split in (data.train, data.val))
    if not has_annotations:
        return None
    splits = open_splits(data, saved.recipe.seed)
    for warning in splits.warnings:
        Console().warn(warning)
    return splits


def _about_source(saved: SavedDetector, checkpoint: Path) -> dict[str, Any]:
    detector = dump(saved.recipe.detector)
    del detector["backbone"]["weights"]  # where it was trained from; may be a path
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": _sha256(checkpoint),
        "level": saved.level,
        "step": saved.step,
        "metrics": saved.metrics,
        "detector": detector,
    }


def _about_file(output: Path, graph: Any, options: OnnxOptions) -> dict[str, Any]:
    return {
        "file": output.name,
        "file_sha256": _sha256(output),
        "num_bytes": output.stat().st_size,
        "opset": OPSET,
        "number_format": "fp16" if options.fp16 else "fp32",
        "has_post_processing": options.post_processing,
        "has_batch_norms": options.keep_batch_norm,
        "inputs": [_about_value(value) for value in graph.input],
        "outputs": [_about_value(value) for value in graph.output],
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def _about_value(value: Any) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    return {"name": value.name, "shape": [dim.dim_param or dim.dim_value for dim in dims]}


def _about_zeros(saved: SavedDetector, audit: OnnxAudit, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what is zero in the model and where its weights are in the file; ``n_m`` is about 2:4."""
    profile = profile_model(saved.model, (torch.zeros(shape),), saved.model.run_all)
    measured = measure(saved.model, chosen=saved.masks, profile=profile)
    tensors = {weight.name: weight.tensor.detach() for weight in find_weights(saved.model)}
    found = {weight.name: weight for weight in audit.weights}
    rows = []
    for layer in measured.layers:
        count = count_tensor(layer.name, tensors[layer.name])
        rows.append(
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "is_pruned": layer.chosen,
                "num_weights": layer.numel,
                "num_zeros": layer.num_zeros,
                "sparsity": layer.sparsity,
                "num_macs": layer.macs,
                "macs_kept": layer.macs_kept,
                "n_m_violations": count.n_m_violations,
                "num_dead_channels": count.num_dead_channels,
                "tensors": list(found[layer.name].copies),
                "num_lost_zeros": found[layer.name].num_lost,
                "num_extra_zeros": found[layer.name].num_extra,
                "num_extra_dead_channels": found[layer.name].num_dead,
            }
        )
    pruned = [row for row in rows if row["is_pruned"]]
    return {
        "sparsity": {
            "all": measured.measured_sparsity,
            "chosen": measured.measured_sparsity_chosen if saved.masks else None,
            "pattern": saved.recipe.pattern if saved.masks else "none",
        },
        "n_m": {
            "label": "2:4",
            "is_valid": bool(pruned) and all(row["n_m_violations"] == 0 for row in pruned),
            "num_valid_weights": sum(row["n_m_violations"] == 0 for row in rows),
        },
        "macs": {"input_shape": list(shape), "dense": measured.num_macs, "kept": measured.macs_kept},
        "num_tensors": len(audit.tensors),
        "weights": rows,
    }


def _about_use(saved: SavedDetector) -> dict[str, Any]:
    data, detector = saved.recipe.data, saved.recipe.detector
    return {
        "classes": [{"label": label, **asdict(category)} for label, category in enumerate(saved.categories)],
        "preprocessing": {
            "channel_order": "RGB",
            "pixel_range": [0, 1],
            "mean": list(data.mean),
            "std": list(data.std),
            "resize": dump(data)["val_transforms"],
            "pad_multiple": data.pad_multiple or saved.model.stride,
            "pad_side": "right and bottom, with zeros, after normalisation",
            "inclusive_boxes": data.inclusive_boxes,
        },
        "thresholds": dump(detector.post_processing),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
