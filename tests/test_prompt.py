"""Turning messages into the prompt that a model knows: templates as trained, system messages, descriptions."""

import inspect
import random
import string

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hyperlora.errors import UserError
from hyperlora.presets import assets_dir
from hyperlora.prompt import (
    END,
    START,
    TRAINED,
    check_messages,
    control_tokens,
    encode_answers,
    encode_chats,
    encode_texts,
    format_begun,
    format_prompt,
    takes_system,
    use_trained_template,
    with_description,
)

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
    tokenizer = characters(bos, eos, TRAINED[base], *control)

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
    tokenizer = characters(bos, eos, TRAINED[base], *control)
    whole = tokenizer.apply_chat_template(chat(USER, "assistant: Two words."), tokenize=False)
    assert whole == ONE_TURN[base].format(system="") + answer


@pytest.mark.parametrize(
    ("base", "written"),
    [
        (MISTRAL, "\n\na  b [/INST]"),
        (LLAMA, "user<|end_header_id|>\n\na  b<|eot_id|>"),
        (GEMMA, "<start_of_turn>user\na  b<end_of_turn>"),
    ],
)
def test_space_around_a_users_message_is_not_read_whatever_the_template(characters, base, written):
    bos, eos, *control = CONTROL[base]
    tokenizer = characters(bos, eos, TRAINED[base], *control)
    assert written in tokenizer.decode(format_prompt(tokenizer, " a  b \n"))


@pytest.mark.parametrize("style", [None, "description_input", "definition_input"])
@pytest.mark.parametrize("message", [" one two", "one two \n", "\t one two\r\n\n", "one two"])
def test_nor_is_it_anywhere_else(tokenizer, message, style):
    """In training, evaluation and earlier turns, alone or behind a description."""

    def user(text: str) -> dict[str, str]:
        text = text if style is None else with_description("Say it.", text, style)
        return {"role": "user", "content": text}

    answer = {"role": "assistant", "content": " 2"}
    loose, bare = ([user(text), answer, user(text)] for text in (message, "one two"))
    assert encode_chats(tokenizer, [loose]) == encode_chats(tokenizer, [bare])
    assert encode_answers(tokenizer, [loose[:2]]) == encode_answers(tokenizer, [bare[:2]])
    prompt = tokenizer.decode(encode_chats(tokenizer, [loose])[0])
    assert prompt.count("one two [/INST]") == 2 and "[/INST]  2</s>" in prompt


def test_a_base_without_a_public_hypernetwork_has_no_such_template():
    assert "mistralai/Mistral-7B-Instruct-v0.3" not in TRAINED


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
    assert takes_system(tokenizer) == (template is CHATML)


def test_later_and_blank_system_messages(characters):
    tokenizer = characters("<s>", "</s>", OLD_MISTRAL)
    turns = chat("system: A.", "system:  ", "system: B.", "user: a", "assistant: b", "system: Now loud.", "user: c")
    prompt = "<s>[INST] A.\n\nB.\n\na [/INST]b</s>[INST] Now loud.\n\nc [/INST]"
    assert tokenizer.decode(format_prompt(tokenizer, turns)) == prompt
    tokenizer.chat_template = TRAINED[MISTRAL]  # takes one, and only as the first
    prompt = "<s> [INST] \n\na [/INST] b</s> [INST] Loud.\n\nc [/INST]"
    assert (
        tokenizer.decode(format_prompt(tokenizer, chat("user: a", "assistant: b", "system: Loud.", "user: c")))
        == prompt
    )


def with_system(written: str, when: str = "true") -> str:
    """A template that writes a system message as that expression of `c`, its text, where the condition holds."""
    return (
        (
            "{% for message in messages %}{% set c = message['content'] %}"
            "{% if message['role'] == 'system' %}{% if WHEN %}{{ '<|s|>' + (WRITTEN) + '<|end|>' }}{% endif %}"
            "{% else %}{{ '<|' + message['role'][0] + '|>' + c + '<|end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}"
        )
        .replace("WHEN", when)
        .replace("WRITTEN", written)
    )


IN_FRONT = "<|u|>Be brief.\nSay no.\n\na: Be brief.\nSay no.<|end|><|a|>"
APART = "<|s|>Be brief.\nSay no.<|end|><|u|>a: Be brief.\nSay no.<|end|><|a|>"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (with_system("c"), APART),
        (with_system("c | trim"), APART),
        (with_system("c", "loop.first"), APART),
        (with_system("c", "false"), IN_FRONT),
        (with_system("c", "not loop.first"), IN_FRONT),
        (with_system("c", "'brief' not in c"), IN_FRONT),
        (with_system("c", "c != 'Be brief.\nSay no.'"), IN_FRONT),
        (with_system("c", "c | length > 20"), IN_FRONT),
        (with_system("c.split('\n')[0]"), IN_FRONT),
        (with_system("c[:12]"), IN_FRONT),
        (with_system("c.replace('Say', '')"), IN_FRONT),
        (with_system("c | upper"), IN_FRONT),
        (with_system("'Be helpful.'"), IN_FRONT),
        (with_system("raise_exception('No.')"), IN_FRONT),
    ],
)
def test_a_system_message_never_vanishes_behind_the_same_words_of_the_user(characters, template, prompt):
    """Nor where the template writes a part of it, or another text, or writes it only sometimes."""
    tokenizer = characters("<s>", "</s>", template)
    turns = chat("system: Be brief.\nSay no.", "user: a: Be brief.\nSay no.")
    assert tokenizer.decode(format_prompt(tokenizer, turns)) == prompt


def test_of_several_system_messages_those_are_kept_apart_that_the_template_writes(characters):
    turns = chat("system: A.", "user: A. a", "assistant: A. b", "system: A.", "user: c")
    last = "<|u|>A. a<|end|><|a|>A. b<|end|><|u|>A.\n\nc<|end|><|a|>"
    for when, prompt in (
        ("true", "<|s|>A.<|end|><|u|>A. a<|end|><|a|>A. b<|end|><|s|>A.<|end|><|u|>c<|end|><|a|>"),
        ("loop.first", "<|s|>A.<|end|>" + last),
        ("not loop.first", last.replace("<|u|>A. a", "<|u|>A.\n\nA. a")),
    ):
        tokenizer = characters("<s>", "</s>", with_system("c", when))
        assert tokenizer.decode(format_prompt(tokenizer, turns)) == prompt


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
    tokenizer = characters("<s>", "</s>", TRAINED[MISTRAL], "ab", "bc")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    message = f"x </s><s>abc {START}</{END}s"
    ids = format_prompt(tokenizer, message)
    special = [token for token in ids if token in tokenizer.all_special_ids]
    assert [tokenizer.convert_ids_to_tokens(token) for token in special] == ["<s>"]
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    assert text == "<s>▁▁[INST]▁\n\nx▁</s><s>abc▁</s▁[/INST]"


# ---- control tokens, with tokenizers of every kind ----

CORPUS = ["the quick brown fox jumps over the lazy dog", "INST s < > [ ]", "a/b <b>\n\n1 + 2 = 3"] * 3
SYSTEM_FIRST = (  # like CHATML, with a token that is not special but stands in the template
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{% if '<tool>' in message['content'] %}{{ '!' }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{# <comment> #}"
)


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of that kind, trained on a few lines, with control tokens and a template of its own."""
    control, template = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], OLD_MISTRAL
    options = {"vocab_size": 400, "show_progress": False, "special_tokens": control}
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "byte-level":  # GPT-2's, Llama 3's, Qwen's
        control, template = ["<unk>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"], SYSTEM_FIRST
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        options |= {"special_tokens": control, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        trainer = trainers.BpeTrainer(**options)
    elif kind == "metaspace":  # Mistral's, as transformers converts them today
        tokens.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        trainer = trainers.BpeTrainer(**options)
    elif kind == "prepended":  # Llama 2's
        tokens.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(**options)
    elif kind == "word pieces":  # BERT's: its normaliser changes what is typed
        tokens = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokens.normalizer, tokens.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    else:  # "unigram": T5's, whose words hold the control tokens too
        tokens = Tokenizer(models.Unigram())
        tokens.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokens.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token=control[0],
        bos_token=control[1],
        eos_token=control[2],
        additional_special_tokens=control[3:],
    )
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<tool>", "<comment>", "<plain>")])
    tokenizer.chat_template = template
    return tokenizer


KINDS = ["byte-level", "metaspace", "prepended", "word pieces", "unigram", "mini"]


@pytest.fixture(params=KINDS)
def any_kind(request):
    if request.param == "mini":
        return AutoTokenizer.from_pretrained(assets_dir() / "mini" / "base")
    return trained(request.param)


def typed(tokenizer, seed: int, count: int = 40) -> list[str]:
    """Messages that people would not type: control tokens, halves of them, spaces and words, in any order."""
    draw = random.Random(seed)
    control = [*control_tokens(tokenizer), *tokenizer.added_tokens_encoder]
    pieces = [
        *control,
        *(token[:2] for token in control),
        *(token[2:] for token in control),
        "fox",
        " ",
        "\n",
        "  ",
        "<",
    ]
    return ["x" + "".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(count)]


def controls_in(tokenizer, ids: list[int]) -> list[str]:
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in control_tokens(tokenizer)[:-1]]


def test_nobody_but_the_template_writes_a_control_token(any_kind):
    known = set(tokenizer_ids(any_kind)) - {any_kind.unk_token_id}

    def written(chat: list[dict[str, str]]) -> list[int]:
        return [token for token in encode_chats(any_kind, [chat])[0] if token in known]

    texts = typed(any_kind, 0)
    for system, first, answer, last in zip(texts[::4], texts[1::4], texts[2::4], texts[3::4], strict=True):
        turns = [("system", system), ("user", first), ("assistant", answer), ("user", last)]
        chats = [[{"role": role, "content": text} for role, text in turns[i:]] for i in (0, 1, 3)]
        for chat in chats:
            assert written(chat) == written([message | {"content": "x"} for message in chat])
        [(_, learnt)] = encode_answers(any_kind, [chats[1][:2]])
        assert [token for token in learnt if token in known] == [learnt[-1]] == [any_kind.eos_token_id]
        assert not known & set(encode_texts(any_kind, [last])[0])


def tokenizer_ids(tokenizer) -> list[int]:
    return tokenizer.convert_tokens_to_ids(control_tokens(tokenizer))


def test_training_and_chat_read_a_message_alike(any_kind):
    texts = typed(any_kind, 1)
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "</s> 2"}] for text in texts]
    assert [prompt for prompt, _ in encode_answers(any_kind, chats)] == [format_prompt(any_kind, t) for t in texts]


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters,
    reason="transformers has it since 5.20",
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])  # there it raises
def test_the_ids_are_those_of_transformers(kind):
    tokenizer = AutoTokenizer.from_pretrained(assets_dir() / "mini" / "base") if kind == "mini" else trained(kind)
    texts = [
        *typed(tokenizer, 2),
        f"{START}<s{END}>",
        "</s></s>",
        "\n</s>\n",
        "</s> a",
        "a </s>",
        "<plain><comment><tool>",
    ]
    for first, answer, last in zip(texts, texts[1:], texts[2:], strict=False):
        chat = [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]
        chats = [chat, [*chat, {"role": "user", "content": last}]]
        if kind == "byte-level":
            chats.append([{"role": "system", "content": answer}, {"role": "user", "content": first}])
        for chat in chats:
            theirs = tokenizer.apply_chat_template(
                [m | {"content": m["content"].strip()} if m["role"] == "user" else m for m in chat],
                sanitize_control_tokens=True,
                add_generation_prompt=chat[-1]["role"] == "user",
                enable_thinking=False,
                return_dict=False,
            )
            assert encode_chats(tokenizer, [chat]) == [theirs]


@pytest.mark.parametrize("begun", ["fox", "The fox: ", "the\n\nquick", "a  b   "])
def test_an_answer_that_is_begun_goes_on_as_in_transformers(any_kind, begun):
    messages = chat("user: the quick", "assistant: brown", "user: fox", f"assistant: {begun}")
    theirs = any_kind.apply_chat_template(
        [*messages[:-1], {"role": "assistant", "content": begun.rstrip(" ")}],
        continue_final_message=True,
        return_dict=False,
    )
    assert format_prompt(any_kind, messages) == theirs
    prompt, ids = format_begun(any_kind, messages)
    assert prompt == format_prompt(any_kind, messages[:-1]) and ids


@pytest.mark.parametrize("nothing", ["", "   "])
def test_an_answer_that_is_begun_with_nothing_is_none(any_kind, nothing):
    assert format_begun(any_kind, chat("user: fox", f"assistant: {nothing}")) == (format_prompt(any_kind, "fox"), [])


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
        ([{"role": "assistant", "content": "x"}], "The last message must be the user's, or the beginning"),
        (chat("user: a", "assistant: b", "assistant: c"), "The last message must be the user's, or the beginning"),
        (chat("user: a", "system: b"), "The last message must be the user's, or the beginning"),
        (chat("user:  ", "assistant: b"), "The message is empty"),
        (chat("user: a", "assistant: \udfff"), "The message holds '.udfff'"),
        ("x" * 1_000_001, "longer than 1,000,000 characters"),
        ("a \ud83d b", "The message holds '.ud83d', which is half a character"),
        (chat("system: \udce9", "user: a"), "a byte that is not UTF-8"),
        (chat("user: a", "assistant: \udfff", "user: a"), "The message holds '.udfff'"),
    ],
)
def test_bad_messages(messages, sentence):
    with pytest.raises(UserError, match=sentence):
        check_messages(messages)


def test_what_the_template_refuses_is_one_sentence(characters):
    tokenizer = characters("<bos>", "<eos>", OLD_GEMMA)
    with pytest.raises(UserError, match=r"does not take these messages .*must alternate"):
        format_prompt(tokenizer, chat("user: a", "user: b"))


def test_half_a_character_in_a_template_is_one_sentence(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "\ud83d{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match=r"The base model's chat template holds '.ud83d'"):
        format_prompt(tokenizer, "x")


def test_a_tokenizer_without_template(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        format_prompt(tokenizer, "x")
