"""Language models are trained as their recipes say: the same bits, resumed or straight; adapters alone move; many on
one base."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_data import VOCAB, build, flat, make_texts
from torch import nn

from contracts.errors import ConfigError, DataError, Diverged, IntegrityError, NotApplicable
from contracts.methods import recipe
from contracts.subject import Ensemble, Subject
from recipes.inputs import Inputs
from recipes.language.adapters import adapter_ensemble, train_adapters
from recipes.language.causal import causal_lm
from recipes.language.fitting import TokenTrainingConfig, fit_tokens
from recipes.language.lora import LoraConfig, adapter_arrays, attach, load_adapter, lora, merged
from recipes.language.models import TinyLlamaConfig, pretrained_lm, tiny_llama, weights_digest
from recipes.models import build as build_named
from recipes.models import builder
from recipes.plan import tried_model
from recipes.predict import read
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens
from tasks.base import Reading

CONFIG = TokenTrainingConfig(lr=0.02, epochs=12, batch=5)
SMALL = {"hidden": 16, "intermediate": 32, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return make_texts()


@pytest.fixture(scope="module")
def llama() -> Callable[[int], nn.Module]:
    return builder("tiny_llama", SMALL, input_shape=(8,), num_outputs=VOCAB)


class Store:
    """A checkpoint store in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def save(self, name: str, arrays: Any, meta: Any) -> None:
        self.kept[name] = ({k: np.array(v) for k, v in arrays.items()}, dict(meta))

    def load(self, name: str) -> Any:
        return self.kept.get(name)


# ---- from scratch -------------------------------------------------------------------------------------------------


def test_training_is_a_plain_loop(data: ExampleSet) -> None:
    """One epoch of one batch: AdamW on the mean over sequences of the mean NLL over tokens."""
    config = TokenTrainingConfig(lr=0.01, epochs=1, batch=64, schedule="constant", warmup_epochs=0, grad_clip=None)
    found = causal_lm(build, data, config=config, seed=3)
    model = build(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    total = torch.zeros(())
    for row in range(len(data)):
        ids, labels = data.inputs(np.array([row]))["input_ids"], data.targets(np.array([row]))
        logits = model(torch.from_numpy(ids), None)[0].log_softmax(-1)
        own = [logits[t - 1, labels[0, t]] for t in range(1, ids.shape[1]) if labels[0, t] != -100]
        total = total - sum(own) / len(own)
    (total / len(data)).backward()
    optimizer.step()
    torch.testing.assert_close(flat(found), flat(model), rtol=1e-4, atol=1e-4)


def test_texts_are_memorised_and_read(data: ExampleSet) -> None:
    train = data.part("train")
    model = causal_lm(build, train, config=TokenTrainingConfig(lr=0.02, epochs=60, batch=6), seed=0)
    assert read(model, train).quality.mean() > 0.95 and not model.training
    assert read(model, train).loss.mean() < 0.1 < read(model, data.part("test")).loss.mean()


def test_same_seed_same_bits_and_the_global_generator_is_left_alone(
    data: ExampleSet, rng_left_alone: Callable[[], AbstractContextManager[None]]
) -> None:
    def noisy(seed: int) -> nn.Module:
        return build(seed, dropout=0.2)

    with rng_left_alone():
        first = causal_lm(noisy, data, config=CONFIG, seed=1)
    assert torch.equal(flat(first), flat(causal_lm(noisy, data, config=CONFIG, seed=1)))
    assert not torch.equal(flat(first), flat(causal_lm(noisy, data, config=CONFIG, seed=2)))


@pytest.mark.parametrize("stop", [4, 7])
def test_a_run_that_was_stopped_and_taken_up_is_the_straight_run(data: ExampleSet, stop: int) -> None:
    def noisy(seed: int) -> nn.Module:
        return build(seed, dropout=0.2)

    store, straight = Store(), causal_lm(noisy, data, config=CONFIG, seed=1)
    early = causal_lm(noisy, data, config=CONFIG, seed=1, stop_after=stop, checkpoints=store, checkpoint_every=2)
    assert not torch.equal(flat(early), flat(straight))
    told: list[int] = []
    resumed = causal_lm(
        noisy, data, config=CONFIG, seed=1, checkpoints=store, progress=lambda done, total, what: told.append(done)
    )
    assert torch.equal(flat(resumed), flat(straight)) and told[0] == stop + 1
    other = causal_lm(noisy, data, config=CONFIG, seed=2, checkpoints=store)  # not of this run: not used
    assert torch.equal(flat(other), flat(causal_lm(noisy, data, config=CONFIG, seed=2)))


def test_steps_in_place_of_epochs(data: ExampleSet) -> None:
    trainer = Trainer(recipe="causal_lm", build=build, config=CONFIG)
    seen: list[int] = []

    class Counted(type(build(0))):  # type: ignore[misc]
        def forward(self, *args: Any, **named: Any) -> Any:
            seen.append(1)
            return super().forward(*args, **named)

    def counting(seed: int) -> nn.Module:
        model = build(seed)
        model.__class__ = Counted
        return model

    dataclasses.replace(trainer, build=counting).of_length(steps=13).one(data, 0)
    assert len(seen) == 13


def test_what_cannot_be_trained_is_refused(data: ExampleSet) -> None:
    with pytest.raises(DataError, match="no example"):
        causal_lm(build, data.take(np.empty(0, np.int64)), config=CONFIG, seed=0)
    with pytest.raises(ConfigError, match="checkpoint_every"):
        causal_lm(build, data, config=CONFIG, seed=0, checkpoint_every=0)
    with pytest.raises(ConfigError, match="stop_after"):
        causal_lm(build, data, config=CONFIG, seed=0, stop_after=99)
    for tokens, message in (([1, 99], "vocab_size"), ([5], "nothing to predict")):
        texts = [np.array(tokens, np.int32)] + [np.array([1, 2], np.int32)] * 23
        with pytest.raises(DataError, match=message) as caught:
            causal_lm(build, dataclasses.replace(data, x=Tokens.of(texts, vocab_size=VOCAB)), config=CONFIG, seed=0)
        assert caught.value.example_ids == (int(data.example_id[0]),)
    with pytest.raises(DataError, match="own targets"):
        causal_lm(build, dataclasses.replace(data, y=data.y + 1), config=CONFIG, seed=0)
    with pytest.raises(ConfigError, match="label_smoothing"):
        TokenTrainingConfig(label_smoothing=0.1)


def test_leaving_the_numbers_is_divergence(data: ExampleSet) -> None:
    def broken(seed: int) -> nn.Module:
        model: Any = build(seed)
        with torch.no_grad():
            model.head.bias[3] = float("inf")
        return model

    with pytest.raises(Diverged, match="epoch 1 of 12"):
        causal_lm(broken, data, config=CONFIG, seed=0)


def test_the_recipes_are_found_by_their_place() -> None:
    assert {"causal_lm", "lora"} <= set(recipe.names())


def test_texts_are_not_for_recipes_of_vectors(data: ExampleSet) -> None:
    with pytest.raises(NotApplicable, match="supervised"):
        Trainer(recipe="supervised", build=build, config=recipe.get("supervised").spec.config()).one(data, 0)


def test_inputs_of_texts_are_batches_padded_to_their_longest(data: ExampleSet) -> None:
    inputs = Inputs(data, dtype=torch.float32)
    rows = torch.tensor([5, 0, 7])
    found, wanted = inputs.batch(rows), data.inputs(rows.numpy())
    assert {k: v.tolist() for k, v in found.inputs.items()} == {k: v.tolist() for k, v in wanted.items()}
    assert found.inputs["input_ids"].dtype == torch.int64
    assert found.targets.tolist() == data.targets(rows.numpy()).tolist()
    assert found.example_id.tolist() == data.example_id[[5, 0, 7]].tolist()
    assert inputs.slice(2, 4).targets.tolist() == data.targets(slice(2, 4)).tolist()


# ---- models -------------------------------------------------------------------------------------------------------


def test_the_small_llama_is_a_function_of_its_seed(llama: Callable[[int], nn.Module]) -> None:
    assert torch.equal(flat(llama(1)), flat(llama(1))) and not torch.equal(flat(llama(1)), flat(llama(2)))
    tinytofu = build_named("tiny_llama", input_shape=(25,), num_outputs=492, seed=0)
    assert sum(p.numel() for p in tinytofu.parameters()) == 854_656
    with pytest.raises(ConfigError, match="rotary"):
        TinyLlamaConfig(hidden=24, heads=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama: Callable[[int], nn.Module]) -> Path:
    """A saved base model."""
    where = tmp_path_factory.mktemp("base")
    base: Any = llama(7)
    base.save_pretrained(where, safe_serialization=True)
    return where


def test_a_given_model_is_read_from_its_folder(
    folder: Path, llama: Callable[[int], nn.Module], data: ExampleSet
) -> None:
    config = {"path": str(folder), "sha256": weights_digest(folder)}
    given = [build_named("pretrained_lm", config, input_shape=(8,), num_outputs=VOCAB, seed=seed) for seed in (0, 1)]
    assert torch.equal(flat(given[0]), flat(llama(7))) and torch.equal(flat(given[0]), flat(given[1]))
    np.testing.assert_allclose(read(given[0], data).values, read(llama(7), data).values, rtol=1e-6)
    half = build_named("pretrained_lm", config | {"dtype": "bfloat16"}, input_shape=(8,), num_outputs=VOCAB, seed=0)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_folder_that_is_not_the_one_meant_is_refused(folder: Path, tmp_path: Path) -> None:
    def open_(**config: Any) -> nn.Module:
        return build_named("pretrained_lm", config, input_shape=(8,), num_outputs=VOCAB, seed=0)

    with pytest.raises(ConfigError, match="holds no model"):
        open_(path=str(tmp_path))
    with pytest.raises(IntegrityError, match="SHA-256"):
        open_(path=str(folder), sha256="0" * 64)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no folder with config"):
        open_(path=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"PretrainedConfig\.path"):
        open_(path=str(tmp_path))
    with pytest.raises(ConfigError, match="knows 20 words"):
        build_named("pretrained_lm", {"path": str(folder)}, input_shape=(8,), num_outputs=21, seed=0)


@pytest.mark.journey
def test_an_audit_of_digits_imports_no_library_of_other_kinds() -> None:
    """Every method is found without what language models, graphs and masks need being imported."""
    code = (
        "import sys\n"
        "import pipelines.definitions, recipes.models\n"
        "from contracts.methods import REGISTRIES\n"
        "for registry in REGISTRIES: registry.names()\n"
        "from unlearning.language import metrics, muse, decoding\n"
        "heavy = {'transformers', 'peft', 'accelerate', 'tokenizers', 'rouge_score', 'nltk', 'gguf', 'diffusers',\n"
        "         'ray', 'torch_geometric', 'skimage'} & set(sys.modules)\n"
        "print(sorted(heavy), 'flat' in dict.fromkeys(REGISTRIES[-3].names()) or any('flat' in r.names() for r in "
        "REGISTRIES))\n"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[-2] == "[] True"


# ---- adapters -----------------------------------------------------------------------------------------------------

LORA = LoraConfig(rank=2, epochs=4, batch=6, lr=0.02)


def test_adapters_start_as_the_base_and_alone_move(llama: Callable[[int], nn.Module], data: ExampleSet) -> None:
    base = llama(0)
    fresh = attach(llama(0), LORA, seed=1)
    np.testing.assert_array_equal(read(fresh, data).values, read(base, data).values)
    trained = {n for n, p in fresh.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    fit_tokens(fresh, data, np.arange(len(data)), config=LORA, seed=1, stop_after=4)
    own = dict(base.named_parameters())
    for name, parameter in fresh.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("model.base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, own[plain]), name
    assert all(bool(p.abs().max() > 0) for n, p in fresh.named_parameters() if "lora_B" in n)


def test_the_merged_model_says_what_the_adapted_one_says(llama: Callable[[int], nn.Module], data: ExampleSet) -> None:
    config = dataclasses.replace(LORA, epochs=20)
    apart = lora(llama, data, config=dataclasses.replace(config, merge=False), seed=3)
    said = read(apart, data)
    whole = lora(llama, data, config=config, seed=3)
    np.testing.assert_allclose(read(whole, data).loss, said.loss, rtol=1e-5)
    assert set(whole.state_dict()) == set(llama(0).state_dict())
    assert all(p.requires_grad for p in whole.parameters()) and not whole.training
    assert said.loss.mean() < read(llama(3), data).loss.mean() - 0.05


def test_lora_is_deterministic_and_its_product_is_low_rank(llama: Callable[[int], nn.Module], data: ExampleSet) -> None:
    fixed = llama(0)

    def base(seed: int) -> nn.Module:
        model = llama(0)
        model.load_state_dict(fixed.state_dict())
        return model

    first, again, other = (lora(base, data, config=LORA, seed=s) for s in (1, 1, 2))
    assert torch.equal(flat(first), flat(again)) and not torch.equal(flat(first), flat(other))
    change = first.model.layers[0].self_attn.q_proj.weight - fixed.model.layers[0].self_attn.q_proj.weight
    singular = torch.linalg.svdvals(change.detach())
    assert singular[1] > 1e-4 and (singular[2:] < 1e-5).all()
    assert torch.equal(first.lm_head.weight, fixed.lm_head.weight)


@pytest.mark.parametrize("stop", [1, 3])
def test_adapters_that_were_stopped_and_taken_up_are_the_straight_run(
    llama: Callable[[int], nn.Module], data: ExampleSet, stop: int
) -> None:
    config = dataclasses.replace(LORA, dropout=0.2)
    store, straight = Store(), lora(llama, data, config=config, seed=1)
    lora(llama, data, config=config, seed=1, stop_after=stop, checkpoints=store)
    assert not any("base_layer" in name for name in store.kept["lora"][0])  # the base is not kept
    told: list[int] = []
    resumed = lora(
        llama, data, config=config, seed=1, checkpoints=store, progress=lambda done, total, what: told.append(done)
    )
    assert torch.equal(flat(resumed), flat(straight)) and told[0] == stop + 1
    other = lora(llama, data, config=config, seed=2, checkpoints=store)
    assert torch.equal(flat(other), flat(lora(llama, data, config=config, seed=2)))


def test_adapters_can_be_told_where_to_go(llama: Callable[[int], nn.Module]) -> None:
    config = dataclasses.replace(LORA, targets=("q_proj", "down_proj"), layers=(1,))
    names = adapter_arrays(attach(llama(0), config, seed=0))
    assert len(names) == 4 and all(".layers.1." in n and ("q_proj" in n or "down_proj" in n) for n in names)
    with pytest.raises(ConfigError, match="targets"):
        dataclasses.replace(LORA, layers=(1,))
    with pytest.raises(ConfigError, match="adapters on"):
        attach(llama(0), dataclasses.replace(LORA, targets=("nothing",)), seed=0)


def test_many_adapters_on_one_base_are_what_the_recipe_gives_for_each(
    llama: Callable[[int], nn.Module], data: ExampleSet
) -> None:
    rng, seeds = np.random.default_rng(0), [5, 6, 7]
    members = [np.sort(rng.permutation(len(data))[:12]) for _ in seeds]
    found = list(train_adapters(llama(0), data, config=LORA, members=members, seeds=seeds))
    for one, rows, seed in zip(found, members, seeds, strict=True):
        alone = lora(lambda _: llama(0), data.take(rows), config=dataclasses.replace(LORA, merge=False), seed=seed)
        arrays = adapter_arrays(alone)
        assert set(arrays) == set(one.arrays)
        assert all(np.array_equal(arrays[n], one.arrays[n]) for n in arrays)
        np.testing.assert_array_equal(one.reading.values, read(alone, data, batch=32).values)
    members_fit = [one.reading.loss[rows].mean() for one, rows in zip(found, members, strict=True)]
    others = [np.delete(one.reading.loss, rows).mean() for one, rows in zip(found, members, strict=True)]
    assert np.mean(members_fit) < np.mean(others)
    with pytest.raises(ConfigError, match="one seed"):
        next(train_adapters(llama(0), data, config=LORA, members=members, seeds=[1]))


def test_an_ensemble_of_adapters_is_a_reference_ensemble_and_is_resumed(
    llama: Callable[[int], nn.Module], data: ExampleSet
) -> None:
    asked = Ensemble(num_models=4, population_fraction=0.5)
    config, store, told = dataclasses.replace(LORA, epochs=15), Store(), []
    given = {"config": config, "ensemble": asked, "seed": 1, "checkpoints": store}
    found = adapter_ensemble(
        llama(0), data, **given, progress=lambda done, total, what: told.append((done, total, what))
    )
    assert found.reading.shape == (4, len(found.example_id), 4) and told[-1] == (4, 4, "reference models")
    assert (found.keep.sum(0) == 2 * found.pool).all()
    fit, rest = (
        np.mean([r.loss[k].mean() for r, k in zip(map(Reading, found.reading), which, strict=True)])
        for which in (found.keep, ~found.keep & found.pool)
    )
    assert fit < rest
    del store.kept["adapters-00002"]  # killed after two of them, the last one made before
    again = adapter_ensemble(llama(0), data, **given)
    np.testing.assert_array_equal(again.reading, found.reading)
    assert again.config_digest == found.config_digest
    other = adapter_ensemble(llama(1), data, **given)  # another base: nothing of the store is used
    assert other.config_digest != found.config_digest and not np.array_equal(other.reading, found.reading)


def test_kept_adapters_can_be_put_back(llama: Callable[[int], nn.Module], data: ExampleSet) -> None:
    rows = np.arange(9)
    (one,) = train_adapters(llama(0), data, config=LORA, members=[rows], seeds=[4])
    model = attach(llama(0), LORA, seed=99)
    load_adapter(model, one.arrays)
    np.testing.assert_array_equal(read(model, data, batch=32).values, one.reading.values)
    assert not any("lora_" in n for n in merged(model).state_dict())
    with pytest.raises(ConfigError, match="another model"):
        load_adapter(attach(llama(0), dataclasses.replace(LORA, rank=3), seed=0), one.arrays)


@pytest.mark.journey
def test_an_adapter_more_costs_its_own_passes(llama: Callable[[int], nn.Module], data: ExampleSet) -> None:
    """Against the bare passes over the same batches, in CPU time: at most 1.15 times, the quieter of three attempts."""
    wide = builder("tiny_llama", {"hidden": 128, "layers": 4, "heads": 4}, input_shape=(8,), num_outputs=VOCAB)
    config, halves = dataclasses.replace(LORA, epochs=25, batch=12), [np.arange(12), np.arange(12, 24)] * 2

    def bare(model: nn.Module) -> float:
        start = time.process_time()
        for rows in halves:
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
            inputs = Inputs(data.take(rows), dtype=torch.float32)
            for _ in range(config.epochs):
                data.task.losses(model, inputs.batch(torch.randperm(12))).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            read(model, data, batch=32)
        return time.process_time() - start

    ratios = []
    for _ in range(3):
        passes = bare(attach(wide(0), config, seed=0))
        start = time.process_time()
        list(train_adapters(wide(0), data, config=config, members=halves, seeds=range(4)))
        ratios.append((time.process_time() - start) / passes)
    assert min(ratios) <= 1.15, ratios


def test_a_llama_is_built_with_what_the_data_says(data: ExampleSet) -> None:
    made = tiny_llama(TinyLlamaConfig(**SMALL), input_shape=data.input_shape, num_outputs=data.task.num_outputs(data))
    assert made.config.vocab_size == VOCAB
    with pytest.raises(TypeError):
        pretrained_lm()  # type: ignore[call-arg]


def test_a_plan_of_texts_is_tried_before_it_is_trained(data: ExampleSet) -> None:
    plan = Subject.from_mapping(
        {
            "subject": "texts",
            "source": {"name": "authors"},
            "model": {"name": "tiny_llama", "config": SMALL},
            "recipe": {"name": "causal_lm"},
            "device": "cpu",
        }
    )
    model = tried_model(plan, data)
    assert torch.equal(flat(model), flat(build_named("tiny_llama", SMALL, input_shape=(8,), num_outputs=VOCAB, seed=0)))
    assert model.training and all(p.grad is None for p in model.parameters())
    with pytest.raises(ConfigError, match="fails to answer 18 training examples"):
        tried_model(dataclasses.replace(plan, model=dataclasses.replace(plan.model, name="mlp", config={})), data)
