from pathlib import Path

import pytest

from sparsedet.benchmark.upstream.section import (
    KINDS,
    Section,
    Translation,
    Type,
    fixed,
    ignored,
    part,
    quote,
    to,
    value,
)
from sparsedet.common.document import Document, parse_yaml
from sparsedet.common.errors import ConfigError

TEXT = """\
length: 3
colour: red
flag: true
inner:
  depth: 0.5
shape:
  type: square
  kwargs: {side: 2}
"""
SHAPES = {
    "square": Type(
        {"side": to("form.side", "a whole number"), "tilt": to("form.tilt", "a number", 0)}, "form.type", "box"
    ),
    "circle": Type({}, "form"),
    "point": Type(reason="it has no size"),
}
TABLE = {
    "length": to("size.length", "a whole number"),
    "width": to("size.width", "a number", 7),
    "colour": fixed("red", "there is one colour"),
    "flag": ignored("nothing reads it"),
    "inner": part(),
    "other": part({"depth": 9}),
    "shape": part({"type": "circle"}),
}


def read(text, table=TABLE):
    source = parse_yaml(text, "f.yaml", Path("/"))
    translation = Translation(source, Document({}))
    return Section(translation, (), source.data).read(table), translation


def test_a_table_writes_native_keys_with_their_places_and_takes_a_note_of_every_key_that_is_there():
    found, translation = read(TEXT)
    assert translation.native.data == {"size": {"length": 3, "width": 7}}
    assert translation.native.positions[("size", "length")] == "f.yaml:1"
    assert found["inner"].read({"depth": to("deep", "a number")}) == {"depth": 0.5}
    assert found["other"].read({"depth": to("other", "a number")}) == {"depth": 9}
    chosen = found["shape"].choose(SHAPES)
    assert (chosen.name, chosen.values) == ("square", {"side": 2, "tilt": 0})
    assert translation.native.data["form"] == {"type": "box", "side": 2, "tilt": 0}
    assert [(note.key, note.outcome, note.text) for note in translation.notes] == [
        ("length", "mapped", "size.length: 3"),
        ("colour", "no effect", "red is what is done"),
        ("flag", "no effect", "nothing reads it"),
        ("inner.depth", "mapped", "deep: 0.5"),
        ("shape.type", "mapped", "form.type: box"),
        ("shape.kwargs.side", "mapped", "form.side: 2"),
    ]


def test_a_mapping_that_is_absent_leaves_its_default_and_no_note():
    found, translation = read("length: 1\ninner: {depth: 1}\nother:\n")
    assert found["other"].data == {"depth": 9}
    assert found["shape"].choose(SHAPES).name == "circle"
    assert [(note.key, note.text) for note in translation.notes] == [
        ("length", "size.length: 1"),
        ("other", "it is empty"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lenght: 3\ninner: {}\n", "f.yaml:1: lenght: expected one of ['colour', 'flag', 'inner', 'length', "),
        ("lenght: 3\ninner: {}\n", "got the unknown key 'lenght'. Did you mean 'length'? Correct or remove it."),
        ("inner: {}\n", "f.yaml: length: expected a whole number, got nothing. Add the key."),
        ("length: 3.5\ninner: {}\n", "f.yaml:1: length: expected a whole number, got 3.5. Correct it."),
        ("length: true\ninner: {}\n", "length: expected a whole number, got true."),
        ("length:\ninner: {}\n", "length: expected a whole number, got null."),
        ("length: 3\ninner: 4\n", "f.yaml:2: inner: expected a mapping, got 4."),
        ("length: 3\ncolour: blue\ninner: {}\n", "f.yaml:2: colour: expected red, got 'blue'. Refused: there is"),
        ("length: 3\nwidth: '7'\ninner: {}\n", "width: expected a number, got '7'."),
    ],
)  # fmt: skip
def test_faults(text, message):
    with pytest.raises(ConfigError) as error:
        read(text)
    assert message in str(error.value)


def test_types_that_are_not_known_are_named():
    found, _ = read(TEXT.replace("square", "squar"))
    with pytest.raises(ConfigError) as error:
        found["shape"].choose(SHAPES)
    assert str(error.value) == (
        "f.yaml:7: shape.type: expected one of ['circle', 'point', 'square'], got 'squar'. "
        "Did you mean 'square'? Correct it."
    )


def test_types_without_a_native_form():
    found, translation = read("length: 1\ninner: {depth: 1}\nshape: {type: point, kwargs: {}}\n")
    found["shape"].choose(SHAPES)
    assert [(note.key, note.outcome, note.text) for note in translation.notes[1:]] == [
        ("shape.kwargs", "no effect", "it is empty"),
        ("shape.type", "no effect", "it has no size"),
    ]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("a number", [1, 0.5], [True, "1", None]),
        ("a whole number", [1], [1.0, True]),
        ("true or false", [True], [1, "true"]),
        ("text", ["a"], [1]),
        ("a list of numbers", [[1, 0.5], []], [1, [True], ["a"]]),
        ("a list of whole numbers", [[1]], [[0.5]]),
        ("a list of mappings", [[{}], []], [{}, [1]]),
        ("a mapping", [{}], [[]]),
    ],
)
def test_kinds(kind, good, bad):
    assert all(KINDS[kind](item) for item in good)
    assert not any(KINDS[kind](item) for item in bad)


def test_items_of_a_list_have_their_own_paths():
    found, translation = read("list: [{a: 1}, {a: 2}]\n", {"list": value("a list of mappings")})
    assert found["list"] == [{"a": 1}, {"a": 2}]
    root = Section(translation, (), translation.source.data)
    for item in root.items("list"):
        item.read({"a": ignored("no")})
    assert [note.key for note in translation.notes] == ["list[0].a", "list[1].a"]


def test_long_values_are_cut():
    assert len(quote("x" * 500)) == 78
    assert (quote(None), quote(False), quote("a")) == ("null", "false", "'a'")
