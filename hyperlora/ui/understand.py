"""What there is to know of an adapter: how much it changes where, what it is near to, what it does to an answer."""

import threading
from html import escape
from math import exp
from typing import TYPE_CHECKING

import gradio as gr

from hyperlora.errors import sentence
from hyperlora.model import Model
from hyperlora.ui.session import Shelved, messages_of, read_adapter, read_shelf, read_turns
from hyperlora.ui.settings import read_settings
from hyperlora.ui.words import js, status

if TYPE_CHECKING:
    from hyperlora.likelihood import Token
    from hyperlora.lora import Adapter
    from hyperlora.pca import DescriptionMap
    from hyperlora.pipe import Pipeline

NEAREST = 5  # training descriptions that are named
DOTS = 1_500  # of them on the map
WIDTH, HEIGHT = 640, 320  # of the map, in its own units
STRONGEST, AGREED = 8, 0.1  # tokens of an answer that are listed; log-probabilities that differ by less are alike
LOOKED_AT = 2_000  # characters of an answer
NOTHING = "Select an adapter first: without one there is nothing to show."


class Understand:
    """The mode's events over one model."""

    def __init__(self, model: Model):
        self.model = model
        self._map: DescriptionMap | None = None
        self._lock = threading.Lock()

    def show(self, chosen: object, shelf: object) -> str:
        """-> HTML: the selected adapter's ΔW, its nearest training descriptions, and the shelf on the map of all."""
        try:
            if (shelved := read_adapter(chosen)) is None:
                return status("done", NOTHING)
            pipe, adapter = self.model.pipe, self.model.of(shelved)
            return "".join(
                (
                    f"<h2>{escape(shelved.name)}</h2>",
                    self._rests_on(pipe, adapter),
                    norms_html(adapter),
                    self._nearest_html(pipe, shelved, read_shelf(shelf)),
                )
            )
        except Exception as error:
            return status("error", sentence(error))

    def tokens(self, chosen: object, describe: object, kept: object, typed: object) -> str:
        """-> HTML: the conversation's last answer, token by token, under the selected adapter and under the base."""
        from hyperlora.likelihood import disagreements

        try:
            if (shelved := read_adapter(chosen)) is None:
                return ""
            turns = [turn for turn in read_turns(kept) if turn.answer.strip()]
            if not turns:
                return status("done", "Ask something first: then the answer is looked at token by token.")
            pipe, last = self.model.pipe, turns[-1]
            adapter, begun = self.model.of(shelved), last.answer[:LOOKED_AT]
            messages = read_settings(typed).messages(messages_of(turns[:-1], last.question, pipe.multi_turn), "")
            room = min(pipe.engine.context // 2, len(begun))  # a token has a character at least
            given = pipe.shorten(messages, adapter, bool(describe), room=room)
            found = disagreements(pipe, given, begun, adapter, bool(describe))
            cut = f"<p>Of the answer the first {LOOKED_AT:,} characters.</p>" if begun != last.answer else ""
            return tokens_html(found) + cut
        except Exception as error:
            return status("error", sentence(error))

    def _rests_on(self, pipe: "Pipeline", adapter: "Adapter") -> str:
        """The notices, and the numbers that they come from."""
        config = pipe.hyperlora.config
        notices = filter(None, (adapter.notice, pipe.hyperlora.norm_notice(adapter)))
        trained = ", and {:.3g} to {:.3g} for the trained tasks".format(*config.norm_range) if config.norm_range else ""
        facts = [f"Rank {adapter.rank}; ‖ΔW‖ is {adapter.norm():.3g} over all layers{trained}."]
        if adapter.nearest and config.notice_threshold is not None:
            facts.append(
                f"The nearest training description has similarity {adapter.nearest[1]:.2f}; under "
                f"{config.notice_threshold:.2f} the page says that no trained task is near."
            )
        lines = [*(status("notice", notice) for notice in notices), *map(escape, facts)]
        return "".join(f"<p>{line}</p>" for line in lines)

    def _nearest_html(self, pipe: "Pipeline", shelved: Shelved, shelf: list[Shelved]) -> str:
        hyperlora, own = pipe.hyperlora, shelved.recipe.description
        if not hyperlora.descriptions:
            return "<p>This hypernetwork came without its training descriptions, so there is no map of them.</p>"
        named = {each.recipe.description: each.name for each in (*shelf, shelved) if each.recipe.description}
        if not named:
            return ""
        embeddings = pipe.engine.call(lambda: hyperlora.embedder.embed(list(named)))
        found = ""
        if own is not None:
            [near] = hyperlora.nearest(embeddings[[list(named).index(own)]].to(hyperlora.embeddings.device), NEAREST)
            rows = "".join(f"<li>{escape(text)} <span>{cosine:.2f}</span></li>" for text, cosine in near)
            found = f"<h3>Nearest training descriptions, with their similarity</h3><ol>{rows}</ol>"
        with self._lock:
            if self._map is None:
                from hyperlora.pca import map_descriptions

                self._map = map_descriptions(hyperlora)
        places = self._map.place(embeddings).tolist()
        return found + map_html(self._map, list(zip(named.values(), places, strict=True)), shelved.name)

    def build(self) -> None:
        """The mode, in the layout that is open, and its events."""
        event = {"preprocess": False, "api_visibility": "private", "show_progress": "hidden"}
        chosen, shelf, kept, describe, typed = (gr.Textbox("", visible="hidden") for _ in range(5))
        look = gr.Button(visible="hidden", elem_id="look")
        with gr.Column(elem_id="understand", elem_classes="mode"):
            shown, tokens = gr.HTML(elem_id="shown"), gr.HTML(elem_id="tokens")
        looked = look.click(
            self.show, [chosen, shelf], [shown], js=js("look"), trigger_mode="always_last", concurrency_limit=4, **event
        )
        looked.then(self.tokens, [chosen, describe, kept, typed], [tokens], js=js("lookAt"), **event)


def norms_html(adapter: "Adapter") -> str:
    """A chart a module: a bar a layer, as high as ‖ΔW‖ is there."""
    norms, charts = adapter.norms(), []
    most = float(norms.max()) or 1.0
    for module, column in zip(adapter.weights, norms.T.tolist(), strict=True):
        wide = 100 / len(column)
        bars = "".join(
            f'<rect x="{i * wide + wide * 0.1:.2f}" y="{40 - 40 * norm / most:.2f}" width="{wide * 0.8:.2f}" '
            f'height="{40 * norm / most:.2f}"><title>layer {i}: {norm:.3g}</title></rect>'
            for i, norm in enumerate(column)
        )
        high, low = column.index(max(column)), column.index(min(column))
        text = f"{module}: from {column[low]:.3g} in layer {low} to {column[high]:.3g} in layer {high}"
        charts.append(
            f"<figure><figcaption>{escape(text)}</figcaption>"
            f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{escape(text)}">{bars}</svg>'
            "</figure>"
        )
    return f'<h3>‖ΔW‖ by layer</h3><div class="bars">{"".join(charts)}</div>'


def map_html(known: "DescriptionMap", places: list[tuple[str, list[float]]], selected: str) -> str:
    """The training descriptions as dots, and the shelf's among them, with their names."""
    step = -(-len(known.descriptions) // DOTS)
    dots = [*zip(known.descriptions[::step], known.points[::step].tolist(), strict=True)]
    xs, ys = ([point[axis] for _, point in dots] + [at[axis] for _, at in places] for axis in (0, 1))

    def place(point: list[float]) -> tuple[float, float]:
        """Where it is drawn, a little from the edge."""
        shares = ((at - min(all)) / (max(all) - min(all) or 1) for at, all in zip(point, (xs, ys), strict=True))
        x, y = shares
        return 12 + x * (WIDTH - 24), 12 + (1 - y) * (HEIGHT - 24)

    drawn = []
    for text, point in dots:
        x, y = place(point)
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"><title>{escape(text)}</title></circle>')
    for name, point in places:
        x, y = place(point)
        kind = "own now" if name == selected else "own"
        end = ' text-anchor="end"' if x > WIDTH / 2 else ""
        label = escape(name if len(name) < 40 else name[:38] + "…")
        drawn.append(
            f'<g class="{kind}"><circle cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(name)}</title></circle>'
            f'<text x="{x + (-9 if end else 9):.1f}" y="{y + 4:.1f}"{end}>{label}</text></g>'
        )
    which = f"{len(dots):,} of {len(known.descriptions):,}" if step > 1 else f"All {len(dots):,}"
    said = f"{which} training descriptions and your adapters; the map shows {known.explained:.0%} of how they differ."
    return (
        f'<figure class="map"><figcaption>{escape(said)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(drawn)}</svg></figure>'
    )


def tokens_html(tokens: "list[Token]") -> str:
    """The answer, each token as dark as the adapter makes it likelier, and underlined where the base would say another;
    then those of most effect, in a table."""

    def said(token: "Token") -> str:
        return token.text if token.text.strip() else "(end)" if not token.text else repr(token.text)[1:-1]

    def per_cent(log_prob: float) -> str:
        return f"{100 * exp(log_prob):.0f} %"

    spans, rows = [], []
    for token in tokens:
        other = token.instead != token.text
        share = min(1.0, abs(token.adapted - token.base) / 5)
        kind = "more" if token.adapted > token.base else "less"
        title = f"{per_cent(token.adapted)}, base {per_cent(token.base)}"
        title += f"; the base would say {token.instead!r}" if other else ""
        kind += " other" if other else ""
        style = f"--share: {60 * share:.0f}%"
        spans.append(f'<span class="{kind}" style="{style}" title="{escape(title)}">{escape(token.text)}</span>')
    for token in sorted(tokens, key=lambda token: -abs(token.adapted - token.base))[:STRONGEST]:
        if abs(token.adapted - token.base) < AGREED:
            break
        cells = said(token), per_cent(token.adapted), per_cent(token.base), token.instead.strip() or "(end)"
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Token", "Adapter", "Base", "The base's first choice"))
    table = f"<table><caption>Where adapter and base differ most</caption><tr>{head}</tr>{''.join(rows)}</table>"
    return (
        f'<h3>The last answer, token by token</h3><div class="spans">{"".join(spans)}</div>'
        f"{table if rows else '<p>Adapter and base agree on all of it.</p>'}"
    )
