import torch

from sparsedet.detection.data.scene import IGNORE, Scene, clip, has_area, scale, shift

BOXES = torch.tensor([[1.0, 2.0, 5.0, 9.0], [-3.0, 1.0, 30.0, 40.0], [4.0, 4.0, 4.0, 8.0]])


def test_box_arithmetic_worked_by_hand():
    assert has_area(BOXES).tolist() == [True, True, False]
    assert clip(BOXES, width=20, height=8).tolist() == [[1, 2, 5, 8], [0, 1, 20, 8], [4, 4, 4, 8]]
    assert shift(BOXES, 10, -1).tolist() == [[11, 1, 15, 8], [7, 0, 40, 39], [14, 3, 14, 7]]
    assert scale(BOXES, 2, 0.5).tolist() == [[2, 1, 10, 4.5], [-6, 0.5, 60, 20], [8, 2, 8, 4]]
    for function, arguments in ((clip, (1, 1)), (shift, (1, 1)), (scale, (1, 1))):
        assert function(torch.zeros(0, 4), *arguments).shape == (0, 4)


def test_a_scene_knows_its_size_and_whether_there_are_objects():
    scene = Scene(torch.zeros(3, 7, 9, dtype=torch.uint8), BOXES, torch.tensor([IGNORE, 2, IGNORE]), ())
    assert scene.size == (7, 9)
    assert scene.has_objects
    without = scene.with_boxes(scene.image[:, :5], BOXES + 1, scene.labels, scene.labels == IGNORE)
    assert not without.has_objects
    assert without.size == (5, 9)
    assert without.boxes_xyxy.tolist() == (BOXES + 1)[[0, 2]].tolist()
