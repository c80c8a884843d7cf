"""Language models of one's own: found, read, turned from GGUF once, and divided at the lowest adapted block."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_model import WORDS, small_llama, write_gguf
from language_data import VOCAB, make_texts
from torch import nn

from contracts.errors import ConfigError, IntegrityError, NotReady
from contracts.subject import Subject
from recipes.checkpoints import load_arrays, to_arrays
from recipes.language import adapted
from recipes.language.adapted import Adapted
from recipes.language.adapters import train_adapters
from recipes.language.lora import LoraConfig, attach, lora, merged
from recipes.language.models import PretrainedConfig, pretrained_lm
from recipes.language.stored import model_folder
from recipes.models import builder
from recipes.plan import trained_builder
from recipes.predict import read
from sources.example_set import ExampleSet
from sources.stored_models import locate
from sources.tokenizers import stored_tokenizer

SIZES = {"hidden": 16, "intermediate": 32, "layers": 3, "heads": 2}
TOP = LoraConfig(rank=2, epochs=4, batch=6, lr=0.02, merge=False, targets=("q_proj", "down_proj"), layers=(1, 2))


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_texts()


@pytest.fixture(scope="module")
def llama() -> Any:
    return builder("tiny_llama", SIZES, input_shape=(8,), num_outputs=VOCAB)


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "state"))
    (tmp_path / "model").mkdir()
    return write_gguf(tmp_path / "model" / "small.gguf", small_llama())


def opened(path: Path | str, words: int = len(WORDS), **more: Any) -> Any:
    config = PretrainedConfig(path=str(path), **more)
    return pretrained_lm(config, input_shape=(8,), num_outputs=words).eval()


# ---- where a model lies ---------------------------------------------------------------------------------------------


def test_a_gguf_file_is_the_model_that_was_written_and_is_turned_once(gguf_file: Path, tmp_path: Path) -> None:
    model, ids = opened(gguf_file), torch.arange(12)[None] % len(WORDS)
    with torch.no_grad():
        said, written = (m(input_ids=ids).logits for m in (model, small_llama()))
    np.testing.assert_allclose(said, written, atol=2e-2)  # bfloat16
    assert (said.argmax(-1) == written.argmax(-1)).float().mean() > 0.9
    (made,) = (tmp_path / "state" / "models").iterdir()
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    for path in (gguf_file, gguf_file.parent):  # the file, or its folder
        again = opened(path)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp and len(list(made.parent.iterdir())) == 1
    assert json.loads((made / "source.json").read_text())["file"] == "small.gguf"


def test_another_file_is_another_model_and_a_changed_copy_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    first = model_folder(str(gguf_file), field="path")
    write_gguf(gguf_file, small_llama(seed=1))
    assert model_folder(str(gguf_file), field="path") != first
    weights = model_folder(str(gguf_file), field="path") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(IntegrityError, match="remove the folder"):
        opened(gguf_file)


def test_its_tokenizer_is_read_from_the_file_and_spells_the_text(gguf_file: Path, tmp_path: Path) -> None:
    made = stored_tokenizer(str(gguf_file), field="tokenizer")
    said = made.encode("the hat the")
    assert [WORDS[i] for i in said.ids] == ["the", "Ġ", "h", "a", "t", "Ġthe"]
    assert said.ends.tolist() == [3, 4, 5, 6, 7, 11] and made.decode(said.ids) == "the hat the"
    assert made.vocab_size == len(WORDS) and (made.bos, made.eos) == (0, 1)
    assert not (tmp_path / "state").exists()  # nothing is written to read it
    assert stored_tokenizer(str(gguf_file.parent), field="tokenizer").digest == made.digest


def test_what_is_not_there_is_refused_by_its_field(gguf_file: Path, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "plain")
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(b"GGUF")
    (tmp_path / "bare").mkdir()
    for path, what in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "nowhere.gguf", r"nowhere\.gguf"),
        (tmp_path / "bare", "holds no model"),
        (tmp_path / "two", r"2 GGUF files \(a\.gguf, b\.gguf\): name one"),
        (tmp_path / "two" / "a.gguf", "PretrainedConfig.path"),
    ):
        with pytest.raises(ConfigError, match=what):
            opened(path)
    with pytest.raises(ConfigError, match=r"knows 33 words"):
        opened(tmp_path / "plain", words=34)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        stored_tokenizer(str(tmp_path / "plain"), field="x.tokenizer")
    assert locate(str(gguf_file), field="f").gguf == "small.gguf"


def test_a_relative_path_lies_below_the_data_folder(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_DATA", str(gguf_file.parents[1]))
    assert locate("model", field="f") == locate(str(gguf_file), field="f")
    assert locate("model/small.gguf", field="f").gguf == "small.gguf"


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=20, is_decoder=False, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no causal language model"):
        opened(tmp_path, words=20)


@pytest.mark.parametrize("package", ["transformers", "gguf"])
def test_a_missing_extra_is_named_with_its_command(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for read_ in (lambda: opened(gguf_file), lambda: stored_tokenizer(str(gguf_file), field="f")):
        with pytest.raises(NotReady, match=rf"{package}.*pip install 'palimpsest-audit\[hf\]'"):
            read_()


# ---- adapters above frozen blocks -----------------------------------------------------------------------------------


def whole(llama: Any, config: LoraConfig, seed: int) -> Adapted:
    """The same adapters on the undivided model."""
    model = attach(llama(0), config, seed=seed)
    model._lower = None
    return model


def trained(model: Adapted, seed: int = 0) -> Adapted:
    """With adapters that change what it says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_B" in name:
                p.copy_(torch.rand(p.shape, generator=generator) - 0.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_once_gives_the_likelihoods_of_the_undivided_model(
    llama: Any, data: ExampleSet, dtype: torch.dtype
) -> None:
    config = LoraConfig(rank=2, targets=("q_proj", "down_proj"), layers=(1, 2), merge=False)
    models = []
    for divided in (True, False):
        model = attach(llama(0).to(dtype), config, seed=1)
        assert model._lower is not None
        model._lower = model._lower if divided else None
        models.append(trained(model))
    found, plain = (read(m, data, batch=7) for m in models)
    np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-6 if dtype == torch.float32 else 2e-2)
    assert np.abs(found.loss - read(llama(0), data).loss).max() > 0.01  # the adapters are at work
    again = read(models[0], data, batch=24)  # another batch, other padding: the states are the text's own
    np.testing.assert_allclose(again.loss, found.loss, rtol=1e-6 if dtype == torch.float32 else 2e-2)


def test_gradients_of_the_adapters_are_those_of_the_undivided_model(llama: Any, data: ExampleSet) -> None:
    from recipes.inputs import Inputs

    batch = Inputs(data, dtype=torch.float32).batch(torch.arange(6))
    grads = []
    for model in (attach(llama(0), TOP, seed=1), whole(llama, TOP, 1)):
        data.task.losses(trained(model), batch).mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1]) and len(grads[0]) == 8 and all("lora_" in n for n in grads[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-7)


def test_each_text_passes_the_frozen_blocks_once_for_all_adapters(
    llama: Any, data: ExampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted._States, "_last", None)
    base = llama(0)
    passes = {layer: 0 for layer in range(3)}

    def counted(layer: int) -> Any:
        def count(*_: Any) -> None:
            passes[layer] += 1

        return count

    for layer, block in enumerate(base.model.layers):
        block.register_forward_pre_hook(counted(layer))
    members = [np.arange(12), np.arange(6, 18), np.arange(12, 24)]
    list(train_adapters(base, data, config=TOP, members=members, seeds=[1, 2, 3]))
    different = len({data.x.texts(np.array([row]))[0].tobytes() for row in range(len(data))})
    assert passes[0] == different + 2 and passes[2] > 3 * 4 * 2  # and two of the comparison before


def test_the_states_are_not_used_once_the_frozen_weights_change(llama: Any, data: ExampleSet) -> None:
    model = attach(llama(0), TOP, seed=1)
    before = read(model, data).loss
    with torch.no_grad():
        for p in model.model.base_model.model.model.layers[0].parameters():
            p.mul_(1.5)
    plain = whole(llama, TOP, 1)
    with torch.no_grad():
        for p in plain.model.base_model.model.model.layers[0].parameters():
            p.mul_(1.5)
    np.testing.assert_allclose(read(model, data).loss, read(plain, data).loss, rtol=1e-6)
    assert np.abs(read(model, data).loss - before).max() > 1e-3
    trains = attach(llama(0), TOP, seed=1)
    trains.requires_grad_(True)
    read(trains, data)
    data.task.losses(trains, _batch(data)).mean().backward()
    assert trains.model.base_model.model.model.layers[0].self_attn.q_proj.weight.grad is not None


def _batch(data: ExampleSet) -> Any:
    from recipes.inputs import Inputs

    return Inputs(data, dtype=torch.float32).batch(torch.arange(4))


def test_two_bases_do_not_share_their_states(llama: Any, data: ExampleSet) -> None:
    first = read(attach(llama(0), TOP, seed=1), data).loss
    second = read(attach(llama(5), TOP, seed=1), data).loss
    np.testing.assert_allclose(second, read(llama(5), data).loss, rtol=1e-6)
    np.testing.assert_allclose(first, read(llama(0), data).loss, rtol=1e-6)


def test_a_copy_is_a_model_of_its_own_that_knows_the_states(llama: Any, data: ExampleSet) -> None:
    model = trained(attach(llama(0), TOP, seed=1))
    before = read(model, data).values
    other = copy.deepcopy(model)
    assert other._lower is not None and other._lower.states is model._lower.states  # type: ignore[union-attr]
    np.testing.assert_array_equal(read(other, data).values, before)
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.zero_()
    np.testing.assert_array_equal(read(model, data).values, before)
    assert not np.array_equal(read(other, data).values, before)
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in other.parameters()}


def test_only_adapters_are_saved_and_a_fresh_base_with_them_answers_alike(llama: Any, data: ExampleSet) -> None:
    plan = Subject.from_mapping(
        {
            "subject": "texts",
            "source": {"name": "authors"},
            "model": {"name": "tiny_llama", "config": SIZES},
            "recipe": {"name": "lora", "config": _plain(TOP)},
        }
    )
    build = trained_builder(plan, data)
    model = lora(lambda _: llama(plan.seed), data, config=TOP, seed=3).eval()
    arrays = to_arrays(model)
    assert arrays and all("lora_" in name for name in arrays) and len(arrays) == 8
    fresh = build(plan.seed)
    load_arrays(fresh, arrays)
    np.testing.assert_array_equal(read(fresh.eval(), data).values, read(model, data).values)
    merges = Subject.from_mapping(
        {
            "subject": "texts",
            "source": {"name": "authors"},
            "model": {"name": "tiny_llama", "config": SIZES},
            "recipe": {"name": "lora", "config": _plain(TOP) | {"merge": True}},
        }
    )
    assert not isinstance(trained_builder(merges, data)(0), Adapted)


def _plain(config: LoraConfig) -> dict[str, Any]:
    return {"rank": config.rank, "targets": list(config.targets), "layers": list(config.layers), "merge": config.merge}


def test_merged_it_is_the_base_with_the_adapters_in_it(llama: Any, data: ExampleSet) -> None:
    model = trained(attach(llama(0), TOP, seed=1))
    said = read(model, data).loss
    plain = merged(model)
    assert set(plain.state_dict()) == set(llama(0).state_dict())
    np.testing.assert_allclose(read(plain, data).loss, said, rtol=1e-5)


def test_what_cannot_be_divided_is_run_whole(llama: Any, data: ExampleSet) -> None:
    dropped = llama(0)
    dropped.config.attention_dropout = 0.1
    everywhere = LoraConfig(rank=2, merge=False)
    for base, config in ((dropped, TOP), (llama(0), everywhere)):
        model = attach(base, config, seed=1)
        assert model._lower is None
        np.testing.assert_allclose(read(model, data).loss, read(llama(0), data).loss, rtol=1e-6)

    class Scaled(nn.Module):  # a head of another kind: the divided model would leave its factor out
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.weight = inner, inner.weight  # type: ignore[assignment]

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.inner(states)

    odd = llama(0)
    original = odd.forward

    def scaled(*args: Any, **more: Any) -> Any:
        found = original(*args, **more)
        found.logits = found.logits / 3
        return found

    odd.forward = scaled
    assert attach(odd, TOP, seed=1)._lower is None
    with pytest.raises(ConfigError, match="has adapters already"):
        attach(attach(llama(0), TOP, seed=1), TOP, seed=2)


def test_padding_on_the_left_is_run_whole(llama: Any, data: ExampleSet) -> None:
    model = trained(attach(llama(0), TOP, seed=1)).eval()
    ids = torch.tensor([[0, 0, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    plain = trained(whole(llama, TOP, 1)).eval()
    with torch.no_grad():
        found, said = model(input_ids=ids, attention_mask=mask), plain(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found.logits, said.logits)
