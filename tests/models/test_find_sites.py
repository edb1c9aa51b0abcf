from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elude_nb import Model, find_site, find_sites
from elude_nb.errors import ImageError, SiteError
from elude_nb.models.find_sites import RUNS
from tests.tiny import hook_count, redraw, tiny_conv, tiny_vit, wrapped


class Attention(nn.Module):
    """Not attention at all: the tokens' mean, through a layer that goes by timm's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.proj(tokens + tokens.mean(1, keepdim=True).tanh())
        return mixed


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.fc2(self.fc1(tokens).relu())
        return found


class Block(nn.Module):
    """A block under timm's names that adds in one of several ways."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.how = how

    def forward(self, tokens: Tensor) -> Any:
        if self.how == "post-norm":
            tokens = self.norm1(tokens + self.attn(tokens))
            return self.norm2(tokens + self.mlp(tokens))
        if self.how == "branch norm":  # as in Swin V2
            tokens = tokens + self.norm1(self.attn(tokens))
            return tokens + self.norm2(self.mlp(tokens))
        if self.how == "gated":
            return tokens + self.attn(self.norm1(tokens)) + self.mlp(self.norm2(tokens)) * tokens.sigmoid()
        if self.how == "windows":
            n = len(tokens)
            windows = tokens.reshape(-1, 2, tokens.shape[-1])
            windows = windows + self.attn(self.norm1(windows))
            return (windows + self.mlp(self.norm2(windows))).reshape(n, -1, tokens.shape[-1])
        if self.how == "parallel":
            return tokens + self.attn(self.norm1(tokens)) + self.mlp(self.norm2(tokens))
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Blocks(nn.Module):
    def __init__(self, how: str, depth: int = 2, *, shared: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        blocks = [Block(12, how)] * depth if shared else [Block(12, how) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def block_model(how: str, dtype: torch.dtype = torch.float64, *, shared: bool = False) -> Model:
    return wrapped(redraw(Blocks(how, shared=shared)), 16, dtype)


def rows_of(model: Model, **more) -> dict[str, dict[str, Any]]:
    """Return the rows of `find_sites` by name."""
    return {
        str(row["site"]): {str(k): v for k, v in row.items()} for row in find_sites(model, **more).to_dict("records")
    }


def figures(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("kind", "channels", "sources", "sources_per_channel", "tokens"))


def test_table_of_a_transformer(vit) -> None:
    rows = rows_of(vit)
    assert all(row["can_be_split"] and row["reason"] == "" for row in rows.values())
    assert list(rows)[:3] == ["stream:1", "stream:2", "stream:3"]
    assert figures(rows["stream:1"]) == ("stream", 24, 120, 120, 19)
    assert figures(rows["stream:3"]) == ("stream", 24, 360, 360, 19)
    assert figures(rows["patch_embed.proj"]) == ("convolution", 24, 3, 3, 16)
    assert figures(rows["blocks.0.mlp.fc2"]) == ("linear", 24, 96, 96, 19)
    assert figures(rows["head"]) == ("linear", 5, 24, 24, 1)
    layers = {f"blocks.{i}.{part}" for i in range(3) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert set(list(rows)[3:]) == layers | {"patch_embed.proj", "head"}


def test_table_says_over_how_many_blocks(vit) -> None:
    rows = rows_of(vit, blocks=2)
    assert [rows[f"stream:{k}"]["sources"] for k in (1, 2, 3)] == [120, 240, 240]


def test_table_of_a_convolutional_network(conv) -> None:
    rows = rows_of(conv)
    assert list(rows) == ["stem", "grouped", "reflect", "depthwise", "point", "head"]
    assert figures(rows["grouped"]) == ("convolution", 12, 8, 2, 64)
    assert figures(rows["reflect"]) == ("convolution", 6, 12, 12, 16)
    assert "one source a channel" in rows["depthwise"]["reason"]
    assert [name for name, row in rows.items() if not row["can_be_split"]] == ["depthwise"]


def test_every_row_that_can_be_split_is_found(vit, conv, mlp) -> None:
    for model in (vit, conv, mlp):
        for row in find_sites(model).to_dict("records"):
            if row["can_be_split"]:
                site = find_site(model, row["site"])
                found = site.name, site.kind, site.channels, site.sources, site.layout.count
                assert found == tuple(row[key] for key in ("site", "kind", "channels", "sources", "tokens"))
            else:
                with pytest.raises(SiteError):
                    find_site(model, row["site"])


def test_stream_without_a_number_is_the_last(vit) -> None:
    assert find_site(vit) == find_site(vit, "stream:3")


def test_layout_counts_class_registers_and_patches(vit, vit32, conv, mlp) -> None:
    def parts(model: Model, name: str) -> tuple[int, int, tuple[int, int] | None]:
        layout = find_site(model, name).layout
        return layout.classes, layout.registers, layout.grid

    assert parts(vit, "stream") == (1, 2, (4, 4))
    assert parts(vit32, "blocks.0.mlp.fc1") == (1, 0, (4, 4))
    assert parts(vit, "patch_embed.proj") == (0, 0, (4, 4))
    assert parts(conv, "stem") == (0, 0, (8, 8))
    assert parts(conv, "head") == parts(mlp, "3") == (1, 0, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.0.mlp.fc3", "blocks.0.mlp.fc2"),
        ("streams:2", "stream:2"),
        ("blocks.0.attn.porj", "blocks.0.attn.proj"),
    ],
)
def test_unknown_site_is_refused_with_near_matches(vit, name, hint) -> None:
    with pytest.raises(SiteError, match="No site is called") as caught:
        find_site(vit, name)
    assert repr(hint) in str(caught.value)
    assert "find_sites(model)" in str(caught.value)


@pytest.mark.parametrize("name", ["stream:0", "stream:4", "stream:-1", "stream:last"])
def test_stream_outside_the_blocks_is_refused(vit, name) -> None:
    with pytest.raises(SiteError, match="'stream:1' to 'stream:3'"):
        find_site(vit, name)


@pytest.mark.parametrize("blocks", [0, 3, -1])
def test_more_blocks_than_there_are_are_refused(vit, blocks) -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        find_site(vit, "stream:2", blocks=blocks)


def test_blocks_in_words_are_refused(vit) -> None:
    with pytest.raises(TypeError, match="whole number"):
        find_site(vit, blocks="every")  # type: ignore[arg-type]


def test_depthwise_convolution_is_refused_with_the_reason(conv) -> None:
    with pytest.raises(SiteError, match="'depthwise' has one source a channel"):
        find_site(conv, "depthwise")


def test_network_without_blocks_has_no_stream(conv) -> None:
    with pytest.raises(SiteError, match="no run of pre-norm transformer blocks"):
        find_site(conv, "stream")


def test_a_block_of_ones_own_under_these_names_is_found() -> None:
    assert find_site(block_model("pre-norm"), "stream").sources == 2 * (12 + 24)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["post-norm", "branch norm", "gated"])
def test_a_block_that_adds_otherwise_is_refused_with_the_reason(how, dtype) -> None:
    model = block_model(how, dtype)
    with pytest.raises(SiteError, match="is not the sum it should be") as caught:
        find_site(model, "stream")
    assert "normalises after the addition" in str(caught.value)
    table = find_sites(model).set_index("site")
    assert not table.loc[["stream:1", "stream:2"], "can_be_split"].any()
    assert table.loc["blocks.0.mlp.fc2", "can_be_split"]
    assert find_site(model, "blocks.0.mlp.fc2").sources == 24


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sites_pass_the_check_in_every_dtype(dtype) -> None:
    assert find_sites(tiny_vit(dtype))["can_be_split"].all()
    assert find_site(tiny_vit(dtype), "stream").sources == 360
    assert find_site(tiny_conv(dtype), "stem").norm == "norm"


def test_layer_that_runs_twice_is_refused() -> None:
    model = block_model("pre-norm", shared=True)
    with pytest.raises(SiteError, match=r"'blocks\.0\.mlp\.fc2' ran 2 times"):
        find_site(model, "blocks.0.mlp.fc2")
    with pytest.raises(SiteError, match="does not write once to every token"):
        find_site(model, "stream")


def test_layer_that_never_runs_is_refused() -> None:
    network = Blocks("pre-norm")
    network.idle = nn.Linear(4, 4)
    with pytest.raises(SiteError, match="'idle' ran 0 times"):
        find_site(wrapped(network, 16, torch.float64), "idle")


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc2", "stream"])
def test_layer_that_folds_windows_of_an_image_into_the_batch_is_refused(name) -> None:
    """Its rows are windows, not images: tokens would be taken from the wrong places."""
    model = block_model("windows")
    with pytest.raises(SiteError, match="window"):
        find_site(model, name)
    table = find_sites(model).set_index("site")
    assert not table.loc[["stream:1", "blocks.0.mlp.fc2"], "can_be_split"].any()


def test_layer_on_fewer_tokens_than_the_prefix_has_a_layout() -> None:
    """A pooled token of a network with registers: not a class token, three registers and a negative grid."""
    model = tiny_vit()
    model.network.norm = nn.Sequential(nn.AdaptiveAvgPool2d((1, 24)), nn.Linear(24, 24).double())
    layout = find_site(model, "norm.1").layout
    assert layout.count == 1
    assert layout.positions("all").tolist() == layout.positions("patch").tolist() == [0]


def test_tokens_on_three_axes_are_counted_as_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(1), nn.Unflatten(1, (2, 2, 4, 8)), nn.Linear(8, 5))
    site = find_site(wrapped(network, 16, torch.float64), "3")
    assert site.layout.count == 16
    site.layout.check((7, 2, 2, 4, 5))
    with pytest.raises(ImageError, match="These images have 24 tokens here"):
        site.layout.check((7, 2, 3, 4, 5))


def test_the_output_is_checked_again_where_another_is_taken(conv) -> None:
    find_site(conv, "stem")
    with pytest.raises(ValueError, match="must be a tensor with a row for each"):
        find_site(replace(conv, output=lambda out: out[0, 0]), "stem")


def test_batch_norm_without_statistics_is_not_folded() -> None:
    """It normalises by the batch at hand, so it is no fixed affine map."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 2)
    )
    site = find_site(wrapped(network, 8, torch.float64), "0")
    assert site.norm is None


def test_finding_leaves_the_model_as_it_was() -> None:
    model = tiny_conv()
    model.network.train()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    random = torch.get_rng_state()
    find_sites(model)
    find_site(model, "stem")
    assert all(module.training for module in model.network.modules())
    assert all(before[name].equal(tensor) for name, tensor in model.network.state_dict().items())
    assert torch.get_rng_state().equal(random)
    assert hook_count(model.network) == 0


def test_finding_leaves_no_hooks_when_the_network_fails() -> None:
    model = wrapped(Blocks("pre-norm"), 16, torch.float64)
    model.network.head = nn.Linear(7, 5).double()
    with pytest.raises(SiteError, match=r"does not run on a batch of \(1, 3, 16, 16\) .*shapes cannot be multiplied"):
        find_site(model, "stream")
    assert hook_count(model.network) == 0


def test_two_models_of_one_architecture_have_equal_sites() -> None:
    assert find_site(tiny_vit(seed=1)) == find_site(tiny_vit(seed=2))


def test_a_network_is_not_kept_alive() -> None:
    model = tiny_vit()
    find_site(model)
    gc.collect()  # of earlier tests
    gone, known = weakref.ref(model.network), len(RUNS)
    del model
    gc.collect()
    assert gone() is None
    assert len(RUNS) == known - 1
