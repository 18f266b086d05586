"""A model folder is read alike by us and by transformers, and never half: same logits, same ids."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import WeightsError
from scalelab.models import Decoder, Encoder, EncoderDecoder, from_transformers
from scalelab.models.pretrained import load_pretrained, save_pretrained
from scalelab.models.tokenizer_files import description_of, tokenizer_files

tokenizers = pytest.importorskip("tokenizers")

N_TEXT = 299  # ids that spell text; the end of text is the next one
SPECIAL = {"end_of_text": 299, "pad": 300, "cls": 301, "sep": 302, "mask": 303}
TEXTS = ["def add(a, b):\n    return a + b\n", "naïve — ünïcode 日本 🙂", " two  spaces ", "", "x"]
CARD = {"title": "A test", "about": "Nothing.", "corpus": "none", "tokens": 12_345, "loss_nats": 1.23456,
        "versions": {"torch": "2"}, "licences": {"MIT": ["a 1", "b 2"]}}  # fmt: skip
SHAPE = {"n_layers": 2, "d_model": 24, "n_heads": 3, "vocab_size": 304}
LLAMA = {"norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu", "attention_bias": False,
         "feed_forward_bias": False, "norm_eps": 1e-6, "n_kv_heads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def description() -> str:
    """A vocabulary of bytes and a few merges, as our tokenizer describes it."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=N_TEXT,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(
        [TEXTS[0] * 3, "return the number of the other one in this list of them, and say what it is"], trainer
    )
    assert model.get_vocab_size() == N_TEXT
    return str(model.to_str())


MODELS: dict[str, Any] = {
    "llama": lambda: Decoder(DecoderConfig(**SHAPE | {"seq_len": 32} | LLAMA), seed=0),
    "gpt2": lambda: Decoder(DecoderConfig(**SHAPE, seq_len=32, tie_embeddings=False), seed=0),
    "bert": lambda: Encoder(
        EncoderConfig(**SHAPE, d_ff=32, seq_len=32, mlm_head=True, nsp_head=True), seed=0
    ),
    "bert-masked": lambda: Encoder(
        EncoderConfig(**SHAPE, d_ff=32, seq_len=32, mlm_head=True, pooler=False), seed=0
    ),
    "t5": lambda: EncoderDecoder(EncoderDecoderConfig(**SHAPE, d_head=8, d_ff=32, pad_id=300), seed=0),
}


def shaken(name: str) -> Any:
    model = MODELS[name]()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=draw))
    return model


@pytest.fixture(params=list(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path: Path, description: str) -> tuple[str, Path]:
    save_pretrained(shaken(request.param), description, SPECIAL, tmp_path / "model", CARD)
    return request.param, tmp_path / "model"


def tokens() -> torch.Tensor:
    return torch.randint(304, (2, 20), generator=torch.Generator().manual_seed(1))


def test_what_is_read_is_what_was_written_rounded_to_fp16(saved: tuple[str, Path], description: str) -> None:
    name, folder = saved
    found, model = load_pretrained(folder), shaken(name)
    assert type(found.model) is type(model)
    assert found.model.config == model.config
    assert not found.model.training
    assert (found.tokenizer, found.special, found.card) == (description, SPECIAL, CARD)
    written = model.state_dict()
    for key, tensor in found.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, written[key].half().float()), key


def test_transformers_gives_the_same_logits_in_fp32(saved: tuple[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    _, folder = saved
    ours, ids = load_pretrained(folder).model, tokens()
    if isinstance(ours, Decoder):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        pairs = [(ours(ids), theirs(ids).logits)]
    elif isinstance(ours, EncoderDecoder):
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
        pairs = [(ours(ids, ids[:, :7]), theirs(input_ids=ids, decoder_input_ids=ids[:, :7]).logits)]
    else:
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder)
        body = transformers.AutoModel.from_pretrained(folder)
        padding = torch.arange(20) < torch.tensor([[20], [9]])
        mine = ours.hidden(ids, padding=padding)
        read = body(ids, attention_mask=padding.long())
        pairs = [(ours.logits(mine)[padding], theirs(ids, attention_mask=padding.long()).logits[padding])]
        pairs += [(mine[padding], read.last_hidden_state[padding])]
        if ours.config.pooler:
            pairs += [(ours.pooled(mine), read.pooler_output)]
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    for found, want in pairs:
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_the_folder_is_read_by_way_of_transformers_too(saved: tuple[str, Path]) -> None:
    pytest.importorskip("transformers")
    ours, theirs = load_pretrained(saved[1]).model, from_transformers(saved[1])
    assert type(ours) is type(theirs)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key]), key


def test_every_file_may_be_read_by_everyone_who_may_read_any(saved: tuple[str, Path]) -> None:
    assert len({file.stat().st_mode for file in saved[1].iterdir()}) == 1


def test_transformers_finds_every_weight(saved: tuple[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    _, folder = saved
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    _, report = getattr(transformers, named).from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_transformers_tokenizer_gives_the_same_ids(saved: tuple[str, Path], description: str) -> None:
    transformers = pytest.importorskip("transformers")
    name, folder = saved
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = tokenizers.Tokenizer.from_str(description)
    for text in TEXTS:
        want = ours.encode(text).ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == want
        assert theirs.decode(want) == text
    spelled = {
        "pad": "[PAD]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "mask": "[MASK]",
        "end_of_text": "<|endoftext|>",
    }
    assert {n: theirs.convert_tokens_to_ids(t) for n, t in spelled.items()} == SPECIAL
    assert theirs.pad_token_id == 300
    assert len(theirs) == 304
    assert theirs.padding_side == ("left" if name in ("llama", "gpt2") else "right")
    if name.startswith("bert"):
        assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (301, 302, 303)
        assert theirs("x")["input_ids"] == [301, *ours.encode("x").ids, 302]
        pair = theirs("x", "def")
        second = ours.encode("def").ids
        assert pair["input_ids"] == [301, *ours.encode("x").ids, 302, *second, 302]
        assert pair["token_type_ids"] == [0, 0, 0, *[1] * len(second), 1]
        hidden = theirs("a [MASK] b", add_special_tokens=False)["input_ids"]
        assert hidden == [*ours.encode("a ").ids, 303, *ours.encode(" b").ids]
    else:
        assert theirs("x")["input_ids"] == ours.encode("x").ids
    if name in ("llama", "gpt2"):
        assert theirs.eos_token_id == 299
        assert "token_type_ids" not in theirs("x")
    apart = theirs("[MASK]", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert apart == ours.encode("[MASK]").ids


def test_a_decoder_folder_generates_with_transformers(tmp_path: Path, description: str) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", CARD)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    batch = tokenizer(["def f", "x"], return_tensors="pt", padding=True)
    written = theirs.generate(**batch, max_new_tokens=5, do_sample=False)
    assert written.shape[0] == 2
    assert theirs.generation_config.eos_token_id == 299


def test_reading_needs_no_transformers(
    tmp_path: Path, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    save_pretrained(shaken("bert"), description, SPECIAL, tmp_path / "m", CARD)
    assert load_pretrained(tmp_path / "m").model.config.n_layers == 2


def test_the_model_card_says_what_the_card_says(saved: tuple[str, Path]) -> None:
    text = (saved[1] / "README.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0")
    for part in ("# A test", "Nothing.", "| tokens | 12,345 |", "| loss_nats | 1.235 |", "- MIT: a 1, b 2"):
        assert part in text


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("harm", [os.unlink, cut, flip])
def test_a_missing_or_damaged_file_is_named_with_the_way_out(
    tmp_path: Path, description: str, name: str, harm: Any
) -> None:
    save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", CARD)
    harm(tmp_path / "m" / name)
    with pytest.raises(WeightsError, match=rf"{name}(.|\n)*scalelab pretrain"):
        load_pretrained(tmp_path / "m")


def test_every_flipped_byte_of_our_part_of_the_config_is_found(tmp_path: Path, description: str) -> None:
    save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", CARD)
    file = tmp_path / "m" / "config.json"
    whole = file.read_bytes()
    first = whole.index(b'"scalelab"')
    for place in range(first, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 2
        file.write_bytes(damaged)
        if _same(bytes(damaged), whole):
            continue  # white space
        with pytest.raises(WeightsError, match=r"config\.json"):
            load_pretrained(tmp_path / "m")


def _same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_no_folder_and_others_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model folder at .*nowhere"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"holds no config\.json"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match="from_transformers"):
        load_pretrained(tmp_path)


def test_a_failed_write_leaves_the_old_folder_whole(
    tmp_path: Path, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", CARD)
    before = {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()}
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        real(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WeightsError, match="disk full"):
        save_pretrained(shaken("gpt2"), description, SPECIAL, tmp_path / "m", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == before


@pytest.mark.parametrize("value", [1e6, float("nan"), -float("inf")])
def test_a_weight_that_fp16_cannot_hold_is_refused(value: float, tmp_path: Path, description: str) -> None:
    model = shaken("llama")
    with torch.no_grad():
        model.blocks[0].attention.out.weight[0, 0] = value
    with pytest.raises(WeightsError, match=r"self_attn\.o_proj\.weight.*fp16"):
        save_pretrained(model, description, SPECIAL, tmp_path / "m", CARD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (SPECIAL | {"pad": 310}, "one after the other from 299"),
        ({"pad": 300}, "one after the other from 299"),
        ({"end_of_text": 299, "unknown": 300}, "one after the other from 299"),
        ({"end_of_text": 299, "pad": 300, "cls": 301, "sep": 302, "mask": 302}, "one after the other"),
    ],
)
def test_special_ids_that_do_not_fit_are_refused(
    special: Mapping[str, int], message: str, tmp_path: Path, description: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_pretrained(shaken("llama"), description, special, tmp_path / "m", CARD)


def test_a_table_too_small_for_the_special_ids_is_refused(tmp_path: Path, description: str) -> None:
    small = Decoder(DecoderConfig(**SHAPE | {"vocab_size": 300}, seq_len=8), seed=0)
    with pytest.raises(WeightsError, match="beyond the model's 300 tokens"):
        save_pretrained(small, description, SPECIAL, tmp_path / "m", CARD)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"type": "WordLevel", "vocab": {}}}'])
def test_what_is_no_vocabulary_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="description"):
        save_pretrained(shaken("llama"), text, SPECIAL, tmp_path / "m", CARD)


def test_taking_the_special_tokens_off_gives_the_description_back(description: str) -> None:
    for kind in ("decoder", "encoder", "encoder-decoder"):
        files = tokenizer_files(description, SPECIAL, kind=kind, seq_len=8)
        assert files["tokenizer.json"] != description
        assert description_of(files["tokenizer.json"]) == description


def test_what_is_no_model_folder_of_ours_is_left_alone(
    tmp_path: Path, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("thesis", "theirs", "ours", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "thesis" / "thesis.tex").write_text("three years")
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "file").write_text("notes")
    save_pretrained(shaken("gpt2"), description, SPECIAL, tmp_path / "ours", CARD)
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place, message in (
        (tmp_path / "thesis", "thesis.* holds thesis.tex, which would be lost: name another"),
        (tmp_path / "theirs", "theirs is there already, and its config.json is none of scalelab-model-1"),
        (tmp_path / "file", "file is there already, and is no folder"),
        (tmp_path / "ours", "ours.* holds notes.txt, which would be lost"),
        (Path(), "the folder this program runs in"),
    ):
        with pytest.raises(WeightsError, match=message):
            save_pretrained(shaken("llama"), description, SPECIAL, place, CARD)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_empty_folder_is_filled_and_a_folder_of_ours_replaced_whole(
    tmp_path: Path, description: str
) -> None:
    (tmp_path / "m").mkdir()
    for name in ("gpt2", "bert"):  # the second has one file less
        save_pretrained(shaken(name), description, SPECIAL, tmp_path / "m", CARD)
        assert type(load_pretrained(tmp_path / "m").model) is type(MODELS[name]())
    assert not (tmp_path / "m" / "generation_config.json").exists()


def test_a_card_is_read_as_json_gives_it_back(tmp_path: Path, description: str) -> None:
    card = {"losses": {2: 1.5, 10: 0.5}, "shape": (1, 2), "licences": {"corpus": "MIT"}, "note": "a|b\nc"}
    save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", card)
    read = load_pretrained(tmp_path / "m").card
    assert read == {**card, "losses": {"2": 1.5, "10": 0.5}, "shape": [1, 2]}
    text = (tmp_path / "m" / "README.md").read_text()
    assert "| note | a\\|b c |" in text
    assert "- corpus: MIT\n" in text


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, object()])
def test_a_card_that_is_no_json_is_refused(value: object, tmp_path: Path, description: str) -> None:
    with pytest.raises(WeightsError, match="card must hold JSON values only"):
        save_pretrained(shaken("llama"), description, SPECIAL, tmp_path / "m", {"where": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("heads", "task"),
    [
        ({"mlm_head": True, "pooler": False}, "fill-mask"),
        ({"mlm_head": True, "nsp_head": True}, "fill-mask"),
        ({"nsp_head": True}, "feature-extraction"),
        ({}, "feature-extraction"),
        ({"pooler": False}, "feature-extraction"),
    ],
)
def test_the_example_in_the_model_card_loads_every_head_and_draws_none(
    heads: dict[str, bool], task: str, tmp_path: Path, description: str
) -> None:
    pytest.importorskip("transformers")
    model = Encoder(EncoderConfig(**SHAPE, d_ff=32, seq_len=32, **heads), seed=0)  # type: ignore[arg-type]
    save_pretrained(model, description, SPECIAL, tmp_path / "m", CARD)
    text = (tmp_path / "m" / "README.md").read_text()
    assert f"pipeline_tag: {task}\n" in text
    example = text.split("```python\n")[1].split("```")[0]
    made: dict[str, Any] = {"folder": tmp_path / "m"}
    exec(example.replace("(folder", "(folder, output_loading_info=True", 1), made)
    theirs, report = made["model"]
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, tensor in from_transformers(theirs).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key].half().float()), key


def test_a_disk_that_refuses_is_not_called_full(
    tmp_path: Path, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(WeightsError, match="Permission denied; name another folder"):
        save_pretrained(shaken("gpt2"), description, SPECIAL, tmp_path / "m", CARD)


def test_a_post_processor_in_an_encoders_place_for_one_is_named(description: str) -> None:
    whole = tokenizers.Tokenizer.from_str(description)
    whole.post_processor = tokenizers.processors.ByteLevel()
    with pytest.raises(WeightsError, match="post-processor already"):
        tokenizer_files(whole.to_str(), SPECIAL, kind="encoder", seq_len=8)
    assert (
        description_of(tokenizer_files(whole.to_str(), SPECIAL, kind="decoder", seq_len=8)["tokenizer.json"])
        == whole.to_str()
    )


def test_what_is_no_model_of_ours_is_not_written(tmp_path: Path, description: str) -> None:
    with pytest.raises(WeightsError, match="got Linear"):
        save_pretrained(torch.nn.Linear(2, 2), description, SPECIAL, tmp_path / "m", CARD)  # type: ignore[arg-type]
