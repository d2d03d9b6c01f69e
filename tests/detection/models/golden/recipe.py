"""Values of weights, images and boxes of the golden files, from numpy's frozen RandomState stream."""

import re
import zlib

import numpy as np

GAINS = {  # suffix regex -> (weight gain, bias constant)
    r"cls_subnet_pred\.": (2.0, -4.0),
    r"box_subnet_pred\.": (1.0, 0.0),
    r"iou_pred\.": (1.0, 1.0),
    r"roi_head\.conv_cls\.": (1.5, 0.0),
    r"roi_head\.conv_loc\.": (0.3, 0.0),
    r"fc_rcnn_cls\.": (3.0, 0.0),
    r"fc_rcnn_loc\.": (1.0, 0.0),
}


def canonical(key):
    """level copies of the shared head convs (cls_subnet.L.i.0.weight) take the value of level 0"""
    return re.sub(r"((?:cls|box)_subnet)\.\d+\.(\d+)\.0\.weight$", r"\1.0.\2.0.weight", key)


CLS_BIAS = {"retinanet_r50_1x": -5.0}  # otherwise the constant of GAINS


def value(key, shape, model=None):
    ck = canonical(key)
    rs = np.random.RandomState(zlib.crc32(ck.encode()) & 0x7FFFFFFF)
    last = ck.rsplit(".", 1)[1]
    shape = tuple(shape)
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_mean":
        return (0.05 * rs.standard_normal(shape)).astype(np.float32)
    if last == "running_var":
        return (1.0 + 0.5 * rs.random_sample(shape)).astype(np.float32)
    gain, const = 1.0, 0.0
    for pat, (g, c) in GAINS.items():
        if re.search(pat, ck):
            gain, const = g, c
    if "cls_subnet_pred.bias" in ck:
        const = CLS_BIAS.get(model, const)
    if last == "weight" and len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return (rs.standard_normal(shape) * (gain / np.sqrt(fan_in))).astype(np.float32)
    if last == "weight":
        return (0.8 + 0.4 * rs.random_sample(shape)).astype(np.float32)  # BN affine
    if last == "bias":
        return (const + 0.02 * rs.standard_normal(shape)).astype(np.float32)
    raise KeyError(key)


def image():
    x = np.random.RandomState(1234).standard_normal((2, 3, 256, 320)).astype(np.float32)
    x[1, :, 240:, :] = 0
    x[1, :, :, 300:] = 0
    return x


IMAGE_INFO = [[256, 320, (1.25, 1.25), 205, 256, False, 0, 0], [240, 300, (0.6, 0.625), 400, 480, True, 0, 0]]
GT = [
    np.array(
        [
            [20.3, 30.7, 120.9, 200.2, 1],
            [150.5, 60.1, 300.4, 180.8, 17],
            [5.2, 5.9, 40.6, 38.3, 44],
            [200.2, 200.4, 230.7, 240.9, 80],
        ],
        np.float32,
    ),
    np.array([[50.1, 40.6, 250.3, 220.7, 3], [100.2, 20.3, 130.4, 70.9, 17], [7.0, 9.0, 7.0, 30.0, 5]], np.float32),
]  # last one is degenerate (w == 1 with the +1 rule): dropped
IGNORE = [
    np.zeros((1, 4), np.float32),
    np.array([[140.5, 150.5, 290.5, 230.5], [0.0, 0.0, 60.0, 60.0]], np.float32),
]


def probe_idx(n, k=16):
    return np.linspace(0, n - 1, k).astype(np.int64)
