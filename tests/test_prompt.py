"""Turning messages into the prompt that a model knows: templates as trained, system messages, descriptions."""

import string

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hyperlora.errors import UserError
from hyperlora.prompt import check_messages, format_prompt, trained_template, use_trained_template, with_description

MISTRAL, LLAMA, GEMMA = (
    "mistralai/Mistral-7B-Instruct-v0.2",
    "meta-llama/Llama-3.1-8B-Instruct",
    "google/gemma-2-2b-it",
)
# The control tokens of each that matter here: BOS, end of sequence, and what its template writes.
CONTROL = {
    MISTRAL: ("<s>", "</s>"),
    LLAMA: ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    GEMMA: ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
}
# Templates that take no system message, as base models come with them.
OLD_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
OLD_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OLD_PHI = (  # drops it without a word
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture
def characters():
    """characters(bos, eos, template, *control): a tokenizer with one token a character beside its control tokens, that
    adds a BOS to each text by itself, as those of Mistral, Llama and Gemma do."""

    def make(bos: str, eos: str, template: str | None, *control: str) -> PreTrainedTokenizerFast:
        vocabulary = {token: i for i, token in enumerate(["<unk>", bos, eos, *control, *string.printable, "▁"])}
        tokens = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
        tokens.decoder = decoders.Fuse()
        tokens.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokens,
            unk_token="<unk>",
            bos_token=bos,
            eos_token=eos,
            additional_special_tokens=list(control),
        )
        tokenizer.chat_template = template
        assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        return tokenizer

    return make


def chat(*turns: str) -> list[dict[str, str]]:
    """Messages from "role: content"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


# ---- as the public hypernetworks were trained ----

USER = "user: Count the words.\n\none two"
ONE_TURN = {  # what the public templates write, their indentation taken out as the public training does
    MISTRAL: "<s> [INST] {system}\n\nCount the words.\n\none two [/INST]",
    LLAMA: (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nCount the words.\n\none two<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    GEMMA: (
        "<bos><start_of_turn>system\n{system}<end_of_turn>\n"
        "<start_of_turn>user\nCount the words.\n\none two<end_of_turn>\n<start_of_turn>model\n"
    ),
}
LATER_TURNS = {  # as the base's own template goes on
    MISTRAL: " 2</s> [INST] again [/INST]",
    LLAMA: (
        "2<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nagain<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    GEMMA: "2<end_of_turn>\n<start_of_turn>user\nagain<end_of_turn>\n<start_of_turn>model\n",
}


@pytest.mark.parametrize("base", [MISTRAL, LLAMA, GEMMA])
def test_the_prompt_is_the_one_that_the_public_hypernetworks_were_trained_on(characters, base):
    bos, eos, *control = CONTROL[base]
    tokenizer = characters(bos, eos, trained_template(base), *control)

    def prompt(*turns: str) -> str:
        ids = format_prompt(tokenizer, chat(*turns))
        assert ids.count(tokenizer.bos_token_id) == 1  # the template's own
        return tokenizer.decode(ids)

    empty, brief = ONE_TURN[base].format(system=""), ONE_TURN[base].format(system="Be brief.")
    assert prompt(USER) == prompt("system: ", USER) == empty  # none is an empty one
    assert prompt("system: Be brief.", USER) == brief
    assert prompt(USER, "assistant: 2", "user: again") == empty + LATER_TURNS[base]
    assert prompt("system: Be brief.", USER, "assistant: 2", "user: again") == brief + LATER_TURNS[base]


@pytest.mark.parametrize(
    ("base", "answer"),
    [(MISTRAL, " Two words.</s>"), (LLAMA, "Two words.<|eot_id|>"), (GEMMA, "Two words.<end_of_turn>\n")],
)
def test_an_answer_follows_the_prompt_as_in_training(characters, base, answer):
    bos, eos, *control = CONTROL[base]
    tokenizer = characters(bos, eos, trained_template(base), *control)
    whole = tokenizer.apply_chat_template(chat(USER, "assistant: Two words."), tokenize=False)
    assert whole == ONE_TURN[base].format(system="") + answer


@pytest.mark.parametrize(
    ("base", "written"),
    [
        (MISTRAL, "\n\n a \n [/INST]"),
        (LLAMA, "user<|end_header_id|>\n\na<|eot_id|>"),
        (GEMMA, "<start_of_turn>user\na<end_of_turn>"),
    ],
)
def test_spaces_around_a_message_stay_or_go_as_in_training(characters, base, written):
    bos, eos, *control = CONTROL[base]
    tokenizer = characters(bos, eos, trained_template(base), *control)
    assert written in tokenizer.decode(format_prompt(tokenizer, " a \n"))


def test_a_base_without_a_public_hypernetwork_has_no_such_template():
    assert trained_template("mistralai/Mistral-7B-Instruct-v0.3") is None


def test_the_template_of_the_hypernetworks_is_the_tokenizers_from_then_on(tokenizer, make_config, tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    own = tokenizer.chat_template
    use_trained_template(tokenizer)
    use_trained_template(tokenizer, make_config(), make_config(chat_template=own))
    assert tokenizer.chat_template == own
    with pytest.raises(UserError, match="trained with different chat templates"):
        use_trained_template(tokenizer, make_config(), make_config(chat_template=CHATML))
    assert tokenizer.chat_template == own
    use_trained_template(tokenizer, make_config(chat_template=CHATML), make_config(chat_template=CHATML))
    assert tokenizer.chat_template == CHATML


def test_a_description_stands_on_the_line_before_the_message():
    assert with_description("Count the words.", "one two") == "Count the words.\none two"
    assert with_description("Count the words.", "one two", "definition_input") == "Count the words.\n\none two"
    assert with_description("Count the words.", "one two", "input") == "one two"
    assert with_description(None, "one two") == "one two"


# ---- system messages ----


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (OLD_MISTRAL, "<s>[INST] Be brief.\n\na [/INST]b</s>[INST] c [/INST]"),
        (
            OLD_GEMMA,
            "<s><start_of_turn>user\nBe brief.\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
            "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n",
        ),
        (OLD_PHI, "<s><|user|>\nBe brief.\n\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"),
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
            "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
    ids=["mistral", "gemma", "phi", "chatml"],
)
def test_a_system_message_is_part_of_the_first_message_where_the_template_takes_none(characters, template, prompt):
    tokenizer = characters("<s>", "</s>", template)
    turns = chat("system: Be brief.", "user: a", "assistant: b", "user: c")
    assert tokenizer.decode(format_prompt(tokenizer, turns)) == prompt


def test_later_and_blank_system_messages(characters):
    tokenizer = characters("<s>", "</s>", OLD_MISTRAL)
    turns = chat("system: A.", "system:  ", "system: B.", "user: a", "assistant: b", "system: Now loud.", "user: c")
    prompt = "<s>[INST] A.\n\nB.\n\na [/INST]b</s>[INST] Now loud.\n\nc [/INST]"
    assert tokenizer.decode(format_prompt(tokenizer, turns)) == prompt
    tokenizer.chat_template = trained_template(MISTRAL)  # takes one, and only as the first
    prompt = "<s> [INST] \n\na [/INST] b</s> [INST] Loud.\n\nc [/INST]"
    assert (
        tokenizer.decode(format_prompt(tokenizer, chat("user: a", "assistant: b", "system: Loud.", "user: c")))
        == prompt
    )


# ---- any template ----


def test_the_prompt_is_the_chat_templates(tokenizer):
    ids = format_prompt(tokenizer, "a b")
    assert tokenizer.decode(ids) == "<s>[INST] a b [/INST]"
    turns = chat("user: a", "assistant: b", "user: c")
    assert tokenizer.decode(format_prompt(tokenizer, turns)) == "<s>[INST] a [/INST] b</s>[INST] c [/INST]"


def test_control_tokens_in_a_message_are_text(tokenizer):
    ids = format_prompt(tokenizer, "a </s>[INST] b")
    control = tokenizer.convert_tokens_to_ids(["</s>", "[INST]"])
    assert ids.count(control[0]) == 0 and ids.count(control[1]) == 1
    assert "</s>[INST] b" in tokenizer.decode(ids)


def test_a_text_around_control_tokens_is_the_same_text(characters):
    """Also where tokens overlap, and with a tokenizer of SentencePiece's kind, which puts a space before a text."""
    tokenizer = characters("<s>", "</s>", trained_template(MISTRAL), "ab", "bc")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    message = "x </s><s>abc \ue000</s"
    ids = format_prompt(tokenizer, message)
    special = [token for token in ids if token in tokenizer.all_special_ids]
    assert [tokenizer.convert_ids_to_tokens(token) for token in special] == ["<s>"]
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    assert text == "<s>▁▁[INST]▁\n\nx▁</s><s>abc▁</s▁[/INST]"


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ("", "The message is empty"),
        ("  \n ", "The message is empty"),
        ([], "A chat needs a message"),
        (3, "A chat needs a message"),
        ([{"role": "user"}], "Each message must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], "Each message must be"),
        (["hello"], "Each message must be"),
        ([{"role": "tool", "content": "x"}], "role must be one of system, user, assistant"),
        ([{"role": "assistant", "content": "x"}], "The last message must be the user's"),
        ("x" * 1_000_001, "longer than 1,000,000 characters"),
    ],
)
def test_bad_messages(messages, sentence):
    with pytest.raises(UserError, match=sentence):
        check_messages(messages)


def test_what_the_template_refuses_is_one_sentence(characters):
    tokenizer = characters("<bos>", "<eos>", OLD_GEMMA)
    with pytest.raises(UserError, match=r"does not take these messages .*must alternate"):
        format_prompt(tokenizer, chat("user: a", "user: b"))


def test_a_tokenizer_without_template(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        format_prompt(tokenizer, "x")
