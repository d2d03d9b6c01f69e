import json
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from sparsedet.common.config import ConfigModel, dump, to_yaml, validate
from sparsedet.common.document import apply_overrides, merge, parse_json, parse_yaml, read_yaml
from sparsedet.common.errors import ConfigError


class Circle(ConfigModel):
    type: Literal["circle"] = "circle"
    radius: float = Field(1.0, ge=0, lt=1)


class Polygon(ConfigModel):
    type: Literal["polygon"] = "polygon"
    sides: tuple[float, ...]


class Drawing(ConfigModel):
    shape: Annotated[Circle | Polygon, Field(discriminator="type")]
    number: int
    file: Path | None = None
    circles: tuple[Circle, ...] = ()


def read(text, overrides=()):
    document = apply_overrides(parse_yaml(text, "f.yaml", Path("/folder")), overrides)
    document.resolve_path("file")
    return validate(Drawing, document)


def test_yaml_1_2_numbers_and_relative_paths():
    drawing = read("shape: {type: circle, radius: 1e-3}\nnumber: 3\nfile: a/b.txt\n")
    assert drawing == Drawing(shape=Circle(radius=0.001), number=3, file=Path("/folder/a/b.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "number: 1\nshape:\n  type: circle\n  radios: 0.5\n",
            "f.yaml:4: shape.radios: expected one of ['radius', 'type'], got the unknown key 'radios'. "
            "Did you mean 'radius'? Correct or remove it.",
        ),
        (
            "number: 1\nshape: {type: circel}\n",
            "f.yaml:2: shape.type: expected one of ['circle', 'polygon'], got 'circel'. Did you mean 'circle'?",
        ),
        (
            "number: 1\nshape: {radius: 0}\n",
            "f.yaml:2: shape: expected a mapping with the key 'type', got {'radius': 0}.",
        ),
        (
            "shape: {type: circle}\n",
            "f.yaml: number: expected a value, got nothing. Add the key, or give it with --set number=…",
        ),
        ("number: '3'\nshape: {type: circle}\n", "f.yaml:1: number: expected a valid integer, got '3'."),
        ("number: true\nshape: {type: circle}\n", "f.yaml:1: number: expected a valid integer, got True."),
        ("number: 3.5\nshape: {type: circle}\n", "f.yaml:1: number: expected a valid integer, got 3.5."),
        (
            "number: 1\nshape: {type: circle, radius: 1}\n",
            "f.yaml:2: shape.radius: expected less than 1, got 1",
        ),
        (
            "number: 1\nshape: {type: circle, radius: .nan}\n",
            "f.yaml:2: shape.radius: expected a finite number, got nan",
        ),
        (
            "number: 1\nshape:\n  type: polygon\n  sides: [1, x]\n",
            "f.yaml:4: shape.sides[1]: expected a valid number, got 'x'.",
        ),
        (
            "number: 1\nshape: {type: circle}\ncircles:\n- {radius: 2}\n",
            "f.yaml:4: circles[0].radius: expected less than 1, got 2",
        ),
        (
            "number: None\nshape: {type: circle}\n",
            "f.yaml:1: number: expected a value, got the text 'None'. Write null",
        ),
    ],
)
def test_faults_name_place_key_contract_and_value(text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)


DOUBLED = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))
"""Each line holds twice as many values as the one before it."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", 'f.yaml:2: expected valid YAML, got found duplicate key "a"'),
        ("a: !!python/object:os.system 2\n", "f.yaml:1: a: expected plain YAML, got the tag"),
        ("a: !mine {b: 1}\n", "f.yaml:1: a: expected plain YAML, got the tag '!mine'. Tags are not evaluated: write"),
        ("- 1\n", "f.yaml: expected a mapping of keys at the top level, got a list."),
        ("a: [\n", "f.yaml:2: expected valid YAML, got "),
        ("a:\n  1: 2\n", "f.yaml:2: a: expected text as key, got 1. Put the key in quotes."),
        ("a: !!python/object/apply:os.system ['exit 3']\n", "f.yaml:1: a: expected plain YAML, got the tag 'tag:yaml"),
        (
            "!!python/object:os.x\na: 1\n",
            "f.yaml: top level: expected plain YAML, got the tag 'tag:yaml.org,2002:python",
        ),
        ("a: !!set {b}\n", "f.yaml:1: a: expected a mapping, a list, text, a number, true, false or null, got Comm"),
        (
            "a: !!binary aGVsbG8=\n",
            "f.yaml:1: a: expected a mapping, a list, text, a number, true, false or null, got b",
        ),
        (f"a: {'[' * 20_000}\n", "f.yaml:1: expected valid YAML, got more than 50 levels of nesting. Correct"),
        (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)),
            "f.yaml:1: expected at most 50 levels of n",
        ),
        ("a: &a\n  b: [*a]\n", "f.yaml:2: expected valid YAML, got the alias 'a' inside itself. Correct that line."),
        ("a: &a {<<: *a}\n", "f.yaml:1: expected valid YAML, got the alias 'a' inside itself"),
        (f"a: 0x{'f' * 5000}\n", "f.yaml:1: a: expected whole numbers of 64 bits, got a larger one."),
        (f"a: {'9' * 5000}\n", "f.yaml: expected valid YAML, got Exceeds the limit"),
        ('a: "x\\0y"\n', "f.yaml:1: a: expected text, got a null or half a Unicode character in it. Remove it."),
        ('a: "\\ud800"\n', "f.yaml:1: a: expected text, got a null or half a Unicode character in it."),
        ('a: {"\\0": 1}\n', "f.yaml:1: a: expected text as key, got '\\x00'."),
        (DOUBLED, "f.yaml: expected at most 100000 values, got more. Look for aliases inside aliases."),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text, message):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "f.yaml", Path("/folder"))
    assert message in str(error.value)


def test_anchors_aliases_and_merge_keys_are_copies_with_the_places_they_were_written_at():
    document = parse_yaml(
        "a: &a {x: 1, y: [2,\n  3]}\nb: *a\nc:\n  <<: *a\n  x: 4\nno: &no false\nd: *no\n", "f.yaml", Path("/folder")
    )
    tree = {"x": 1, "y": [2, 3]}
    assert document.data == {"a": tree, "b": tree, "c": {"x": 4, "y": [2, 3]}, "no": False, "d": False}
    assert document.data["d"] is False
    document.data["b"]["y"].append(5)
    assert document.data["a"] == tree
    places = {("b",): 3, ("b", "x"): 1, ("b", "y", 1): 2, ("c", "x"): 6, ("c", "y"): 5, ("d",): 8}
    assert {path: document.positions[path] for path in places} == {
        path: f"f.yaml:{line}" for path, line in places.items()
    }


def test_a_mapping_of_merged_keys_alone():
    document = parse_yaml("a: 1\nb:\n  <<: {x: 1}\n", "f.yaml", Path("/folder"))
    assert document.data == {"a": 1, "b": {"x": 1}}
    assert document.position(("b", "x")) == "f.yaml:3"


def test_plain_scalars_mean_what_the_version_says():
    text = "a: [yes, off, 010, 1:30, 1e-3, 1_000, True, None, 2020-01-02]\n"
    new, old = (parse_yaml(text, "f.yaml", Path("/"), version).data["a"] for version in ((1, 2), (1, 1)))
    assert new == ["yes", "off", 10, "1:30", 0.001, 1000, True, "None", "2020-01-02"]
    assert old == [True, False, 8, 90, 0.001, 1000, True, "None", "2020-01-02"]


def test_missing_file(tmp_path):
    with pytest.raises(
        ConfigError, match=r"none\.yaml: expected a readable YAML file, got 'No such file or directory'"
    ):
        read_yaml(tmp_path / "none.yaml")


def test_what_is_no_small_ordinary_file_is_never_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large.yaml"
    large.write_text("a: 1\n" + "#" * 2**20)
    for path, got in (("pipe", "no ordinary file"), ("/dev/zero", "no ordinary file"), (large, "of at most 1048576 b")):
        with pytest.raises(ConfigError, match=f"expected a readable YAML file.*{got}"):
            read_yaml(tmp_path / path)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "[" * 5000, '{"a": ' * 60 + "1" + "}" * 60, '{"a": "\\u0000"}', '{"\\ud800": 1}',
     json.dumps({"a": [0] * 100_001}), '{"a": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_json_keeps_to_the_limits_of_yaml(text):
    assert parse_json('{"a": [1, "x", null]}', "f.json").data == {"a": [1, "x", None]}
    with pytest.raises(ConfigError, match=r"f\.json: expected a mapping in JSON"):
        parse_json(text, "f.json")


def test_messages_hold_nothing_that_a_terminal_acts_on_and_have_an_end():
    with pytest.raises(ConfigError) as raised:
        read('number: "\\e[2J\\u202e"\nshape: {type: circle}\n')
    assert r"got '\x1b[2J\u202e'" in str(raised.value).replace(r"\\", "\\")
    assert str(ConfigError("a\x1b\nb\ud800")) == "a\\x1b\nb\\ud800"
    assert len(str(ConfigError("\x1b" * 10**6))) == 10_001


def test_every_fault_of_a_file_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        read("number: x\nshape: {type: circle, radius: 2}\n")
    assert len(str(error.value).splitlines()) == 2


class Gallery(ConfigModel):
    circles: tuple[Circle, ...] = Field(min_length=1)


@pytest.mark.parametrize(
    ("text", "found"), [("circles: [{radius: 2}]", "circles[0].radius"), ("circles: []", "circles")]
)
def test_a_list_is_not_called_short_of_what_is_faulty_itself(text, found):
    with pytest.raises(ConfigError) as raised:
        validate(Gallery, parse_yaml(text, "f.yaml", Path("/folder")))
    (fault,) = str(raised.value).splitlines()
    assert fault.startswith(f"f.yaml:1: {found}: expected ")


def test_overrides_pass_the_same_checks_and_start_at_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "number: 1\nshape: {type: circle}\nfile: x\n"
    drawing = read(text, ["shape.radius=2.5e-1", "file=y", "number=7"])
    assert drawing == Drawing(shape=Circle(radius=0.25), number=7, file=tmp_path / "y")
    with pytest.raises(ConfigError, match="--set: number: expected a valid integer, got 'x'"):
        read(text, ["number=x"])
    with pytest.raises(ConfigError, match="--set: expected key=value, got 'number'"):
        read(text, ["number"])


def test_an_override_of_the_type_drops_the_keys_of_the_old_type():
    drawing = read("number: 1\nshape: {type: circle, radius: 0.5}\n", ["shape={type: polygon, sides: [3]}"])
    assert drawing.shape == Polygon(sides=(3.0,))


def test_merge_keeps_the_place_each_value_came_from():
    base = parse_yaml("number: 1\nshape:\n  type: circle\n  radius: 5\n", "base.yaml", Path("/base"))
    over = parse_yaml("\n\nnumber: x\n", "over.yaml", Path("/over"))
    with pytest.raises(ConfigError) as error:
        validate(Drawing, merge(base, over))
    assert "over.yaml:3: number" in str(error.value)
    assert "base.yaml:4: shape.radius" in str(error.value)


def test_what_is_dumped_reads_back_equal(tmp_path):
    drawing = read("number: 3\nshape: {type: polygon, sides: [1e-7, 0.1]}\nfile: a\n")
    (tmp_path / "d.yaml").write_text(to_yaml(dump(drawing)))
    assert "circles: []" in to_yaml(dump(drawing))
    assert to_yaml({"a": None}) == "a: null\n"
    assert validate(Drawing, read_yaml(tmp_path / "d.yaml")) == drawing
