"""The two pages that the exactness matrix writes: what was measured, and which families work."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pandas as pd
from architecture_zoo import REMARKS

if TYPE_CHECKING:
    from architecture_zoo import Entry

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}

_INTRODUCTION = """# Exactness, network by network

Written by a program; do not edit. It runs lens and explicit network over every family of networks:

```sh
{command}
```

Weights, routes and images are drawn with seed {seed}; depth and images are cut, widths mostly not, since exactness
depends neither on training nor on size. Every parameter that a network starts with at 0 or 1 (biases, layer scales,
statistics of BatchNorm) is moved away from it, since a mistake would hide behind it. One thread, no GPU, {versions}.

{rows} sites of {models} networks. At each: 4 images; up to 64 channels, spread over all, are split into 4 units at
random.

- **lens**: largest change of the model's whole output by a lens that reads out 8 numbers a token, over float32,
  float64 and bfloat16. It must be exactly 0.0.
- **explicit**: the explicit network's output against the model's in float32: the largest difference; the same over
  the largest output; in units in the last place of that largest output; and at the worst single value, where an
  output that nearly cancels counts many units for a tiny difference.
- **of bound**: the largest difference of a channel *at the site* over its bound, which is derived, not fitted (below).
  At most 1.
- **float64**, **bfloat16**: the output's largest difference over the largest output. In float64 it must stay below
  1e-12.
- **top-1**: share of rows of the output with the same largest entry, in float32 and in bfloat16. With random weights
  the outputs lie close together, so bfloat16, which has 8 bits, now and then takes another one.

## The bound

Model and explicit network add up the *same* rounded numbers in another order: the layers before the site are
untouched, and inside a split window each block still runs on the stream that it always saw. So the sources are equal
bit for bit, and with `x` the summands of one channel (each contribution `scale * W[j, i] * a[i]`, each bias, what
enters the window), both networks round the same exact sum. A summand goes through at most

    n = s * kernel + T + K + 4

roundings in either of them: its product; the sum of its layer (at most `s * kernel` additions, the bias among them);
the layer scale; the `T` additions of the window's layers to the stream or to the units; the merge of `K + 1` units.
Entries that are 0 in a split row add exactly. So each of the two results is `sum x (1 + theta)` with `|theta| <=
gamma_n = n u / (1 - n u)` (Higham, *Accuracy and Stability of Numerical Algorithms*, lemma 3.1; any order, fused
multiply-add or not), `u` the unit roundoff, 2^-24 in float32, and the two differ by at most

    2 gamma_n sum |x|.

The program works out `sum |x|` in float64 for every channel at every token and takes the largest ratio. The bound
holds for any rounding that happens, so it is far from what happens on average: errors of both signs cancel, and the
typical difference grows with the root of n. `verify` uses the sharper bound for that, `2 lambda sqrt(n) u sum |x|`
with lambda = 8 (docs/method.md). In bfloat16 (u = 2^-8) gamma_n says nothing beyond n = 255; no bound is claimed
there.

One case is outside the derivation: for convolutions with a 3 x 3 kernel, small batches and one thread, PyTorch may
choose an algorithm that transforms patches first (Winograd's, in NNPACK), whose summands are not the products above.
The same bound is checked there, too, and held.

The bound is one *at the site*. How far a difference there is carried on to the outputs depends on the layers behind
it, which is why the columns on outputs are measured and not bounded; float64 tells rounding from a mistake: it
shrinks by 2^29.
"""


_COLUMNS = [
    "model",
    "site",
    "channels",
    "sources",
    "units",
    "lens",
    "explicit",
    "relative",
    "units in the last place",
    "at the worst value",
    "of bound",
    "float64",
    "bfloat16",
    "top-1, float32",
    "top-1, bfloat16",
]


def exactness_page(rows: Sequence[Any], absent: Sequence[str], command: str, seed: int) -> str:
    """Return docs/exactness.md."""
    rows = sorted(rows, key=lambda row: (row.model, row.kind != "stream", row.site))
    parts = [
        _INTRODUCTION.format(
            command=command,
            seed=seed,
            versions=_versions(),
            rows=len(rows),
            models=len({row.model for row in rows}),
        ),
        _worst(rows),
        "## Every site\n",
        _table(
            _COLUMNS,
            [_site_row(row) for row in rows],
            left=2,
        ),
        _CONDITIONS,
        _table(
            ["model", "site", "condition", "lens", "explicit", "relative", "of bound", "top-1"],
            [line for row in rows for line in _condition_rows(row)],
            left=3,
        ),
    ]
    if absent:
        parts += ["## Not run\n", "\n".join(f"- {line}" for line in absent) + "\n"]
    return "\n".join(parts)


_CONDITIONS = """## Other conditions

In float32, at each network's first site: other batch sizes, images that are neither square nor of the size that the
network was made for (where it takes them), weights and images in channels-last memory, and `torch.compile` (with g++).
There the compiled explicit network is compared with the compiled model, whose fused kernels round in their own order
before the site, too, so no bound is claimed. The lens is set first and the network compiled inside the `with` block, as
it must be: a network that was compiled before runs as it was compiled, and `lens.values` says that nothing was seen.
"""


def _worst(rows: Sequence[Any]) -> str:
    cells = [cell for row in rows for cell in row.cells.values()]
    conditions = [cell for row in rows for cell in row.conditions.values() if not isinstance(cell, str)]
    lens = max(cell.lens.max_abs_diff for cell in [*cells, *conditions])
    float32 = max(row.cells["float32"].explicit.max_rel_diff for row in rows)
    used = max(cell.bound_used for cell in [*cells, *conditions] if cell.bound_used is not None)
    float64 = max(row.cells["float64"].explicit.max_rel_diff for row in rows)
    same = min(row.cells["float32"].explicit.top1_agreement for row in rows)
    return _table(
        ["over all sites", "worst"],
        [
            ["lens, all dtypes and conditions", f"{lens}"],
            ["explicit network, float32, over the largest output", f"{float32:.1e}"],
            ["explicit network at the site, share of the bound, float32 and float64", f"{used:.1e}"],
            ["explicit network, float64, over the largest output", f"{float64:.1e}"],
            ["equal top-1 in float32", f"{same:.0%}"],
            ["split weights that do not add up bit for bit", f"{sum(not row.partition for row in rows)}"],
        ],
        left=1,
    )


def _site_row(row: Any) -> list[str]:
    float32, float64, bfloat16 = (row.cells[name] for name in ("float32", "float64", "bfloat16"))
    found = float32.explicit
    return [
        row.model,
        f"`{row.site}`",
        f"{row.channels:,}",
        f"{row.sources:,}",
        f"{row.units:,}",
        f"{max(cell.lens.max_abs_diff for cell in row.cells.values())}",
        f"{found.max_abs_diff:.1e}",
        f"{found.max_rel_diff:.1e}",
        f"{found.max_rel_diff / EPS['float32']:.1f}",
        f"{found.max_ulp_diff:,}",
        f"{float32.bound_used:.1e}",
        f"{float64.explicit.max_rel_diff:.1e}",
        f"{bfloat16.explicit.max_rel_diff:.1e}",
        f"{found.top1_agreement:.0%}",
        f"{bfloat16.explicit.top1_agreement:.0%}",
    ]


def _condition_rows(row: Any) -> list[list[str]]:
    lines = []
    for condition, cell in row.conditions.items():
        start = [row.model, f"`{row.site}`", condition]
        if isinstance(cell, str):
            lines.append([*start, cell, "", "", "", ""])
            continue
        used = "" if cell.bound_used is None else f"{cell.bound_used:.1e}"
        explicit = cell.explicit
        figures = [f"{cell.lens.max_abs_diff}", f"{explicit.max_abs_diff:.1e}", f"{explicit.max_rel_diff:.1e}", used]
        lines.append([*start, *figures, f"{explicit.top1_agreement:.0%}"])
    return lines


_FAMILIES = """# Which networks work

Written by a program; do not edit: `{command}`. Each row was run with random weights; `docs/exactness.md` has the
figures.

- **stream**: whether the residual stream is a site. It is where each block adds what linear layers put out, possibly
  scaled channel by channel, and does nothing else with the sum.
- **layers**: how many linear layers and convolutions are sites, of how many there are.
- **explicit**: whether the explicit network was built and stayed within its bounds at every site that was tried, the
  stream among them where it is one. The lens changed nothing in any of them.

What is refused is refused by `find_site` with a `SiteError` that names the reason; `find_sites` has the same reasons
in its table. Nothing is left to trust: a site is handed out only after its channels, added up from their
contributions, have been compared with the model's own on a forward pass.
"""

_ELSEWHERE = """
## Everywhere

- **One source a channel** (depthwise convolutions): there is nothing to split.
- **Grouped convolutions** are split inside their groups; a channel has the sources of its group only.
- **BatchNorm behind a convolution** is folded into the channel's scale. One without running statistics is not, since
  it normalises by the batch at hand; the site is then the convolution's own output.
- **Normalisation after the addition** (post-norm, and res-post-norm as in Swin v2): a sub-unit of the sum would not
  be a sum of contributions any more, since the norm's scale depends on all of them. The stream is refused; the layers
  of the branches are sites.
- **Layers that work on windows** folded into the batch: their rows cannot be told apart by image; refused one by one.
- **Layers that run twice** or never, and layers that **share their weight** with another: refused. So are layers of
  `torch.nn.MultiheadAttention`, which uses their weights without calling them.
- **Weights made anew in each pass** (weight standardisation, weight norm, spectral norm, parametrisations),
  subclasses of `nn.Linear` and `nn.Conv2d` whose forward pass does more (TensorFlow's padding), and **quantised**
  layers: refused.
- **Transposed, one- and three-dimensional convolutions** are no sites.
- Networks of Hugging Face `transformers` put out a `ModelOutput`. Sites, lens, explicit network and `verify` take it
  as it is. What reads the output further (probes, effects, saving) wants one tensor: wrap the network in a module
  that returns `.last_hidden_state` or `.pooler_output`.
"""


def families_page(entries: Sequence[Entry], tables: Mapping[str, pd.DataFrame], rows: Sequence[Any]) -> str:
    """Return docs/architectures.md."""
    lines = []
    for entry in sorted(entries, key=lambda entry: (entry.family.lower(), entry.name)):
        if entry.name not in tables:
            lines.append([entry.family, entry.name, "not run", "", "", "the package is absent"])
            continue
        table = tables[entry.name]
        streams = table[table["site"].str.startswith("stream:")]
        layers = table[~table["site"].str.startswith("stream:")]
        mine = [row for row in rows if row.model == entry.name]
        problems = [problem for row in mine for problem in row.problems()]
        can = layers["can_be_split"].astype(bool)
        remarks = [_why_no_stream(streams)] if len(streams) and not streams["can_be_split"].iloc[-1] else []
        remarks += [REMARKS.get(entry.family, "")]
        remarks += [f"{count} {reason}" for reason, count in _reasons(layers.loc[~can, "reason"]).most_common()]
        lines.append(
            [
                entry.family,
                entry.name,
                "yes" if len(streams) and streams["can_be_split"].iloc[-1] else "no",
                f"{can.sum()} of {len(layers)}",
                "yes" if mine and not problems else "; ".join(problems) or "no",
                "; ".join(remark for remark in remarks if remark),
            ]
        )
    command = "python benchmarks/exactness_matrix.py --out docs/exactness.md --families docs/architectures.md"
    table_text = _table(["family", "network", "stream", "layers", "explicit", "remark"], lines, left=6)
    return "\n".join([_FAMILIES.format(command=command), table_text, _ELSEWHERE])


_SHORT = (
    ("its channels first", "no stream: it is a map with its channels first"),
    ("windows", "no stream: attention works on windows"),
    ("in another stage", "no stream over all blocks, which lie in several stages of unlike width"),
    ("another stage begins", "no stream over all blocks, which lie in several stages of unlike width"),
    ("without calling", "no stream: attention uses its last layer's weight without calling it"),
    ("not the sum", "no stream: recomposed from its linear layers, it is not what the blocks put out"),
)


def _why_no_stream(streams: pd.DataFrame) -> str:
    reason = str(streams["reason"].iloc[-1])
    return next((short for words, short in _SHORT if words in reason), reason)


_SHORT_LAYERS = (
    ("one source a channel", "depthwise"),
    ("rows for one image", "whose rows are no images (windows, tables of positions)"),
    ("ran 0 times", "used without being called"),
    ("MultiheadAttention", "inside MultiheadAttention"),
    ("forward pass may do more", "of a subclass that does more than its weight says"),
    ("times in one forward pass", "run more than once"),
)


def _reasons(reasons: Any) -> Counter[str]:
    found = [next((short for words, short in _SHORT_LAYERS if words in reason), reason) for reason in reasons]
    return Counter(found)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> str:
    rule = ["---" if number < left else "---:" for number in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(header), rule, *lines]) + "\n"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "timm", "torchvision", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)
