"""Adapters that are made of others, and adapters from elsewhere: blends, and the zips that visitors bring."""

import json
from dataclasses import replace
from pathlib import Path

import gradio as gr

from hyperlora.errors import UserError, sentence
from hyperlora.model import MAX_UPLOADS, Model
from hyperlora.recipe import MAX_LEAVES, MAX_STRENGTH, Recipe
from hyperlora.text import check_text
from hyperlora.ui.session import MAX_NAME
from hyperlora.ui.words import js

BLEND = f"""<h2>Blend adapters</h2>
<p>Give two to {MAX_LEAVES} of your adapters a weight, from {-MAX_STRENGTH} to {MAX_STRENGTH}.</p>
<div id="parts"></div>
<label>Where <select id="space"><option value="delta_w">exactly, in ΔW: the ranks add up</option>
<option value="factors">in A and in B, between adapters of one rank</option></select></label>
<button type="button" id="blend_them">Make the blend</button>
<div id="blend_note" role="status"></div>"""


class Steer:
    """The events by which a visitor gets an adapter without a description of its own."""

    def __init__(self, model: Model):
        self.model = model

    def blend(self, recipe: object) -> str:
        """-> JSON: the shelf's entry for a blend, which is made now, or the "error" in it."""
        try:
            read = Recipe.from_json(recipe)
            alone = replace(read, strength=1)
            self.model.adapter(alone)
            return _entry(alone, description=str(alone), strength=read.strength)
        except Exception as error:
            return json.dumps({"error": sentence(error)})

    def take(self, path: str | None) -> str:
        """-> JSON: the shelf's entry for the adapter in an uploaded zip, or the "error" in it. The file goes."""
        if path is None:
            return ""
        try:
            name = Path(path).stem
            if not Path(path).is_file():  # somebody else sent the same one, and theirs was done with first
                raise UserError("The file is gone: import it again.")
            recipe, adapter = self.model.take(Path(path))
            return _entry(recipe, description=adapter.description or "An adapter from a zip.", name=name)
        except Exception as error:
            return json.dumps({"error": sentence(error)})
        finally:
            Path(path).unlink(missing_ok=True)

    def missing(self, digests: object) -> str:
        """-> JSON: those of a shelf's uploads that are not here any more."""
        try:
            found = json.loads(check_text(digests, "The shelf"))
            return json.dumps([digest for digest in found[:MAX_UPLOADS] if not self.model.has(Recipe(upload=digest))])
        except (UserError, ValueError, TypeError, KeyError):  # no page's
            return "[]"

    def build(self) -> None:
        """The mode "blend", in the layout that is open, its events, and those of the upload."""
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        # Both are made in the engine's thread, where everybody's answers wait for them.
        raw = {**quiet, "preprocess": False, "concurrency_limit": 2, "concurrency_id": "steer"}
        with gr.Column(elem_id="blend", elem_classes="mode"):
            gr.HTML(BLEND, js_on_load=None, apply_default_css=False)
        text, entry = gr.Textbox("", visible="hidden"), gr.Textbox("", visible="hidden")
        order = gr.Button(visible="hidden", elem_id="order_blend")
        made = order.click(self.blend, [text], [entry], js=js("blend"), **raw)
        made.success(None, [entry], None, js=js("blended", "text"))
        made.failure(None, js=js("blended"))
        zipped = gr.UploadButton("bring", file_types=[".zip"], type="filepath", visible="hidden", elem_id="bring")
        taken = zipped.upload(self.take, [zipped], [entry], **quiet, concurrency_limit=2, concurrency_id="steer")
        taken.success(None, [entry], None, js=js("brought", "text"))
        taken.failure(None, js=js("brought"))
        here = gr.Button(visible="hidden", elem_id="ask_missing")
        asked = here.click(self.missing, [text], [entry], js=js("uploads"), **quiet, preprocess=False, queue=False)
        asked.success(None, [entry], None, js=js("heardMissing", "text"))


def _entry(recipe: Recipe, description: str, **said: object) -> str:
    return json.dumps({"recipe": json.loads(recipe.to_json()), "description": description[:MAX_NAME], **said})
