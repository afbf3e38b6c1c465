"""What a visitor may set of an answer: system prompt, sampling, length, where it begins and where it ends.

The page keeps it as it was typed, text by field, and sends that with each question; an empty field leaves the model's
own default.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperlora.errors import UserError
from hyperlora.text import check_text
from hyperlora.ui.session import DAMAGED, read_json

if TYPE_CHECKING:
    from hyperlora.pipe import Pipeline

MAX_TEXT = 10_000  # characters of the system prompt, the beginning and the stop strings
NUMBERS = {
    "temperature": ("The temperature", float, 0, 5),
    "top_p": ("Top-p", float, 0.01, 1),
    "repetition_penalty": ("The repetition penalty", float, 0.5, 2),
    "max_new_tokens": ("Max tokens", int, 1, 100_000),
    "seed": ("The seed", int, 0, 2**63 - 1),
}
TEXTS = {"system": "The system prompt", "begin": "The beginning", "stop": "The stop strings"}
FEW = (
    ("temperature", "Temperature", "decimal"),
    ("top_p", "Top-p", "decimal"),
    ("repetition_penalty", "Repetition penalty", "decimal"),
    ("max_new_tokens", "Max tokens", "numeric"),
    ("seed", "Seed", "numeric"),
)


def _label(name: str, label: str, control: str) -> str:
    """A control with its name above it, and below what there is to say of it."""
    said = f'<p id="{name}_said" aria-live="polite"></p>'
    return f'<div class="field"><label for="set_{name}">{label}</label>{control}{said}</div>'


def _area(name: str, label: str, rows: int, hint: str = "") -> str:
    attributes = f'id="set_{name}" rows="{rows}" maxlength="{MAX_TEXT}" placeholder="{hint}"'
    return _label(name, label, f'<textarea {attributes} aria-describedby="{name}_said"></textarea>')


def _box(name: str, label: str, mode: str) -> str:
    attributes = f'id="set_{name}" inputmode="{mode}" maxlength="20" autocomplete="off"'
    return _label(name, label, f'<input {attributes} aria-describedby="{name}_said">')


LINE_BREAK = r"\n is a line break"
MORE = f"""<button type="button" id="more_button" popovertarget="settings" aria-haspopup="dialog">More</button>
<div id="settings" popover role="dialog" aria-label="More for the answers">
<button type="button" class="close" popovertarget="settings" aria-label="Close">&times;</button>
{_area("system", "System prompt", 3)}
{_area("begin", "Start the reply with", 1)}
<div class="few">{"".join(_box(*each) for each in FEW)}</div>
{_area("stop", "Stop at any of these, a line each", 2, LINE_BREAK)}
<div class="presets"><select id="preset" aria-label="Preset"></select>
<button type="button" id="preset_delete">Delete</button>
<input id="preset_name" aria-label="Save as" placeholder="Save as…" autocomplete="off">
<button type="button" id="preset_save">Save</button>
<button type="button" id="set_none">Clear all</button></div>
<p id="preset_note" role="status"></p>
</div>"""


@dataclass(frozen=True)
class Settings:
    """How answers are to be given."""

    system: str = ""
    begin: str = ""
    """What they start with, without space behind it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Generation options and seed, as `Pipeline.chat` takes them."""

    def messages(self, asked: list[dict[str, str]], begun: str) -> list[dict[str, str]]:
        """What is asked with the system's message before it, and the answer's beginning behind."""
        before = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return before + asked + ([{"role": "assistant", "content": begun}] if begun else [])


def read_settings(kept: object) -> Settings:
    """What the page sends -> settings; `UserError` for the first that is wrong."""
    settings, wrong = _read(kept)
    for sentence in wrong.values():
        raise UserError(sentence)
    return settings


def check(kept: object, pipe: "Pipeline") -> str:
    """-> JSON: "wrong", a sentence by field; "default", what empty fields mean; "hint", what else there is to say."""
    from hyperlora.prompt import takes_system

    own = pipe.defaults
    default = {name: f"{getattr(own, name):g}" for name in NUMBERS if name != "seed"} | {"seed": "random"}
    if not own.do_sample:
        default |= {"temperature": "0: the likeliest", "top_p": "1"}
    if penalty := pipe.engine.unadapted.get("repetition_penalty"):
        default["repetition_penalty"] += f"; {penalty:g} for the base"
    hint = (
        {}
        if takes_system(pipe.tokenizer)
        else {"system": "This model's prompt has no place for one: it goes in front of a message."}
    )
    return json.dumps({"wrong": _read(kept)[1], "default": default, "hint": hint})


def _read(kept: object) -> tuple[Settings, dict[str, str]]:
    """The settings, and a sentence for each field that is wrong. Raises `UserError` for what no page holds."""
    from hyperlora.chat import MAX_STOP, MAX_STOPS

    typed = read_json(kept, 20 * MAX_TEXT) or {}
    if not isinstance(typed, dict):
        raise UserError(DAMAGED)
    texts, options, wrong = {}, {}, {}
    for name, what in (TEXTS | {name: number[0] for name, number in NUMBERS.items()}).items():
        texts[name] = check_text(typed.get(name, ""), what)
        if len(texts[name]) > MAX_TEXT:
            wrong[name] = f"{what} must have at most {MAX_TEXT:,} characters."
    for name, (what, kind, low, high) in NUMBERS.items():
        if not texts[name].strip():
            continue
        try:
            options[name] = kind(texts[name])
            good = low <= options[name] <= high  # NaN fails the comparison
        except ValueError:
            good = False
        if not good:
            wrong[name] = f"{what} must be a {'whole ' * (kind is int)}number from {low:,} to {high:,}."
    stops = [line.replace(r"\n", "\n") for line in texts["stop"].split("\n") if line]
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP for stop in stops):
        wrong["stop"] = f"There must be at most {MAX_STOPS} stop strings, each of at most {MAX_STOP} characters."
    if stops:
        options["stop_strings"] = stops
    if "temperature" in options:
        options["do_sample"] = options["temperature"] >= 0.001
        if not options["do_sample"]:
            del options["temperature"]  # the likeliest token is taken
    elif "top_p" in options:
        options["do_sample"] = True
    begin = texts["begin"].rstrip(" ") if texts["begin"].strip() else ""
    return Settings(texts["system"], begin, options), wrong
