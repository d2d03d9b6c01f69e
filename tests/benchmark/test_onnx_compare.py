"""When two sets of outputs count as the same."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from sparsedet.benchmark import onnx_compare
from sparsedet.benchmark.onnx_compare import check_images, compare
from sparsedet.benchmark.onnx_modules import onnx_module

SHAPE = (2, 3, 64, 96)


@pytest.fixture
def run(small_detectors, build):
    """Function of a detector's name, whether it ends in boxes, and a change of its outputs: what `compare` says."""

    def run(name, post_processing, change, fp16=False):
        detector = build(small_detectors[name], 0)
        for part, layer in detector.named_modules():
            if part.endswith(("cls_pred", "box_pred")):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.normal_(layer.bias, std=0.5)
        module = onnx_module(detector, post_processing).eval()
        images = check_images(None, module.detector.stride, SHAPE)
        shapes = []

        def runner(path):
            def computed(inputs):
                shapes.append(tuple(inputs[0].shape))
                outputs = dict(zip(module.output_names, (x.clone() for x in module(*inputs)), strict=True))
                change(outputs)
                return outputs

            return computed

        with mock.patch.object(onnx_compare, "OnnxRunner", runner):
            comparison = compare(module, Path("x.onnx"), images, fp16)
        assert comparison.shapes == tuple(shapes) == (SHAPE, (1, 3, 96, 160))
        return comparison

    return run


def test_equal_outputs(run):
    for name in ("C2", "C4"):
        for post_processing in (False, True):
            comparison = run(name, post_processing, lambda outputs: None)
            assert comparison.fault is None
            assert not any(comparison.relative_difference.values())
            assert comparison.images == "random images, as the data are not there"
            expected = None if (name, post_processing) == ("C2", False) else pytest.approx(0, abs=1e-12)
            assert comparison.unmatched == expected
            assert comparison.box_difference_px in (None, 0)
            assert comparison.num_boxes is None or comparison.num_boxes > 20


def test_raw_outputs_that_differ(run):
    def change(outputs):
        largest = outputs["box_deltas_5"].abs().max()
        outputs["box_deltas_5"][0, 0, 0, 0] += 0.01 * largest

    comparison = run("C2", False, change)
    assert comparison.relative_difference["box_deltas_5"] == pytest.approx(0.01, rel=1e-3)
    assert comparison.relative_difference["cls_logits_5"] == 0
    assert comparison.fault == ("box_deltas_5: expected PyTorch's values within 0.0001 of the largest, got 0.01")
    assert run("C2", False, change, fp16=True).fault is None


def test_order_does_not_matter_but_labels_and_places_do(run):
    def turn(outputs):
        for name, value in outputs.items():
            outputs[name] = value.flip(1)

    def move(outputs):
        outputs["boxes"] += 0.25

    def move_far(outputs):
        outputs["boxes"] += 20

    def rename(outputs):
        outputs["labels"] = torch.where(outputs["labels"] == 0, 1, outputs["labels"])

    assert run("C2", True, turn).fault is None
    moved = run("C2", True, move)
    assert moved.box_difference_px == pytest.approx(0.25, abs=1e-4)
    assert run("C2", True, move_far).unmatched > 0.5
    renamed = run("C2", True, rename)
    assert renamed.unmatched > 0.2
    assert "boxes: expected a partner for all but 5% of PyTorch's, got" in renamed.fault


def test_a_row_that_only_one_side_has_counts_with_its_score(run):
    def drop(outputs):
        outputs["labels"][:, 0] = -1

    comparison = run("C2", True, drop)
    assert 0 < comparison.unmatched < 0.05


def test_proposals_are_matched_before_their_predictions(run):
    def turn(outputs):
        for name, value in outputs.items():
            outputs[name] = value.flip(1)

    def change(outputs):
        outputs["cls_logits"][:, :, 1] *= 1.5

    assert run("C4", False, turn).fault is None
    assert "cls_logits: expected PyTorch's values within" in run("C4", False, change).fault


def test_nothing_found_where_there_is_something(run):
    def empty(outputs):
        outputs["labels"].fill_(-1)

    assert run("C2", True, empty).unmatched == 1
