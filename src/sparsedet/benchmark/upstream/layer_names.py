"""Layers that a file of United-Perception leaves unpruned, which it knows by the names of its own modules."""

from collections.abc import Sequence

import torch

from sparsedet.benchmark.upstream.names import upstream_names
from sparsedet.benchmark.upstream.section import Section
from sparsedet.common.config import ConfigModel, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import did_you_mean
from sparsedet.detection.models import DetectorConfig
from sparsedet.sparsity.weights import find_weights


class _Network(ConfigModel):
    detector: DetectorConfig


def exclude_upstream_names(keywords: Sequence[str], layers: Sequence[str], kwargs: Section) -> list[str]:
    """Return our names of the layers whose name in United-Perception holds a keyword or is one of `layers`.

    Layers may be given with the names of the merged parts of sparse runs before them (up_semantics §10).

    Raises:
        ConfigError: the detector has no such layer.
    """
    names = _native_names(kwargs) if keywords or layers else {}
    found: list[str] = []
    for key, words in (("no_prune_keyword", keywords), ("no_prune_layer", layers)):
        for word in words:
            is_keyword = key == "no_prune_keyword"
            chosen = [
                native
                for name, native in names.items()
                if (word in name if is_keyword else f".{word}".endswith(f".{name}"))
            ]
            if not chosen:
                hint = did_you_mean(word, names)
                raise kwargs.error(
                    key, "names of layers in the file's network", f"'{word}'", f"{hint} Correct it.".strip()
                )
            found += [native for native in chosen if native not in found]
        kwargs.mapped(key, f"sparsity.targets.exclude: {found if words else 'nothing'}")
    return found


def _native_names(kwargs: Section) -> dict[str, str]:
    """Return our name of each layer by its name in United-Perception."""
    native = kwargs.translation.native
    only_detector = Document({"detector": native.data["detector"]}, native.positions, native.folders, native.source)
    detector = validate(_Network, only_detector).detector
    with torch.device("meta"):
        model = detector.build(native.data["data"]["num_classes"], pretrained=False)
    names = upstream_names(model)
    return {
        names[f"{layer}.weight"][0].removesuffix(".weight"): layer
        for weight in find_weights(model)
        for layer in weight.layer_names
    }
