import json

import pytest

from hyperlora.config import HyperLoRAConfig, read_json
from hyperlora.errors import UserError


def test_file_there_and_back(tmp_path, make_config):
    config = make_config(
        head="S",
        target_modules={"v_proj": (64, 32), "q_proj": (64, 64)},  # an order that is not the alphabet's
        d_emb=384,
        rank=4,
        offset="factors",
        base_model="someone/base",
        chat_template="[INST] {{ text }} [/INST] ü",
        prompt_style="description_input",
        notice_threshold=0.42,
        norm_range=(1, 2.5),
        latent_size=32,
        head_size=64,
        rank_embedding="through_mlp2",
        module_order_assumed=True,
    )
    config.save(tmp_path / "config.json")
    again = HyperLoRAConfig.load(tmp_path / "config.json")
    assert again == config
    assert list(again.target_modules) == ["v_proj", "q_proj"]


def test_files_of_before_a_field_was_there_are_read(make_config):
    values = make_config().to_dict()
    for name in ("latent_size", "head_size", "rank_embedding", "module_order_assumed", "norm_range"):
        del values[name]
    assert HyperLoRAConfig.from_dict(values) == make_config()


def test_target_modules_keep_their_order_when_something_sorts_the_keys(make_config):
    config = make_config(target_modules={"v_proj": (64, 32), "q_proj": (64, 64)})
    rewritten = json.loads(json.dumps(config.to_dict(), sort_keys=True))
    assert list(HyperLoRAConfig.from_dict(rewritten).target_modules) == ["v_proj", "q_proj"]


def test_scale_is_rslora_by_default(make_config):
    assert make_config(rank=16, alpha=16).scale == 4.0
    assert make_config(rank=16, alpha=16, use_rslora=False).scale == 1.0


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"offset": "factors"}, "zero"),
        ({"offset": "none"}, "peft"),
        ({"offset": "delta"}, "peft"),
        ({"offset": "none", "z_score": True}, "zero"),
    ],
)
def test_heads_start_at_zero_only_where_something_is_added(make_config, fields, start):
    assert make_config(**fields).head_start == start


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"head": "XL"}, "head"),
        ({"head": ["M"]}, "head"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": True}, "num_layers"),
        ({"d_emb": 10**12}, "d_emb"),
        ({"rank": 8.0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"z_score": 1}, "z_score"),
        ({"embedder": None}, "embedder"),
        ({"chat_template": "x" * 200_000}, "chat_template"),
        ({"notice_threshold": 2}, "notice_threshold"),
        ({"norm_range": [2, 1]}, "norm_range should be two numbers, the smaller one first"),
        ({"norm_range": [-1, 1]}, "norm_range"),
        ({"norm_range": [float("nan"), 1]}, "norm_range"),
        ({"norm_range": [1, float("inf")]}, "norm_range"),
        ({"norm_range": [1]}, "norm_range"),
        ({"norm_range": ["1", 2]}, "norm_range"),
        ({"norm_range": 1}, "norm_range"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [["q_proj", 64]]}, "target_modules"),
        ({"target_modules": [["q_proj", 64, -1]]}, "q_proj"),
        ({"target_modules": [["self_attn.q_proj", 64, 64]]}, "target_modules"),
        ({"target_modules": [["q_proj", 64, 64], ["q_proj", 64, 64]]}, "target_modules"),
        ({"target_modules": {"q_proj": [64, 64]}}, "target_modules"),
        ({"num_tasks": 3}, "num_tasks"),
        ({"task_names": ["a"]}, "task_names"),
        ({"task_input": "learned", "num_tasks": 2, "task_names": ["a"]}, "task_names"),
        ({"task_input": "learned", "num_tasks": 2, "task_names": ["a", "a"]}, "task_names"),
        ({"task_input": "learned", "num_tasks": 1, "task_names": [1]}, "task_names"),
        ({"task_input": "learned"}, "num_tasks"),
        ({"task_input": "one_hot", "num_tasks": 3}, "d_emb"),
        ({"latent_size": 3}, "latent_size"),
        ({"head_size": 10**9}, "head_size"),
        ({"rank_embedding": "rotary"}, "rank_embedding"),
        ({"rank_embedding": "through_mlp2"}, "plain for head M"),
        ({"module_order_assumed": None}, "module_order_assumed"),
        ({"learning_rate": 1e-3}, "learning_rate"),
    ],
)
def test_nonsense_in_a_file_is_named(make_config, fields, named):
    with pytest.raises(UserError, match=named):
        HyperLoRAConfig.from_dict(make_config().to_dict() | fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", "[" * 100_000, " " * 2_000_000])
def test_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError):
        HyperLoRAConfig.load(path)


@pytest.mark.parametrize("text", ["\ud83d", "a \udfff b", "\ude00\ud83d"], ids=ascii)
def test_half_a_character_in_a_file_is_named(tmp_path, make_config, text):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"list": [{"text": "\U0001f600"}, {text: 1}]}))
    with pytest.raises(UserError, match=r"config\.json holds '\\ud\w+', which is half a character"):
        read_json(path, 1000)
    path.write_text(json.dumps(make_config().to_dict() | {"base_model": text}))
    with pytest.raises(UserError, match=r"config\.json holds"):
        HyperLoRAConfig.load(path)
    with pytest.raises(UserError, match="The config holds"):
        make_config(chat_template=text)
    path.write_text(json.dumps(["\U0001f600"]))
    assert read_json(path, 1000) == ["\U0001f600"]  # both halves, as JSON writes them


def test_missing_file_and_missing_key(tmp_path, make_config):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        HyperLoRAConfig.load(tmp_path / "nowhere.json")
    values = make_config().to_dict()
    del values["head"]
    with pytest.raises(UserError, match="head"):
        HyperLoRAConfig.from_dict(values)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(UserError, match=r"config\.json cannot be read .*Permission denied"):
        read_json(tmp_path / "config.json", 100)
