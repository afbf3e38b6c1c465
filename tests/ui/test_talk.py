"""How answers are to be given, several answers to a message, and one that goes on: the page's handlers, no browser."""

import json
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import hyperlora
from hyperlora.errors import UserError
from hyperlora.model import Model
from hyperlora.prompt import format_prompt
from hyperlora.ui.compare import Compare
from hyperlora.ui.handlers import CONTINUED, OTHER, SAMPLED, SKIP, Handlers, bubbles
from hyperlora.ui.session import MAX_OTHERS, MAX_TURNS, Turn, read_turns
from hyperlora.ui.settings import MAX_TEXT, Settings, check, read_settings
from tests.ui.visitor import ADD, REVERSE, Visitor, by_line, side, text_of, written

USER, SYSTEM = {"role": "user", "content": "one two"}, {"role": "system", "content": "Be brief."}


def typed(**fields: object) -> str:
    """Settings as a page sends them."""
    return json.dumps(fields)


def again(visitor: Visitor, chosen: str = "") -> Turn:
    """Ask the last message once more."""
    visitor.hear(visitor.on.retry(*visitor.asked(chosen), visitor.request), again=True)
    return visitor.conversation[-1]


# ---- settings ----


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, Settings()),
        ({"system": "", "temperature": " ", "stop": "\n\n"}, Settings()),
        ({"system": " Be\nbrief. ", "begin": "Sure: \n "}, Settings(" Be\nbrief. ", "Sure: \n")),
        ({"begin": "  "}, Settings()),
        ({"temperature": "0.7", "top_p": "0.9"}, {"temperature": 0.7, "top_p": 0.9, "do_sample": True}),
        ({"temperature": "0", "seed": "0"}, {"do_sample": False, "seed": 0}),
        ({"top_p": "0.5"}, {"top_p": 0.5, "do_sample": True}),
        ({"repetition_penalty": "1.2", "max_new_tokens": "7"}, {"repetition_penalty": 1.2, "max_new_tokens": 7}),
        ({"seed": str(2**63 - 1)}, {"seed": 2**63 - 1}),
        ({"stop": "a\n\n b \n\\n\\n"}, {"stop_strings": ["a", " b ", "\n\n"]}),
    ],
)
def test_settings_are_read_and_an_empty_field_is_the_models_own(fields: dict, settings: object) -> None:
    assert read_settings(typed(**fields)) == (Settings("", "", settings) if isinstance(settings, dict) else settings)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("temperature", "hot", "The temperature must be a number from 0 to 5."),
        ("temperature", "-1", "The temperature must be a number from 0 to 5."),
        ("temperature", "nan", "The temperature must be a number from 0 to 5."),
        ("top_p", "0", "Top-p must be a number from 0.01 to 1."),
        ("repetition_penalty", "1e999", "The repetition penalty must be a number from 0.5 to 2."),
        ("max_new_tokens", "1.5", "Max tokens must be a whole number from 1 to 100,000."),
        ("max_new_tokens", "9" * 5000, "Max tokens must be a whole number"),
        ("seed", "-1", "The seed must be a whole number from 0"),
        ("stop", "a" * 201, "at most 16 stop strings, each of at most 200 characters."),
        ("stop", "a\n" * 17, "at most 16 stop strings"),
        ("system", "a" * (MAX_TEXT + 1), "The system prompt must have at most 10,000 characters."),
        ("begin", "a" * (MAX_TEXT + 1), "The beginning must have at most"),
    ],
    ids=lambda value: value[:20],
)
def test_a_setting_that_is_wrong_is_one_sentence_and_nothing_is_sent(
    visitor: Visitor, pipe: hyperlora.Pipeline, field: str, value: str, sentence: str
) -> None:
    visitor.conversation = [Turn("one", "No adapter", "two", "stop")]
    visitor.typed = typed(**{field: value})
    found = json.loads(check(visitor.typed, pipe))["wrong"]
    assert found.keys() == {field} and sentence in found[field]
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        assert visitor.hear(visitor.on.send(*visitor.asked(""), "three", visitor.request)) == [SKIP]


@pytest.mark.parametrize("kept", [None, 3, "[", "[1]", "3", '{"seed": 3}', '{"system": "\\ud83d"}', "9" * 300_000])
def test_settings_that_no_page_holds_are_one_sentence(on: Handlers, kept: object) -> None:
    with pytest.raises(UserError, match=r"[.]$"):
        read_settings(kept)
    assert json.loads(on.check(kept))["hint"]["system"].endswith(".")


def test_empty_fields_say_what_they_mean(
    model: Model, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.engine, "unadapted", {"repetition_penalty": 1.15})
    said = json.loads(check("", pipe))
    assert said["default"] == {
        "temperature": "0: the likeliest",
        "top_p": "1",
        "repetition_penalty": "1; 1.15 for the base",
        "max_new_tokens": "40",
        "seed": "random",
    }
    assert "no place for one" in said["hint"]["system"]
    monkeypatch.setattr(pipe.engine, "defaults", {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    assert json.loads(check("", pipe))["default"].items() >= {"temperature": "0.6", "top_p": "0.9"}.items()


def test_settings_are_those_of_the_answer_and_of_both_sides_that_are_compared(
    visitor: Visitor, model: Model, pipe: hyperlora.Pipeline
) -> None:
    visitor.typed = typed(system="Be brief.", begin="So: ", temperature="1", seed="5", max_new_tokens="9", stop="~")
    options = {"do_sample": True, "temperature": 1.0, "seed": 5, "max_new_tokens": 9, "stop_strings": ["~"]}
    wanted = "So:" + pipe.chat([SYSTEM, USER, {"role": "assistant", "content": "So:"}], **options)
    assert visitor.ask("one two") == (wanted, "No adapter")
    asked = side("left", settings=visitor.typed)
    *_, html = Compare(model).answer(asked, "one two", 1, SimpleNamespace(session_hash="a"))
    assert text_of(re.search('<div class="verbatim">(.*?)</div>', html, re.DOTALL)[0]) == wanted
    *_, html = Compare(model).answer(side("left", settings=typed(seed="x")), "a", 1, SimpleNamespace(session_hash="a"))
    assert "The seed must be" in html


# ---- several answers to a message ----


def test_retry_is_another_sample_where_the_likeliest_answer_was_given(
    visitor: Visitor, pipe: hyperlora.Pipeline
) -> None:
    visitor.typed = typed(seed="5")
    likeliest, _ = visitor.ask("one two")
    second = again(visitor)
    assert (second.answer, second.by) == (pipe.chat("one two", seed=6, **OTHER), f"No adapter{SAMPLED}")
    assert second.answer != likeliest and second.place == 1
    adapted = again(visitor, REVERSE)  # the likeliest of another adapter is new
    assert (adapted.answer, adapted.by) == (pipe.chat("one two", pipe.adapt(REVERSE)), REVERSE)
    fourth = again(visitor)  # and that without was the first
    assert (fourth.answer, fourth.place) == (pipe.chat("one two", seed=8, **OTHER), 3)
    visitor.typed = typed(seed="5", system="Be brief.")
    assert again(visitor).answer == pipe.chat([SYSTEM, USER])
    visitor.typed = typed(seed="5", temperature="2")
    sampled = again(visitor)
    assert sampled.answer == pipe.chat("one two", do_sample=True, temperature=2.0, seed=10)
    assert (sampled.by, sampled.how) == ("No adapter", "")


def test_retry_of_an_answer_that_was_stopped_is_the_likeliest(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    visitor.conversation = [Turn("one two", "No adapter", "", "stopped")]
    assert again(visitor).answer == pipe.chat("one two")


def test_no_more_answers_are_counted_than_the_page_keeps(visitor: Visitor) -> None:
    visitor.conversation = [Turn("one", "No adapter", "1", "stop", how="h", others=["a"] * MAX_OTHERS, place=3)]
    turn = again(visitor)
    assert turn.others == ["a"] * (MAX_OTHERS - 1) + ["h"] and turn.place == MAX_OTHERS


# ---- an answer goes on ----


def test_an_answer_that_was_cut_off_goes_on(visitor: Visitor, pipe: hyperlora.Pipeline) -> None:
    visitor.typed = typed(max_new_tokens="5")
    begun, _ = visitor.ask("one two")
    others = {"others": ["a", "b"], "place": 1}
    visitor.conversation = [Turn("one two", "No adapter", begun, "length", **others)]
    visitor.typed = ""
    for chosen, by in (("", "No adapter"), (ADD, f"No adapter{CONTINUED}{ADD}"), (ADD, f"No adapter{CONTINUED}{ADD}")):
        before = visitor.conversation[0].answer
        adapter = pipe.adapt(ADD) if chosen else None
        visitor.hear(visitor.on.go_on(*visitor.asked(chosen), visitor.request), again=True)
        (turn,) = visitor.conversation
        more = pipe.chat([USER, {"role": "assistant", "content": before}], adapter)
        assert (turn.answer, turn.by, turn.end) == (before.rstrip(" ") + more, by, "length")
        assert {"others": turn.others, "place": turn.place} == others


# ---- what does not fit ----


def test_a_long_conversation_is_trimmed_and_says_so_beside_the_answer(
    visitor: Visitor, pipe: hyperlora.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor.conversation = [Turn(f"{i} {'x' * 20}", "No adapter", "y" * 20, "stop") for i in range(12)]
    earlier = list(visitor.conversation)
    answer, _ = visitor.ask("last")
    turn = visitor.conversation[-1]
    assert 0 < turn.missed < 12
    read = [
        {"role": role, "content": text}
        for old in earlier[turn.missed :]
        for role, text in (("user", old.question), ("assistant", old.answer))
    ]
    asked = [*read, {"role": "user", "content": "last"}]
    assert answer == pipe.chat(asked)
    assert 256 - 52 < len(format_prompt(pipe.tokenizer, asked)) + 40 <= 256  # another turn would take 52
    assert f"The first {turn.missed} messages were not read" in bubbles([turn])[1]["content"][1]["text"]
    monkeypatch.setattr(pipe, "multi_turn", False)
    visitor.ask("again")
    assert visitor.conversation[-1].missed == 0


def test_turns_that_are_not_even_sent_count_as_not_read(
    visitor: Visitor, answering: Callable[..., None], on: Handlers
) -> None:
    answering("1")
    visitor.conversation = [Turn(str(i), "No adapter", "", "stop") for i in range(MAX_TURNS + 3)]
    sent = Visitor(on, visitor.conversation[3:])
    for each in (visitor, sent):
        each.ask("last")
    assert visitor.conversation[-1].missed == sent.conversation[-1].missed + 3
    (older, *chat), *_ = on.show(written(visitor.conversation))
    assert "Older messages (4) are kept" in older["content"][0]["text"]
    numbers = [re.search('edit" value="(.*?)"', bubble["content"][1]["text"])[1] for bubble in chat[1::2]]
    assert numbers == [str(i) for i in range(4, MAX_TURNS + 4)]  # as the page counts them


# ---- under the answer ----


def test_the_line_under_an_answer_is_whole_in_its_title_and_offers_what_can_be_done() -> None:
    whole = Turn("a", '<b> "x"', "b", "stop", speed=12.345)
    cut = Turn("a", "B", "b", "length", others=["", ""], place=2)
    first, last = (bubbles([turn], first=7)[2]["content"][1]["text"] for turn in (whole, cut))
    assert 'title="&lt;b&gt; &quot;x&quot; · 12.3 tokens/s · ended by itself"' in first and "<b>" not in first
    assert re.findall('class="act (.*?)" value="7"', first) == ["copy", "edit"]
    assert re.findall('class="act (.*?)" value="7"', last) == ["previous", "next", "on", "copy", "edit"]
    assert ">3/3<" in last and re.findall('title="([^"]*)" disabled', last) == ["The next answer"]
    assert by_line(bubbles([cut])[1]) == "B · cut off at the token limit"
    assert "button" not in bubbles([cut], busy=True)[1]["content"][1]["text"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speed", -1),
        ("speed", float("nan")),
        ("speed", "<b>"),
        ("missed", 1.5),
        ("missed", -1),
        ("place", 1),
        ("place", True),
        ("others", "ab"),
        ("others", [3]),
        ("others", [""] * (MAX_OTHERS + 1)),
        ("how", ["a"]),
    ],
)
def test_what_no_turn_has_is_one_sentence(name: str, value: object) -> None:
    with pytest.raises(UserError, match=r"^What the page kept .*[.]$"):
        read_turns(json.dumps([{"question": "a", "by": "b", name: value}]))
