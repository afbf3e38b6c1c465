"""An adapter as a recipe: the few hundred bytes that it is made of again, for a shelf or a link."""

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hyperlora.errors import UserError, shown
from hyperlora.text import check_description, check_text

if TYPE_CHECKING:  # the page reads what a browser kept before torch is imported
    from hyperlora.lora import Adapter

MAX_LEAVES, MAX_DEPTH = 8, 3  # descriptions and uploads in a recipe; a blend of blends of descriptions has depth 3
MAX_STRENGTH = 4  # of strengths and weights, either way
MAX_RANK = 64  # of a blend, and of what visitors bring
MAX_LINK = 2_048  # characters after the #
MAX_JSON = 100_000  # characters: descriptions at their longest, each character written as an escape of six
PREFIX = "adapter="  # of a link's fragment
DAMAGED_LINK = "The link is damaged: ask for it again, and copy the whole of it."
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they show a text in another order than it has


@dataclass(frozen=True)
class Recipe:
    """What an adapter is made of: a description, or an upload, or a blend; `UserError` where it is none or too much."""

    description: str | None = None
    upload: str | None = None
    """The `Adapter.digest` of an adapter that was uploaded, and cannot be made again without its file."""
    blend: tuple[tuple[float, "Recipe"], ...] = ()
    """Weights, from -4 to 4, and what they are of: at most eight descriptions and uploads in all."""
    space: Literal["delta_w", "factors"] = "delta_w"
    """Where it is blended: see `Adapter.blend`."""
    strength: float = 1
    """From -4 to 4, where 1 is as generated and 0 is the base model."""

    def __post_init__(self) -> None:
        if (self.description is not None) + (self.upload is not None) + bool(self.blend) != 1:
            raise UserError("A recipe should hold one of the three: a description, an upload, or a blend.")
        if self.description is not None:
            object.__setattr__(self, "description", _check_visible(check_description(self.description)))
        if self.upload is not None and not _is_hex(self.upload, 64):
            raise UserError(f"An upload is named by the 64 hex digits of its digest, not by {shown(self.upload)}.")
        if self.space not in ("delta_w", "factors"):
            raise UserError(f"A blend's space is delta_w or factors, not {shown(self.space)}.")
        for name, number in [("strength", self.strength), *(("weight", weight) for weight, _ in self.blend)]:
            if type(number) not in (int, float) or not abs(number) <= MAX_STRENGTH:  # NaN fails the comparison
                limits = f"from {-MAX_STRENGTH} to {MAX_STRENGTH}"
                raise UserError(f"The recipe's {name} should be a number {limits}, not {shown(number)}.")
        if len(self.blend) == 1 or len(self.leaves) > MAX_LEAVES:
            raise UserError(f"A blend should be of 2 to {MAX_LEAVES} descriptions and uploads, not {len(self.leaves)}.")
        if self.depth > MAX_DEPTH:
            raise UserError(
                "The recipe's blends are nested too deeply: a blend may hold blends, and these may hold no other."
            )

    @property
    def leaves(self) -> list["Recipe"]:
        """The descriptions and uploads that it is made of, those of blends in blends too."""
        return [leaf for _, part in self.blend for leaf in part.leaves] if self.blend else [self]

    @property
    def depth(self) -> int:
        """1 for a description or an upload, and one more than its deepest part for a blend."""
        return 1 + max((part.depth for _, part in self.blend), default=0)

    def __str__(self) -> str:
        """In words, for whoever is to decide on it: no weight or strength is said that is 1."""
        if self.blend:
            text = " + ".join(f"{weight:g} * {_within(part)}" for weight, part in self.blend)
        else:
            text = "an uploaded adapter" if self.description is None else f"“{self.description}”"
        return text if self.strength == 1 else f"{self.strength:g} * ({text})"

    def make(self, adapt: Callable[[str], "Adapter"], uploads: Mapping[str, "Adapter"] | None = None) -> "Adapter":
        """The adapter: `adapt` gives that of a description, as `Pipeline.adapt` does; `uploads` are at hand, by digest.

        A blend has the notices of its parts, and of being cut: see `within_rank`. Raises `UserError` for an upload that
        is not at hand, and for parts that do not belong together.
        """
        if self.description is not None:
            adapter = adapt(self.description)
        elif self.upload is not None:
            adapter = (uploads or {}).get(self.upload)
            if adapter is None:
                raise UserError("This adapter was uploaded, and its file is not here any more: upload it again.")
        else:
            from hyperlora.lora import Adapter

            parts = [part.make(adapt, uploads) for _, part in self.blend]
            for (_, recipe), part in zip(self.blend, parts, strict=True):
                if recipe.blend and part.description:
                    part.description = f"({part.description})"
            adapter = Adapter.blend(parts, [weight for weight, _ in self.blend], self.space)
            notices = dict.fromkeys(part.notice for part in parts if part.notice)
            adapter = within_rank(replace(adapter, notice=" ".join(notices) or None))
        return adapter.scaled(self.strength)

    # ---- text ----

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return _compact(self._value())

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe in a JSON text, which nobody need have checked: `UserError` says what is wrong with it."""
        if len(check_text(text, "The recipe")) > MAX_JSON:
            raise UserError(f"The recipe is longer than {MAX_JSON:,} characters, which no recipe is: leave it out.")
        return _read(_parse(text, "The recipe is damaged (not valid JSON): leave it out, or get it again."))

    def link(self, checkpoint: str) -> str:
        """The fragment of a URL, "#adapter=" and base64url, for those who run the checkpoint (`HyperLoRA.checkpoint`).

        Raises `UserError` where it is longer than 2,048 characters.
        """
        data = _compact({"checkpoint": checkpoint, "recipe": self._value()}).encode()
        fragment = PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")
        if len(fragment) > MAX_LINK:
            raise UserError(
                f"A link to this adapter would have {len(fragment):,} characters; the limit is {MAX_LINK:,}: shorten "
                "its descriptions, or blend fewer."
            )
        return f"#{fragment}"

    @classmethod
    def from_link(cls, link: str, checkpoint: str) -> "Recipe":
        """The recipe in a link, or in its fragment alone, by anybody; `checkpoint` is the one that runs here.

        Raises `UserError` where it is damaged, too long or of another checkpoint, or where the recipe is no good.
        """
        fragment = check_text(link, "The link").rpartition("#")[2]
        if len(fragment) > MAX_LINK:
            raise UserError(f"The link is longer than {MAX_LINK:,} characters, which no link to an adapter is.")
        if not fragment.startswith(PREFIX):
            raise UserError(f"The link leads to no adapter: one that does has #{PREFIX} in it.")
        code = fragment.removeprefix(PREFIX)
        try:
            text = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True).decode()
        except ValueError:
            raise UserError(DAMAGED_LINK) from None
        value = _parse(text, DAMAGED_LINK)
        if (
            not isinstance(value, dict)
            or set(value) != {"checkpoint", "recipe"}
            or not _is_hex(value["checkpoint"], 12)
        ):
            raise UserError(DAMAGED_LINK)
        if value["checkpoint"] != checkpoint:
            raise UserError(
                f"The link is for the checkpoint {value['checkpoint']}, and the one here is {checkpoint}: open it "
                "where that one runs, or describe the task here."
            )
        return _read(value["recipe"])

    def _value(self) -> dict[str, Any]:
        """As JSON types, without what a recipe need not say."""
        value: dict[str, Any] = {}
        if self.description is not None:
            value["description"] = self.description
        if self.upload is not None:
            value["upload"] = self.upload
        if self.blend:
            value["blend"] = [[weight, part._value()] for weight, part in self.blend]
        if self.space != "delta_w":
            value["space"] = self.space
        if self.strength != 1:
            value["strength"] = self.strength
        return value


def within_rank(adapter: "Adapter") -> "Adapter":
    """The adapter, cut to rank 64 where it has more, with a notice of the error: all rows of a batch are as wide as the
    widest."""
    cut, error = adapter.cut(MAX_RANK)
    if cut is adapter:
        return adapter
    said = f"The adapter was cut from rank {adapter.rank} to {MAX_RANK}: the relative error in ‖ΔW‖ is {error:.2g}."
    return replace(cut, notice=f"{adapter.notice} {said}" if adapter.notice else said)


def _within(part: Recipe) -> str:
    """A part of a blend in words, in brackets where it is a blend itself."""
    return f"({part})" if part.blend and part.strength == 1 else str(part)


def _read(value: object) -> Recipe:
    if not isinstance(value, dict):
        raise UserError(f"A recipe should be a JSON object, not {shown(value)}.")
    if unknown := sorted(set(value) - {"description", "upload", "blend", "space", "strength"}):
        raise UserError(f"The recipe says {shown(unknown[0])}, which this version of HyperLoRA does not know.")
    if "blend" in value:
        parts = value["blend"]
        if not isinstance(parts, list) or not all(isinstance(part, list) and len(part) == 2 for part in parts):
            raise UserError(f"The recipe's blend should be a list of [weight, recipe], not {shown(parts)}.")
        value = value | {"blend": tuple((weight, _read(part)) for weight, part in parts)}
    return Recipe(**value)


def _parse(text: str, damaged: str) -> Any:
    """The JSON value, strictly: no name twice, no NaN or infinity."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name twice")
        return found

    def no_number(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError):
        raise UserError(damaged) from None


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None


def _check_visible(text: str) -> str:
    """The text as it is; `UserError` where a person who reads it, in somebody's link, would not see what it says."""
    for character in text:
        if (unicodedata.category(character) == "Cc" and character not in "\t\n\r") or character in BIDI:
            raise UserError(f"The description holds {character!a}, which does not show: leave that character out.")
    return text
