"""Recipes: what they are made of, as JSON and as links, and what nobody should get through with."""

import base64
import json

import pytest
import torch

import hyperlora
from hyperlora.errors import UserError
from hyperlora.generator import HyperLoRA
from hyperlora.lora import Adapter
from hyperlora.recipe import MAX_LINK, Recipe, within_rank

HERE, ELSEWHERE = "0123456789ab", "ba9876543210"
DIGEST = "7f" * 32
SORT, ADD = Recipe("Sort the words."), Recipe("Add the numbers.", strength=-0.5)
BLEND = Recipe(blend=((0.5, SORT), (-1.5, ADD)))
ALL = [
    SORT,
    ADD,
    BLEND,
    Recipe("Sortiere die Wörter.\nEins: 日本語 \U0001f600"),
    Recipe(upload=DIGEST, strength=2),
    Recipe(blend=((1, BLEND), (0, Recipe(upload=DIGEST))), space="factors", strength=0.1),
    Recipe(blend=((0.125, Recipe("Sort.")),) * 8),
]


def link_of(value: object, checkpoint: object = HERE) -> str:
    """A link as somebody could make it by hand; bytes are what its base64 holds, other values are the recipe's JSON."""
    if not isinstance(value, bytes):
        text = value if isinstance(value, str) else json.dumps(value)
        value = f'{{"checkpoint": {json.dumps(checkpoint)}, "recipe": {text}}}'.encode()
    return "#adapter=" + base64.urlsafe_b64encode(value).decode().rstrip("=")


@pytest.mark.parametrize("recipe", ALL, ids=range(len(ALL)))
def test_there_and_back_as_json_and_as_a_link(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    link = recipe.link(HERE)
    assert link.isascii() and len(link) < 1000
    for whole in (link, link[1:], f"https://example.org/page?x=1{link}"):
        assert Recipe.from_link(whole, HERE) == recipe


def test_the_json_is_what_a_page_can_keep():
    assert SORT.to_json() == '{"description":"Sort the words."}'
    assert json.loads(Recipe(blend=((1, SORT), (2, Recipe(upload=DIGEST))), space="factors").to_json()) == {
        "blend": [[1, {"description": "Sort the words."}], [2, {"upload": DIGEST}]],
        "space": "factors",
    }
    assert [leaf.description or leaf.upload for leaf in ALL[5].leaves] == [
        "Sort the words.",
        "Add the numbers.",
        DIGEST,
    ]
    assert Recipe("  Sort the words. \n") == SORT


# ---- made ----


def assert_same(adapter: Adapter, expected: Adapter, **tolerance: float) -> None:
    for module in expected.weights:
        delta = adapter.delta_w(module, 1)
        torch.testing.assert_close(delta, expected.delta_w(module, 1), **tolerance or {"atol": 1e-5, "rtol": 1e-5})


@pytest.fixture
def adapt(make_adapter):
    """A description's adapter: always the same random one."""
    return lambda text: make_adapter(len(text), description=text)


def test_make(adapt, make_adapter):
    a, b, c = adapt("Sort the words."), adapt("Add the numbers."), make_adapter(3)
    assert_same(SORT.make(adapt), a)
    assert_same(ADD.make(adapt), b.scaled(-0.5))
    assert_same(BLEND.make(adapt), Adapter.blend([a, b], [0.5, 0.75]))
    assert_same(Recipe(upload=DIGEST, strength=2).make(adapt, {DIGEST: c}), c.scaled(2))
    made = ALL[5].make(adapt, {DIGEST: make_adapter(3, rank=16)})
    expected = Adapter.blend([Adapter.blend([a, b], [0.5, 0.75]), make_adapter(3, rank=16)], [1, 0], "factors")
    assert_same(made, expected.scaled(0.1))
    assert made.rank == 16 and made.notice is None
    twice = Recipe(blend=((2, BLEND), (1, SORT))).make(adapt)
    assert twice.description == "2 * (0.5 * Sort the words. + 0.75 * Add the numbers.) + 1 * Sort the words."


def test_an_upload_that_is_not_at_hand_is_asked_for(adapt):
    for recipe in (Recipe(upload=DIGEST), ALL[5]):
        with pytest.raises(UserError, match="upload it again"):
            recipe.make(adapt)


def test_what_has_too_many_ranks_is_cut_and_says_so(adapt, make_adapter, monkeypatch):
    eight = Recipe(blend=tuple((0.125, Recipe("Sort" + "!" * i)) for i in range(8))).make(adapt)
    assert (eight.rank, eight.notice) == (64, None)  # as generated
    monkeypatch.setattr("hyperlora.recipe.MAX_RANK", 16)
    own = make_adapter(1, rank=16, notice="Far.")
    made = Recipe(blend=((1, SORT), (1, Recipe(upload=DIGEST))), strength=2).make(adapt, {DIGEST: own})
    cut, error = Adapter.blend([adapt("Sort the words."), own], [1, 1]).cut(16)
    assert error > 0.1 and made.notice == (
        f"Far. The adapter was cut from rank 24 to 16: the relative error in ‖ΔW‖ is {error:.2g}."
    )
    assert made.rank == 16 and within_rank(own) is own
    assert_same(made, cut.scaled(2))


def test_a_page_of_the_same_checkpoint_makes_the_same_adapter(tiny_base, tiny_hyperlora, answers):
    """And chats with it: a blend has more ranks than any adapter that the hypernetwork generates."""
    link = Recipe(blend=((0.75, Recipe("Reverse the words.")), (0.5, Recipe("Add the two numbers.")))).link(
        HyperLoRA.from_pretrained(tiny_hyperlora).checkpoint
    )
    pipe = hyperlora.pipeline(None, base=tiny_base, hyperlora=tiny_hyperlora)
    pipe.engine._eos = set()
    adapter = Recipe.from_link(link, pipe.hyperlora.checkpoint).make(pipe.adapt)
    assert adapter.rank == 16 and adapter.description == "0.75 * Reverse the words. + 0.5 * Add the two numbers."
    streams = pipe.engine.submit_many(["one two"] * 3, [adapter, None, pipe.adapt("Sort.")], max_new_tokens=30)
    answers(streams[0], "one two", adapter, 30)
    pipe.close()


# ---- what is refused ----


NUMBER = "should be a number from -4 to 4, not"
BAD = [  # as JSON, and what the sentence says
    ({}, "one of the three"),
    ({"description": "Sort.", "upload": DIGEST}, "one of the three"),
    ({"blend": []}, "one of the three"),
    ({"description": None, "strength": 1}, "one of the three"),
    ([], "a JSON object, not"),
    ("7", "a JSON object, not 7"),
    ("null", "a JSON object, not None"),
    ({"description": ""}, "The description is empty"),
    ({"description": "!?"}, "no letter or digit"),
    ({"description": ["Sort."]}, "must be text, not list"),
    ({"description": "Sort \ud83d."}, "half a character"),
    ({"description": "Sort\x00 it."}, r"holds '\\x00', which does not show"),
    ({"description": "Sort\x1b[2J it."}, r"holds '\\x1b', which does not show"),
    ({"description": "Sort\x85 it."}, r"holds '\\x85', which does not show"),
    ({"description": "Sort \u202egnp.exe"}, r"holds '\\u202e', which does not show"),
    ({"upload": "../../etc/passwd"}, "64 hex digits of its digest"),
    ({"upload": DIGEST.upper()}, "64 hex digits of its digest"),
    ({"upload": DIGEST + "\n"}, "64 hex digits of its digest"),
    ({"upload": 7}, "64 hex digits of its digest"),
    ({"description": "Sort.", "strength": 4.5}, f"strength {NUMBER} 4.5"),
    ({"description": "Sort.", "strength": "1"}, f"strength {NUMBER} '1'"),
    ({"description": "Sort.", "strength": True}, f"strength {NUMBER} True"),
    ({"description": "Sort.", "strength": None}, f"strength {NUMBER} None"),
    ('{"description": "Sort.", "strength": 1e999}', f"strength {NUMBER} inf"),
    ('{"description": "Sort.", "strength": 1' + "0" * 300 + "}", f"strength {NUMBER} 1000"),
    ({"blend": [[1, {"description": "Sort."}]]}, "of 2 to 8 descriptions and uploads, not 1"),
    ({"blend": [[1, {"description": "Sort."}]] * 9}, "of 2 to 8 descriptions and uploads, not 9"),
    ({"blend": [[1, {"blend": [[1, {"description": "A."}]] * 3}]] * 3}, "of 2 to 8 descriptions and uploads, not 9"),
    ({"blend": [[-5, {"description": "A."}], [1, {"description": "B."}]]}, f"weight {NUMBER} -5"),
    ({"blend": [[[], {"description": "A."}], [1, {"description": "B."}]]}, f"weight {NUMBER} \\[\\]"),
    ({"blend": [[1, {"description": "A."}], [1, "B."]]}, "a JSON object, not 'B.'"),
    ({"blend": {"description": "A."}}, r"a list of \[weight, recipe\]"),
    ({"blend": [[1]]}, r"a list of \[weight, recipe\]"),
    ({"blend": [[1, {"description": "A."}]] * 2, "space": "nowhere"}, "delta_w or factors, not 'nowhere'"),
    ({"blend": [[1, {"description": "A."}]] * 2, "space": ["factors"]}, "delta_w or factors, not"),
    ({"description": "Sort.", "<script>": 1}, "says '<script>', which this version"),
    ({"description": "Sort.", "\ud83d": 1}, r"says '\\ud83d', which"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "sentence"), BAD, ids=range(len(BAD)))
def test_a_recipe_that_is_no_good_is_refused_in_a_sentence(value, sentence):
    with pytest.raises(UserError, match=sentence):
        Recipe.from_json(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(UserError, match=sentence):
        Recipe.from_link(link_of(value), HERE)


UNREADABLE = [
    "",
    "{",
    '{"description": "Sort."} x',
    '{"description": "Sort.", "description": "Delete."}',
    '{"description": "Sort.", "strength": NaN}',
    '{"description": "Sort.", "strength": -Infinity}',
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_is_not_strictly_json_is_damaged(text):
    with pytest.raises(UserError, match="The recipe is damaged"):
        Recipe.from_json(text)
    with pytest.raises(UserError, match="The link is damaged"):
        Recipe.from_link(link_of(text), HERE)


def nested(levels: int) -> str:
    return (
        '{"blend":[[1,' * levels + '{"description":"A."}' + ',],[1,{"description":"B."}]]}'.replace(",]", "]") * levels
    )


def test_a_recipe_that_is_nested_too_deeply():
    assert Recipe.from_json(nested(2)).depth == 3
    with pytest.raises(UserError, match="nested too deeply"):
        Recipe(blend=((1, Recipe.from_json(nested(2))), (1, SORT)))
    for levels in (3, 20, 250):
        with pytest.raises(UserError, match="nested too deeply"):
            Recipe.from_json(nested(levels))
    for text in (nested(2000), "[" * 100_000, '{"blend":' * 11_000):
        with pytest.raises(UserError, match="damaged"):
            Recipe.from_json(text)
    with pytest.raises(UserError, match="nested too deeply"):
        Recipe.from_link(link_of(nested(20)), HERE)
    with pytest.raises(UserError, match="The link is damaged"):
        Recipe.from_link(link_of(b"[" * 1400), HERE)


def test_digits_without_end_are_damage():
    with pytest.raises(UserError, match="damaged"):
        Recipe.from_json('{"description": "Sort.", "strength": ' + "1" * 50_000 + "}")


def test_what_is_too_long_is_refused_before_it_is_read(monkeypatch):
    long = Recipe("word " * 399 + "end")
    with pytest.raises(UserError, match=r"would have 2,\d\d\d characters; the limit is 2,048: shorten"):
        long.link(HERE)
    assert Recipe.from_json(long.to_json()) == long
    escaped = json.dumps({"blend": [[0.125, {"description": "\U0001f600" * 1999 + "a"}]] * 4})
    assert len(Recipe.from_json(escaped).leaves) == 4  # as long as descriptions may be
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(UserError, match="longer than 100,000 characters"):
        Recipe.from_json("x" * 50_000_000)
    with pytest.raises(UserError, match="longer than 2,048 characters"):
        Recipe.from_link("#adapter=" + "x" * MAX_LINK, HERE)


@pytest.mark.parametrize(
    "link",
    [
        "#adapter=",
        "#adapter=e30",  # {}
        "#adapter=%3Cscript%3E",
        "#adapter=\u65e5\u672c",
        SORT.link(HERE)[:-7],
        SORT.link(HERE).replace("ey", "e y", 1),
        link_of(b"\xff\xfe{"),
        link_of({"description": "Sort."}, 7),
        link_of({"description": "Sort."}, "<b>elsewhere</b>"),
        link_of(b'{"checkpoint": "0123456789ab", "recipe": {"description": "Sort."}, "more": 1}'),
        link_of(b'{"checkpoint": "0123456789ab"}'),
        link_of(b'"0123456789ab"'),
    ],
)
def test_a_damaged_link(link):
    with pytest.raises(UserError, match=r"^The link is damaged: ask for it again"):
        Recipe.from_link(link, HERE)


@pytest.mark.parametrize("link", ["", "#", "#chat", "https://example.org/?adapter=x", "javascript:alert(1)"])
def test_a_link_to_something_else(link):
    with pytest.raises(UserError, match="leads to no adapter"):
        Recipe.from_link(link, HERE)
    with pytest.raises(UserError, match="The link must be text"):
        Recipe.from_link(None, HERE)


def test_a_link_for_another_checkpoint_says_which():
    sentence = f"for the checkpoint {ELSEWHERE}, and the one here is {HERE}"
    for link in (SORT.link(ELSEWHERE), link_of({"<b>": 1}, ELSEWHERE)):
        with pytest.raises(UserError, match=sentence):
            Recipe.from_link(link, HERE)
