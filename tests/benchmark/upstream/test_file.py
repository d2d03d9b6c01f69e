import json

import pytest
import torch

from sparsedet.benchmark.recipe import Recipe, load_recipe
from sparsedet.benchmark.suite import load_suite
from sparsedet.benchmark.upstream.file import read_config
from sparsedet.common.config import dump, to_yaml, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError

DENSE = ["retina_plain", "retina_bn", "retina_iou", "faster"]
SPARSE = {  # name -> dense file, tail, hand-written meaning
    "retina level-wise": ("retina_iou", "retina_level_wise.tail.yaml", ["retina_level_wise.native.yaml"]),
    "retina 2:4": ("retina_iou", "two_four.tail.yaml", ["retina_iou.native.yaml", "two_four.native.yaml"]),
    "faster level-wise": ("faster", "faster_level_wise.tail.yaml", ["faster_level_wise.native.yaml"]),
    "faster 2:4": ("faster", "two_four.tail.yaml", ["faster.native.yaml", "two_four.native.yaml"]),
}


@pytest.fixture(params=[*DENSE, *SPARSE])
def pair(request, files, tmp_path, monkeypatch):
    """A file in United-Perception's dialect and the hand-written recipe that it means."""
    monkeypatch.chdir(files)
    if request.param in DENSE:
        return files / f"{request.param}.yaml", files / f"{request.param}.native.yaml"
    dense, tail, meaning = SPARSE[request.param]
    path = tmp_path / f"{dense}.yaml"
    path.write_text((files / f"{dense}.yaml").read_text() + (files / tail).read_text())
    native = tmp_path / "native.yaml"
    native.write_text(f"base: {json.dumps([str(files / name) for name in meaning])}\n")
    return path, native


def test_a_file_means_what_was_written_by_hand(pair):
    upstream, native = (load_recipe(path, ("data.root=/data",)).recipe for path in pair)
    assert dump(upstream) == dump(native)


def test_its_detector_is_built(pair):
    recipe = load_recipe(pair[0]).recipe
    with torch.device("meta"):
        model = recipe.detector.build(recipe.data.num_classes, pretrained=False)
    outputs = model(torch.zeros(1, 3, 128, 128, device="meta"))
    assert outputs


def test_every_key_ends_in_a_note(pair, translate, uncovered):
    _, notes = translate(pair[0])
    assert uncovered(pair[0], notes) == []


def test_the_walk_sees_keys_that_have_no_note(pair, translate, uncovered):
    _, notes = translate(pair[0])
    for key in (
        "net.backbone.kwargs.out_layers",
        "trainer.optimizer.kwargs.lr",
        "dataset.dataloader.kwargs.num_workers",
    ):
        assert uncovered(pair[0], {name: note for name, note in notes.items() if name != key}) == [key]
    assert uncovered(pair[0], {}) != []


def test_the_translation_loads_back_equal(pair, tmp_path):
    recipe = load_recipe(pair[0]).recipe
    (tmp_path / "translated.yaml").write_text(to_yaml(dump(recipe)))
    assert load_recipe(tmp_path / "translated.yaml").recipe == recipe
    assert validate(Recipe, Document(dump(recipe))) == recipe


# --- reading -----------------------------------------------------------------------------------------------


def test_only_a_list_of_nets_makes_a_file_upstream_and_its_scalars_are_yaml_1_1(tmp_path):
    for net, expected in (("net: []", True), ("net: {a: 1}", "on"), ("nets: []", "on")):
        (tmp_path / "a.yaml").write_text(f"{net}\nswitch: on\n")
        assert read_config(tmp_path / "a.yaml").data["switch"] == expected


def test_places_of_aliased_values_are_those_of_their_anchors(edited):
    path = edited("retina_plain.yaml", ("[0.25, 0.2, 0.3]", "[0.25, 0.2, 0.0]"))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "&norm" in text)
    with pytest.raises(
        ConfigError, match=rf"retina_plain\.yaml:{line}: data\.std\[2\]: expected greater than 0, got 0"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_epoch: 10", "max_epoch: 10\n  max_epoch: 12", 'got found duplicate key "max_epoch"'),
        ("max_epoch: 10", "max_epoch: !!python/object/apply:os.system ['exit 3']", "got the tag 'tag:yaml.org,2002:p"),
        ("max_epoch: 10", "max_epoch: !include other.yaml", "got the tag '!include'. Tags are not evaluated"),
        ("max_epoch: 10", "max_epoch: !!python/tuple [1, 2]", "trainer.max_epoch: expected plain YAML, got the tag"),
        ("shared:", "overwrite@: {a.b: 3}\nshared:", "overwrite@: expected plain keys, got 'overwrite@'. Refused: "),
        ("trainer:", "traner:", "trainer: expected a mapping, got nothing. Did you mean 'traner'? Add the key."),
        ("hooks: [", "hooks: [{type: auto_checkpoint}, ", "each with its own 'type', got 'auto_checkpoint' twice."),
        ("hooks: [", "hooks: [3, ", "hooks: expected a list of mappings, each with its own 'type', got 3."),
        ("name: neck", "name: backbone", "each with its own 'name', got 'backbone' twice."),
        ("auto_checkpoint}", "auto_checkpint}", "hooks.auto_checkpint.type: expected one of ['auto_ch"),
        ("saver:", "up_compat: 3\nsaver:", "up_compat: expected true or false, got 3."),
    ],
)  # fmt: skip
def test_what_is_not_such_a_file_says_where_and_why(edited, old, new, message):
    path = edited("retina_plain.yaml", (old, new))
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}")


def test_other_keys_at_the_top_have_no_effect_and_a_near_miss_is_named(edited, translate):
    data, notes = translate(edited("retina_plain.yaml", ("shared:", "emma: {enable: true}\nshared:")))
    assert "ema" not in data["training"]
    assert notes["emma"][0].outcome == notes["shared"][0].outcome == "no effect"
    assert notes["emma"][0].text.endswith("Did you mean 'ema'?")


# --- overrides and bases -----------------------------------------------------------------------------------


def test_overrides_change_the_upstream_file_or_the_native_recipe(files):
    overrides = (
        "trainer.max_epoch=20",
        "net.backbone.kwargs.frozen_layers=[0, 1]",
        "net.backbone.type=resnet18",
        "hooks=[{type: grad_clipper, kwargs: {mode: pre_defined, max_norm: 9}}]",
        "hooks.grad_clipper.kwargs.max_norm=3",
        "runtime.random_seed=7",
        "dataset.batch_sampler.kwargs.batch_size=2",
        "training.batch_size=32",
        "detector.head.prior=0.5",
        "data.root=/data",
    )
    recipe = load_recipe(files / "retina_plain.yaml", overrides).recipe
    assert (recipe.training.epochs, recipe.seed, recipe.training.max_gradient_norm) == (20, 7, 3)
    assert (recipe.detector.backbone.type, recipe.detector.backbone.frozen_stages) == ("resnet18", 2)
    assert (recipe.training.batch_size, recipe.training.forward_batch_size) == (32, 2)
    assert (recipe.detector.head.prior, str(recipe.data.root)) == (0.5, "/data")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epoc=3", "--set: trainer.max_epoc: expected one of ['lr_scheduler', 'max_epoch', "),
        ("trainer.max_epoch.x=3", "--set trainer.max_epoch.x: expected a mapping at 'trainer.max_epoch', got 10."),
        ("net.neck2.kwargs={}", "net.neck2.type: expected text, got nothing."),
        ("net=[]", "--set: net: expected resnet18|"),
        ("hooks=[3]", "--set: hooks: expected a list of mappings, each with its own 'type', got 3."),
        ("trainer.max_epoch=ten", "--set: trainer.max_epoch: expected a number, got 'ten'. Correct it."),
        ("detector.neck.chanels=3", "--set: detector.neck.chanels: expected one of"),
    ],
)
def test_wrong_overrides(files, override, message):
    with pytest.raises(ConfigError) as error:
        load_recipe(files / "retina_plain.yaml", (override,))
    assert message in str(error.value)


def test_a_native_recipe_lies_on_an_upstream_file(files, tmp_path):
    (tmp_path / "top.yaml").write_text(
        f"base: {files / 'retina_plain.yaml'}\ndata: {{root: here}}\ntraining: {{batch_size: 12}}\n"
        "sparsity: {schedule: {type: one_shot, sparsity: 0.5}}\n"
    )
    loaded = load_recipe(tmp_path / "top.yaml", ("trainer.max_epoch=4", "seed=3"))
    assert loaded.recipe.training.epochs == 4
    assert loaded.recipe.training.batch_size == 12
    assert loaded.recipe.detector.neck.channels == 32
    assert loaded.recipe.data.root == tmp_path / "here"
    assert loaded.recipe.target_sparsities == (0.5,)
    assert loaded.recipe.seed == 3
    assert any(note.key == "net.neck.kwargs.outplanes" for note in loaded.notes)


def test_a_native_recipe_has_no_upstream_keys(tiny_recipe):
    for override in ("trainer.max_epoch=3", "up_compat=true"):
        with pytest.raises(ConfigError, match=r"--set: (trainer|up_compat): expected one of .*, got the unknown key"):
            load_recipe(tiny_recipe, (override,))


def test_native_overrides_of_a_translated_block(files, tmp_path, monkeypatch):
    path = tmp_path / "faster.yaml"
    path.write_text((files / "faster.yaml").read_text() + (files / "faster_level_wise.tail.yaml").read_text())
    lamp = load_recipe(path, ("sparsity.allocation={type: lamp}",)).recipe
    assert lamp.sparsity.allocation.type == "lamp"
    changed = load_recipe(path, ("sparsity.scheduler.kwargs.sparsity_table=[10, 20, 30]", "seed=2")).recipe
    assert changed.target_sparsities == (0.1, 0.2, 0.3)
    assert changed.sparsity.allocation.type == "uniform"


def test_suites_take_upstream_files(files, tmp_path):
    (tmp_path / "s.yaml").write_text(
        f"title: T\nexperiments:\n- {{name: a, recipe: {files / 'retina_bn.yaml'}}}\n"
        f"- {{name: b, recipe: {{base: {files / 'retina_bn.yaml'}, seed: 4}}}}\n"
    )
    suite = load_suite(tmp_path / "s.yaml", ("b:trainer.max_epoch=2",))
    assert [loaded.recipe.training.epochs for loaded in suite.recipes] == [6, 2]
    assert [loaded.recipe.seed for loaded in suite.recipes] == [131, 4]
    (alone,) = load_suite(files / "retina_bn.yaml").recipes
    assert alone.recipe == load_recipe(files / "retina_bn.yaml").recipe


# --- up_compat ---------------------------------------------------------------------------------------------

FLAGS = {
    "retina_plain": {"detector.post_processing.up_compat", "detector.assigner.up_compat"},
    "retina_iou": {
        "detector.post_processing.up_compat",
        "detector.assigner.ignore_overrides_positives",
        "training.lr_schedule.up_compat",
    },
    "faster": {"detector.roi_head.up_compat", "detector.rpn.assigner.up_compat"},
}


def flatten(node, path=""):
    if not isinstance(node, dict):
        return {path[1:]: node}
    return {key: value for name, item in node.items() for key, value in flatten(item, f"{path}.{name}").items()}


@pytest.mark.parametrize("name", FLAGS)
def test_up_compat_sets_every_fault_and_nothing_else(name, files):
    path = files / f"{name}.yaml"
    plain, compat = (flatten(dump(load_recipe(path, given).recipe)) for given in ((), ("up_compat=true",)))
    changed = {key for key in plain if plain[key] != compat[key]}
    assert changed == {*FLAGS[name], "data.val_without_annotations"}
    assert all(compat[key] for key in FLAGS[name])
    assert not compat["data.val_without_annotations"]


def test_up_compat_of_level_wise_runs(files, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text((files / "faster.yaml").read_text() + (files / "faster_level_wise.tail.yaml").read_text())
    assert not load_recipe(path).recipe.sparsity.schedule.up_compat
    assert load_recipe(path, ("up_compat=true",)).recipe.sparsity.schedule.up_compat


# --- the published blocks ----------------------------------------------------------------------------------


def test_the_published_blocks_are_accepted_behind_a_dense_file(files, tmp_path, translate, uncovered):
    for name, leaf in (("level_wise", "  leaf_module"), ("level_wise", "leaf_module"), ("two_four", "")):
        block = (files / f"published_{name}.txt").read_text().replace("  leaf_module", leaf)
        path = tmp_path / f"{name}{len(leaf)}.yaml"
        path.write_text((files / "retina_plain.yaml").read_text() + block)
        recipe = load_recipe(path, ("trainer.max_epoch=84",)).recipe
        expected = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if name == "level_wise" else (0.5,)
        assert recipe.target_sparsities == expected
        _, notes = translate(path, "trainer.max_epoch=84")
        assert uncovered(path, notes) == []
