import pytest
import torch

from sparsedet.benchmark.console import Console
from sparsedet.benchmark.job import Job
from sparsedet.benchmark.recipe import Recipe, load_recipe
from sparsedet.benchmark.suite import load_suite
from sparsedet.common.config import dump, validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError

PRUNING = "sparsity: {schedule: {type: level_wise, levels: [0.5, 0.8]}}\n"


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_bases_are_laid_one_on_another_and_keep_their_own_folders(tiny_recipe, tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", pruning=PRUNING, data="data: {root: here}\n")
    write(tmp_path, top="base: [tiny.yaml, parts/pruning.yaml, parts/data.yaml]\ntraining: {steps: 9}\n")
    recipe = load_recipe(tmp_path / "top.yaml").recipe
    assert recipe.training.steps == 9
    assert recipe.training.batch_size == 2
    assert recipe.target_sparsities == (0.5, 0.8)
    assert recipe.data.root == tmp_path / "parts" / "here"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: top.yaml\n", r"top.yaml:1: base: expected another file, got a circle through .*top.yaml. Break it."),
        ("base: 3\n", r"top.yaml:1: base: expected the path of a recipe or a list of paths, got 3. Correct it."),
        ("base: gone.yaml\n", r"gone.yaml: expected a readable YAML file, got 'No such file or directory'"),
        (
            "base: tiny.yaml\ndense_control: true\n",
            r"dense_control: expected a sparsity section whose levels to follow",
        ),
        (
            "base: tiny.yaml\nassumed: {training.epoch: it was not published}\n",
            r"assumed: expected key paths of this recipe, got 'training.epoch'. Did you mean 'epochs'\? Correct it.",
        ),
        (
            f"base: tiny.yaml\n{PRUNING}published_ap: [0.4]\n",
            r"published_ap: expected 2 values, one for each level, got 1",
        ),
        (
            "base: tiny.yaml\ntraining: {checkpoints: {keep_best: true}}\n",
            r"training.checkpoints.keep_best: expected evaluation.every_steps to say how often .*, got null. Set it",
        ),
        *(
            (f"base: tiny.yaml\n{key}: {{{last}: None}}\n" if last else f"base: tiny.yaml\n{key}: None\n", "'None'")
            for key, last in (("initial_checkpoint", ""), ("data", "root"))
        ),
        ("experiments: []\n", r"expected a recipe, got a suite of several"),
        ("base: tiny.yaml\ntraining: {steps: null}\n", r"top.yaml:2: training: expected either 'steps' or 'epochs'"),
    ],
)
def test_faults(text, message, tiny_recipe, tmp_path):
    write(tmp_path, top=text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "top.yaml")


def test_a_recipe_reads_back_equal_and_its_hash_does_not_depend_on_places(tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe).recipe
    assert validate(Recipe, Document(dump(recipe))) == recipe
    moved = load_recipe(tiny_recipe, ("data.root=/elsewhere", "initial_checkpoint=/x.pt")).recipe
    looked_at = ("evaluation.every_steps=2", "training.checkpoints.keep_best=true")
    assert load_recipe(tiny_recipe, looked_at).recipe.hash() == recipe.hash()
    assert moved.hash() == recipe.hash() != load_recipe(tiny_recipe, ("seed=1",)).recipe.hash()


def test_weights_are_a_path_only_where_they_look_like_one(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in (("imagenet", "imagenet"), ("none", "none"), ("a.pth", str(tmp_path / "a.pth"))):
        recipe = load_recipe(tiny_recipe, (f"detector.backbone.weights={given}",)).recipe
        assert recipe.detector.backbone.weights == expected


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ("- {name: a, recipe: tiny.yaml}\n- {name: a, recipe: tiny.yaml}\n", "expected different names, got 'a' twice"),
        (
            "- {name: dense, recipe: tiny.yaml}\n- {name: b, start: dens, recipe: tiny.yaml}\n",
            r"expected 'start' of 'b' to name an earlier experiment \['dense'\], got 'dens'. Did you mean 'dense'\?",
        ),
        ("- {name: a/b, recipe: tiny.yaml}\n", r"experiments\[0\].name: expected"),
        ("- {name: a/b, recipe: tiny.yaml}\n", r"^[^\n]*Correct the value\.$"),  # and nothing of too few experiments
        (" []\n", r"s.yaml:2: experiments: expected at least 1 of them, got \[\]\. Correct the value\."),
        ("- {name: a}\n", r"experiments\[0\].recipe: expected a value, got nothing"),
        ("- {name: a, recipe: {base: tiny.yaml, sed: 1}}\n", r"s.yaml:3: sed: expected one of .* Did you mean 'seed'"),
    ],
)
def test_faults_of_suites(experiments, message, tiny_recipe, tmp_path):
    write(tmp_path, s=f"title: T\nexperiments:\n{experiments}")
    with pytest.raises(ConfigError, match=message):
        load_suite(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("stem", "name"), [("tiny", "tiny"), ("my recipe (1)", "my-recipe-1"), ("_x", "x"), ("数据", "recipe")]
)
def test_a_recipe_is_a_suite_of_one_experiment_named_after_its_file(stem, name, tiny_recipe):
    path = tiny_recipe.rename(tiny_recipe.with_stem(stem))
    (entry,) = load_suite(path).config.experiments
    assert entry.name == name


def test_overrides_for_all_or_for_one_experiment(tiny_recipe, tmp_path):
    write(
        tmp_path, s="title: T\nexperiments:\n- {name: a, recipe: tiny.yaml}\n- {name: b, recipe: {base: tiny.yaml}}\n"
    )
    suite = load_suite(tmp_path / "s.yaml", ("b:training.steps=3", "training.steps=9", "b:seed=5"))
    assert [(loaded.recipe.training.steps, loaded.recipe.seed) for loaded in suite.recipes] == [(9, 0), (3, 5)]
    with pytest.raises(ConfigError, match=r"--set: expected an experiment of \['a', 'b'\] before ':', got 'c'"):
        load_suite(tmp_path / "s.yaml", ("c:seed=5",))


def test_files_that_the_sparsity_block_names_lie_beside_the_recipe(tiny_recipe, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", limits="head.cls_pred: {max: 0.5}\n")
    (tmp_path / "parts" / "curves.json").write_text(
        '{"fingerprint": "x", "dense": 1.0, "curves": {"a.weight": []}, "left_out": {}}'
    )
    files = "limits: limits.yaml, allocation: {type: sensitivity, curves: curves.json}"
    block = f"{{schedule: {{type: one_shot, sparsity: 0.5}}, {files}}}"
    write(tmp_path / "parts", top=f"base: ../tiny.yaml\nsparsity: {block}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sparsity = load_recipe(tmp_path / "parts" / "top.yaml").recipe.sparsity
    assert dump(sparsity)["limits"]["head.cls_pred"]["max"] == 0.5
    assert sparsity.allocation.curves.curves == {"a.weight": []}


def test_levels_of_a_mac_budget_are_named_after_it(tiny_recipe, tmp_path):
    write(tmp_path, top=f"base: tiny.yaml\n{PRUNING[:-2]}, budget: macs, input_shape: [1, 3, 64, 64]}}\n")
    recipe = load_recipe(tmp_path / "top.yaml").recipe
    job = Job(recipe, "e", "", "", tmp_path, torch.device("cpu"), Console(quiet=True))
    assert job.level_names == ("macs-0.5", "macs-0.8")


def test_a_cache_is_no_part_of_the_experiment_and_starts_at_its_file(tiny_recipe, tmp_path):
    plain = load_recipe(tiny_recipe).recipe
    write(tmp_path, cached="base: tiny.yaml\ndata: {cache: {folder: pixels, max_gb: 2}}\n")
    cached = load_recipe(tmp_path / "cached.yaml").recipe
    assert cached.data.cache.folder == tmp_path / "pixels"
    assert cached.hash() == plain.hash()
    assert validate(Recipe, Document(dump(cached))) == cached
    assert not cached.data.cache.folder.exists()


def test_bases_that_double_from_file_to_file_are_refused(tiny_recipe, tmp_path):
    names = [f"{number}.yaml" for number in range(30)]
    for name, below in zip(names, [*names[1:], "tiny.yaml"], strict=True):
        (tmp_path / name).write_text(f"base: [{below}, {below}]\n")
    with pytest.raises(ConfigError, match=r"base: expected at most 100 files in all, got more\. Name fewer"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "/tmp/x", "a\\\\b", "", "a\\n"])
def test_names_of_experiments_stay_inside_the_run_folder(tiny_recipe, name, tmp_path):
    (tmp_path / "s.yaml").write_text(f'title: t\nexperiments:\n- {{name: "{name}", recipe: tiny.yaml}}\n')
    with pytest.raises(ConfigError, match=r"s.yaml:3: experiments\[0\].name: expected string should match pattern"):
        load_suite(tmp_path / "s.yaml")


@pytest.mark.parametrize("base", ["/dev/zero", "/etc", '"x\\0y"'])
def test_a_base_that_is_no_file_is_refused(base, tiny_recipe, tmp_path):
    (tmp_path / "top.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match="expected"):
        load_recipe(tmp_path / "top.yaml")
