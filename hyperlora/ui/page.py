"""The layout: what is on the page and which handler each event calls."""

import logging

import gradio as gr

from hyperlora.errors import UserError
from hyperlora.presets import assets_dir, load_examples
from hyperlora.ui.handlers import INSTEAD, LOADING, NO_ADAPTER, Handlers
from hyperlora.ui.model import Model
from hyperlora.ui.session import Session

# Threads for handlers that wait; the chat takes at most MAX_CHATS of them, so that the rest of the page goes on.
MAX_THREADS, MAX_CHATS = 80, 60
FONT = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=FONT,
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
)
DOWNLOAD = "() => document.querySelector('#zip').click()"
log = logging.getLogger(__name__)


def read_style() -> str:
    """The page's CSS; without it the page is plain, but works."""
    try:
        return (assets_dir() / "style.css").read_text(encoding="utf-8")
    except (OSError, UserError) as error:
        log.warning("The page goes on without its style: %s", error)
        return ""


def read_examples() -> list[dict[str, str]]:
    try:
        return load_examples()
    except UserError as error:
        log.warning("The page goes on without examples: %s", error)
        return []


def build_page(model: Model) -> gr.Blocks:
    """The page over `model`, which may still be loading."""
    on = Handlers(model)
    examples = read_examples()
    samples = {example["message"] for example in examples}

    def use_example(index: int, message: str) -> tuple:
        description, sample = examples[index]["description"], examples[index]["message"]
        # What the visitor has typed stays.
        return description, sample if not message.strip() or message in samples else gr.skip()

    with gr.Blocks(title="HyperLoRA", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as demo:
        session = gr.State(Session())
        timer = gr.Timer(1)
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="describe", min_width=320):
                gr.HTML("<h1>HyperLoRA</h1><p>Describe a task, get an adapter, chat with it.</p>", elem_id="title")
                with gr.Column(visible=False, elem_id="download") as panel:
                    about = gr.HTML()
                    with gr.Row():
                        allow = gr.Button("Download", size="sm", variant="primary", elem_id="allow")
                        refuse = gr.Button(INSTEAD, size="sm", elem_id="refuse")
                description = gr.Textbox(
                    label="What should the model do?",
                    placeholder="Reverse the order of the words.",
                    max_lines=4,
                    autofocus=True,
                    elem_id="description",
                )
                chips = gr.Dataset(
                    label="Examples",
                    components=[description],
                    samples=[[example["description"]] for example in examples],
                    type="index",
                    visible=bool(examples),
                    elem_id="examples",
                )
                generate = gr.Button(LOADING, variant="primary", interactive=False, elem_id="generate")
                state = gr.HTML(elem_id="status")
                shelf = gr.Radio([(NO_ADAPTER, "")], value="", label="Your adapters", elem_id="shelf")
                with gr.Row(elem_id="tools"):
                    strength = gr.Slider(0, 1.5, value=1, step=0.1, label="Adapter strength", elem_id="strength")
                    export = gr.Button("Export", size="sm", elem_id="export")
                describe = gr.Checkbox(
                    label="Put the description in the prompt too",
                    info="The model then reads it as well, ahead of your messages.",
                    elem_id="in_prompt",
                )
                archive = gr.DownloadButton(visible="hidden", elem_id="zip")
            with gr.Column(elem_id="talk", min_width=320):
                chat = gr.Chatbot(
                    show_label=False,
                    render_markdown=False,
                    latex_delimiters=[],
                    buttons=[],
                    height=None,
                    elem_id="chat",
                    placeholder="### Chat with the adapted model\nGenerate an adapter, or ask the base model as it is.",
                )
                message = gr.Textbox(
                    label="Message",
                    show_label=False,
                    placeholder=LOADING,
                    max_lines=6,
                    elem_id="message",
                )
                with gr.Row(elem_id="under"):
                    line = gr.HTML(elem_id="line")
                    retry, undo, clear = (
                        gr.Button(name, size="sm", interactive=False, elem_id=name.lower())
                        for name in ("Retry", "Undo", "Clear")
                    )

        private = {"api_visibility": "private", "show_progress": "hidden"}
        quick = {**private, "queue": False}
        is_ready = ([session], [state, generate, message, line, describe, timer, session])
        offer = (None, [panel, about, allow, refuse, generate, message])
        # One after the other: what `ready` finds settled when it stops the timer, `offer` finds settled too.
        demo.load(on.ready, *is_ready, **quick).then(on.offer, *offer, **quick)
        timer.tick(on.ready, *is_ready, **quick).then(on.offer, *offer, **quick)
        allow.click(on.allow, None, None, **quick).then(on.offer, *offer, **quick)
        refuse.click(on.refuse, None, None, **quick).then(on.offer, *offer, **quick)

        chips.click(use_example, [chips, message], [description, message], **quick)
        gr.on(
            [generate.click, description.submit],
            on.generate,
            [description, session],
            [state, shelf, session],
            api_visibility="undocumented",
            show_progress="minimal",
            show_progress_on=[state],
        )
        shelf.input(on.select, [shelf, session], [state], **quick)

        talk = [chat, message, retry, undo, clear]
        chatting = {"show_progress": "hidden", "concurrency_limit": MAX_CHATS, "concurrency_id": "chat"}
        asked = [shelf, strength, session, describe]
        message.submit(on.send, [message, *asked], talk, api_visibility="undocumented", **chatting)
        retry.click(on.retry, asked, talk, api_visibility="private", **chatting)
        message.stop(on.stop, [session], None, **quick)
        undo.click(on.undo, [session], talk, **quick)
        clear.click(on.clear, [session], talk, **quick)
        export.click(on.export, [shelf, strength, session], archive, **private).success(None, js=DOWNLOAD, **private)

    return demo.queue(default_concurrency_limit=MAX_THREADS - MAX_CHATS, max_size=256, api_open=False)


def launch(demo: gr.Blocks, host: str | None = None, port: int | None = None) -> str:
    """Serves the page and returns its address; `OSError` if the port is taken. Nothing of it leaves this machine."""
    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_threads=MAX_THREADS,
        max_file_size=1,  # nothing on the page takes a file
        state_session_capacity=1000,
        theme=THEME,
        css=read_style(),
    )
    return url
