from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from contracts.errors import ConfigError, NotApplicable, UnknownName
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.models import MODELS, build, builder, model_version
from recipes.rng import local_rng

SMALL = {
    "mlp": {"hidden": [8, 5], "activation": "gelu"},
    "cnn": {"channels": [4, 6], "hidden": 7},
    "convnet": {"width": 6, "depth": 2},
    "resnet_gn": {"widths": [8, 16], "blocks": 2, "groups": 4},
    "vit": {"dim": 8, "depth": 2, "heads": 2},
    "unet": {"channels": [4, 6], "deep": 1},
}


@pytest.fixture(autouse=True)
def _user_models(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_initialisation_is_a_function_of_the_seed_alone(name, rng_left_alone):
    make = builder(name, SMALL[name], input_shape=(1, 8, 8), num_outputs=3)
    with rng_left_alone():
        first = arrays_digest(to_arrays(make(7)))
    with local_rng(99):
        torch.rand(5)
        assert arrays_digest(to_arrays(make(7))) == first
    assert arrays_digest(to_arrays(make(8))) != first


@pytest.mark.parametrize("name", sorted(SMALL))
def test_each_row_has_its_own_logits(name):
    """An example's logits do not depend on its batch: no layer mixes examples, in train mode either."""
    model = build(name, SMALL[name], input_shape=(2, 8, 8), num_outputs=3, seed=0).double()
    assert model.training
    x = torch.rand(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = model(x)
    assert together.shape == ((5, 3, 8, 8) if name == "unet" else (5, 3))
    assert torch.allclose(together, torch.cat([model(row[None]) for row in x]), atol=1e-12)


def test_mlp_is_the_formula_in_its_docstring():
    model = build("mlp", {"hidden": [4], "activation": "tanh"}, input_shape=(3,), num_outputs=2, seed=1).double()
    x = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, head = model.hidden[0], model.head
    by_hand = torch.tanh(x @ first.weight.T + first.bias) @ head.weight.T + head.bias
    assert torch.allclose(model(x), by_hand, atol=1e-14)


def test_vit_attention_is_scaled_dot_product_attention():
    layer = build("vit", SMALL["vit"], input_shape=(1, 8, 8), num_outputs=2, seed=3).double().layers[0]
    x = torch.rand(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = (p.reshape(2, 4, 2, 4).transpose(1, 2) for p in layer.qkv(x).chunk(3, -1))
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(layer._attend(x), layer.out(attended.transpose(1, 2).reshape(2, 4, 8)), atol=1e-12)


def test_vit_has_49_tokens_on_28_by_28():
    model = build("vit", None, input_shape=(1, 28, 28), num_outputs=10, seed=0)
    assert model.tokens == 49 and len(model.layers) == 4 and model.head.in_features == 64


def test_parameter_names_are_stable():
    names = list(to_arrays(build("mlp", {"hidden": [4, 3]}, input_shape=(2,), num_outputs=2, seed=0)))
    assert names == ["hidden.0.weight", "hidden.0.bias", "hidden.1.weight", "hidden.1.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("name", ["cnn", "convnet", "resnet_gn", "vit", "unet"])
def test_image_models_refuse_vectors(name):
    with pytest.raises(NotApplicable, match=r"\(30,\)"):
        build(name, None, input_shape=(30,), num_outputs=2, seed=0)


@pytest.mark.parametrize(
    ("name", "config", "shape", "error", "words"),
    [
        ("resnet", {}, (1, 8, 8), UnknownName, "resnet_gn"),
        ("mlp", {"width": 3}, (4,), ConfigError, "has no field width"),
        ("mlp", {"hidden": [0]}, (4,), ConfigError, ">= 1"),
        ("resnet_gn", {"groups": 5}, (1, 8, 8), ConfigError, "divide"),
        ("vit", {"heads": 3}, (1, 8, 8), ConfigError, "divide"),
        ("vit", {}, (1, 9, 8), NotApplicable, "9 x 8"),
        ("cnn", {}, (1, 3, 8), NotApplicable, "4 x 4"),
        ("convnet", {}, (1, 7, 9), NotApplicable, "8 x 8; these are 7 x 9"),
        ("unet", {}, (1, 7, 9), NotApplicable, "8 x 8; these are 7 x 9"),
        ("unet", {"channels": [4]}, (1, 8, 8), ConfigError, "2 to 9 levels"),
        ("unet", {"deep": 3}, (1, 8, 8), ConfigError, "below the 3 levels"),
        ("mlp", {}, (), ConfigError, "input_shape"),
        ("no_such_module_here:f", {}, (4,), ConfigError, "cannot be imported"),
        ("recipes_user_models:absent", {}, (4,), ConfigError, "cannot be imported"),
        ("recipes_user_models:wrong_outputs", {}, (4,), ConfigError, r"\(2, 3\)"),
        ("recipes_user_models:not_a_module", {}, (4,), ConfigError, "dict"),
        ("recipes_user_models:frozen", {}, (4,), ConfigError, "no trainable"),
    ],
)
def test_refusals(name, config, shape, error, words):
    with pytest.raises(error, match=words):
        build(name, config, input_shape=shape, num_outputs=2, seed=0)


def test_the_unet_is_what_its_docstring_says():
    """Written out for two levels: block, pooling, block, transposed convolution, the skip beside it, block, head."""
    import torch.nn.functional as F

    model = build("unet", {"channels": [4, 6]}, input_shape=(2, 8, 8), num_outputs=3, seed=0).double()
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def block(part, h):
        for conv, norm in zip(part.convs, part.norms, strict=True):
            h = conv(h)
            centred = h - h.mean((2, 3), keepdim=True)
            h = centred / (centred.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()
            h = F.relu(h * norm.weight[:, None, None] + norm.bias[:, None, None])
        return h

    top = block(model.down[0], x)
    low = block(model.down[1], F.max_pool2d(top, 2))
    joined = block(model.joined[0], torch.cat([model.up[0](low), top], 1))
    torch.testing.assert_close(model(x), model.head(joined), rtol=1e-9, atol=1e-12)


def test_the_unet_takes_any_size_and_answers_at_full_size():
    model = build("unet", {"channels": [4, 6, 8], "deep": 2}, input_shape=(1, 13, 11), num_outputs=2, seed=0).double()
    x = torch.rand(2, 1, 13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert [z.shape for z in model.outputs(x)] == [(2, 2, 13, 11)] * 3
    padded = torch.nn.functional.pad(x, (0, 1, 0, 3))
    torch.testing.assert_close(model(x), model(padded)[..., :13, :11])
    torch.testing.assert_close(model(x), model.outputs(x)[0])
    coarse = model.outputs(padded)[2]
    assert torch.equal(coarse, coarse[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_a_users_callable_is_seeded_and_gets_its_configuration(rng_left_alone):
    name = "recipes_user_models:linear"
    with rng_left_alone():
        one = build(name, {"scale": 1.0}, input_shape=(2, 3), num_outputs=4, seed=5)
    two = build(name, {"scale": 2.0}, input_shape=(2, 3), num_outputs=4, seed=5)
    assert torch.equal(2 * one[1].weight, two[1].weight) and one.training
    assert "recipes_user_models" in sys.modules


def test_a_built_in_model_has_a_version_of_its_own(monkeypatch):
    before = {name: model_version(name) for name in MODELS}
    assert before["cnn"] == "1" and all(version.isdigit() for version in before.values())
    monkeypatch.setattr(MODELS["cnn"][0], "version", 9)
    assert {name: model_version(name) for name in MODELS} == before | {"cnn": "9"}
    with pytest.raises(UnknownName, match="module:callable"):
        model_version("resnet")


class TestTheVersionOfAUsersModel:
    """It is the digest of the module's source and of what it imports from beside itself; nothing is imported to tell
    it."""

    FILES: ClassVar = {
        "mine_net.py": "import torch\nfrom mine_blocks import Block\nimport mine_pkg.deep.layer\n",
        "mine_blocks.py": "from mine_far import f\nclass Block: ...\n",
        "mine_far.py": "import mine_blocks\nf = 1\n",
        "mine_pkg/__init__.py": "from .deep import layer as layer\n",
        "mine_pkg/deep/__init__.py": "",
        "mine_pkg/deep/layer.py": "from .. import shared\nfrom . import sibling\nfrom .twin import T\n",
        "mine_pkg/deep/sibling.py": "",
        "mine_pkg/deep/twin.py": "T = 1\n",
        "mine_pkg/shared.py": "",
    }
    OTHERS: ClassVar = {"mine_unrelated.py": "", "mine_pkg/unused.py": "", "data.csv": "1,2\n"}

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        for name, text in {**self.FILES, **self.OTHERS}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    def test_it_follows_the_code_and_nothing_else(self, folder):
        first = model_version("mine_net:Net")
        assert len(first) == 64 and first == model_version("mine_net:Other")
        for name, text in self.OTHERS.items():
            (folder / name).write_text(text + "# changed\n")
        assert model_version("mine_net:Net") == first
        for name, text in self.FILES.items():
            (folder / name).write_text(text + "# changed\n")
            assert model_version("mine_net:Net") != first, name
            (folder / name).write_text(text)
            assert model_version("mine_net:Net") == first, name
        assert not any(name.startswith("mine_") for name in sys.modules)

    def test_a_module_of_a_package_stands_for_its_parents_too(self, folder):
        first = model_version("mine_pkg.deep.layer:Net")
        for name in (
            "mine_pkg/__init__.py",
            "mine_pkg/deep/__init__.py",
            "mine_pkg/deep/twin.py",
            "mine_pkg/shared.py",
        ):
            kept = (folder / name).read_text()
            (folder / name).write_text(kept + "# changed\n")
            assert model_version("mine_pkg.deep.layer:Net") != first, name
            (folder / name).write_text(kept)

    def test_an_installed_package_is_its_own_files(self, folder, monkeypatch):
        installed = folder / "site-packages"
        for name, text in {
            "lib/__init__.py": "import other\nfrom lib import net\n",
            "lib/net.py": "",
            "other.py": "",
        }.items():
            (installed / name).parent.mkdir(parents=True, exist_ok=True)
            (installed / name).write_text(text)
        monkeypatch.syspath_prepend(str(installed))
        first = model_version("lib:Net")
        (installed / "other.py").write_text("# changed")
        assert model_version("lib:Net") == first
        (installed / "lib/net.py").write_text("# changed")
        assert model_version("lib:Net") != first

    def test_what_has_no_source_is_refused(self, folder):
        (folder / "mine_net.py").write_text("def broken(:\n")
        for name, words in (
            ("no_such_module_here:f", "cannot be found"),
            ("sys:path", "cannot be found as a file"),
            ("mine_pkg.absent:f", "has no source file"),
            ("mine_net:f", "is not Python"),
        ):
            with pytest.raises(ConfigError, match=words):
                model_version(name)
