from __future__ import annotations

import base64
import io
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from elude_nb import ImageSet, load_images
from elude_nb.scores import EmbeddingJudge, judge_units, mean_interval, rank_scores
from elude_nb.scores.chat import DESCRIBE, ChatJudge, read_rating
from elude_nb.scores.judges import ClipJudge
from tests.tiny import hook_count

COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta")


def coloured(kinds: int, each: int) -> tuple[ImageSet, torch.Tensor]:
    """Return images of some colours in turn, all of other shades, and one unit a colour, (n, kinds)."""
    n = kinds * each
    pixels = np.stack([np.full((8, 8, 3), ImageColor.getrgb(COLOURS[i % kinds])) for i in range(n)])
    pixels = (pixels * np.linspace(0.6, 1, n)[:, None, None, None]).astype(np.uint8)
    activations = torch.eye(kinds).repeat(each, 1) * torch.linspace(1, 2, n)[:, None]
    return load_images(pixels), activations


def mean_colour(images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image).mean((0, 1)) for image in images]))


def number_of(image) -> int:
    """Read the number off an image of `numbered`."""
    pixel = image.getpixel((0, 0))
    return int(pixel[0]) + 256 * int(pixel[1])


def numbered(n: int) -> ImageSet:
    return load_images(np.stack([np.full((8, 8, 3), (i % 256, i // 256, 0), dtype=np.uint8) for i in range(n)]))


class Spy:
    """A judge that records which images it was shown, and rates all with a given function."""

    def __init__(self, fit) -> None:
        self.fit, self.described, self.matched = fit, [], []  # type: ignore[var-annotated]

    def describe(self, images) -> int:
        self.described.append([number_of(image) for image in images])
        return len(self.described) - 1

    def match(self, description, images):
        self.matched.append((description, [number_of(image) for image in images]))
        return self.fit(images)


# Which images are shown.


def test_every_other_best_image_is_described_and_the_rest_are_to_be_matched() -> None:
    activations = torch.stack([torch.arange(40.0), -torch.arange(40.0)], dim=1)
    spy = Spy(lambda images: 0.0)
    judge_units(activations, numbered(40), spy, top=5, candidates=2)
    assert spy.described == [[39, 37, 35], [0, 2, 4]]
    assert spy.matched == [(0, [38, 36]), (0, [1, 3]), (1, [1, 3]), (1, [38, 36])]


@settings(deadline=None, max_examples=30)
@given(top=st.integers(2, 12), candidates=st.integers(2, 6), seed=st.integers(0, 999))
def test_no_image_is_matched_that_was_described(top, candidates, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(30, 1, generator=generator) + 0.3 * torch.randn(30, 6, generator=generator)  # near-copies
    spy = Spy(lambda images: 0.0)
    judged = judge_units(activations, numbered(30), spy, top=top, candidates=candidates, seed=seed)
    assert len(spy.described) == 6 == len(judged)
    assert len(spy.matched) == 6 * candidates
    for description, shown in spy.matched:
        assert not set(shown) & set(spy.described[description])
        assert len(shown) == len(set(shown)) == top // 2
    best = {unit: set(activations[:, unit].topk(top).indices.tolist()) for unit in range(6)}
    for description in range(6):
        shown_sets = [set(shown) for number, shown in spy.matched if number == description]
        assert set(spy.described[description]) | shown_sets[0] <= best[description]  # the true unit comes first
        assert all(any(shown <= best[unit] for unit in range(6) if unit != description) for shown in shown_sets[1:])


def test_of_a_copy_the_held_out_images_are_shown_and_the_tie_counts_against() -> None:
    activations = torch.arange(20.0)[:, None].repeat(1, 2)
    judged = judge_units(activations, numbered(20), Spy(lambda images: number_of(images[0])), top=6, candidates=2)
    assert judged["rank"].tolist() == [2, 2]


# Ranks.


def test_kinds_that_lie_apart_are_told_apart_by_their_embeddings() -> None:
    images, activations = coloured(6, 10)
    judged = judge_units(activations, images, EmbeddingJudge(mean_colour), top=8, candidates=4)
    assert judged["rank"].tolist() == [1] * 6
    assert judged["unit"].tolist() == list(range(6))
    assert judged["candidates"].tolist() == [4] * 6
    red = judged["description"][0]
    assert red.tolist() == pytest.approx([1, 0, 0])


def test_a_judge_that_is_always_wrong_puts_the_true_unit_last() -> None:
    images, activations = coloured(4, 8)
    right = EmbeddingJudge(mean_colour)
    wrong = SimpleNamespace(describe=right.describe, match=lambda text, shown: -right.match(text, shown))
    assert judge_units(activations, images, wrong, top=6, candidates=4)["rank"].tolist() == [4] * 4


def test_ranks_count_the_candidates_that_fit_as_well() -> None:
    fits = iter([0.5, 0.9, 0.5, 0.1])  # the true one, one better, one as good, one worse
    judge = SimpleNamespace(describe=lambda images: "words", match=lambda text, images: next(fits))
    activations = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    judged = judge_units(activations, numbered(20), judge, units=[2], top=4, candidates=4)
    assert judged.to_dict("list") == {"unit": [2], "description": ["words"], "rank": [3], "candidates": [4]}


def test_a_judge_that_guesses_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    judge = SimpleNamespace(describe=lambda images: None, match=lambda text, images: rng.random())
    activations = torch.rand(20, 400, generator=torch.Generator().manual_seed(0))
    table = rank_scores(judge_units(activations, numbered(20), judge, top=2, candidates=8), ranks=(1, 4, 8))
    assert table["chance"].tolist() == [0.125, 0.5, 1.0]
    assert table["share"].tolist() == pytest.approx([0.125, 0.5, 1.0], abs=0.08)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda marks: float(np.mean(marks))])
def test_a_match_is_one_number_or_one_an_image(kind) -> None:
    judge = SimpleNamespace(
        describe=lambda images: None, match=lambda text, images: kind([float(number_of(image)) for image in images])
    )
    activations = torch.stack([torch.arange(20.0), -torch.arange(20.0)], dim=1)  # the mean number tells them apart
    assert judge_units(activations, numbered(20), judge, top=6, candidates=2)["rank"].tolist() == [1, 2]


def test_the_other_units_are_drawn_from_the_seed_and_do_not_depend_on_who_is_asked() -> None:
    activations = torch.rand(30, 12, generator=torch.Generator().manual_seed(0))
    seen = []
    for units, seed in (([3, 7], 0), ([7], 0), ([3, 7], 1)):
        spy = Spy(lambda images: 0.0)
        judge_units(activations, numbered(30), spy, units=units, top=4, candidates=5, seed=seed)
        seen.append([shown for _, shown in spy.matched])
    assert seen[0][5:] == seen[1]
    assert seen[0] != seen[2]


def test_each_unit_is_put_beside_others_of_its_own_each_once() -> None:
    activations = torch.eye(20).repeat_interleave(2, dim=0) * torch.arange(2.0, 42.0)[:, None]  # two images a unit
    spy = Spy(lambda images: 0.0)
    judge_units(activations, numbered(40), spy, units=[4], top=2, candidates=20)
    assert sorted(shown[0] // 2 for _, shown in spy.matched) == list(range(20))
    spy = Spy(lambda images: 0.0)
    judge_units(activations, numbered(40), spy, top=2, candidates=2)
    assert len({shown[0] // 2 for _, shown in spy.matched[1::2]}) > 5  # not one draw for all


def test_constant_units_are_neither_described_nor_candidates() -> None:
    images, activations = coloured(4, 8)
    activations[:, 2] = 1.0
    judged = judge_units(activations, images, EmbeddingJudge(mean_colour), top=4, candidates=3)
    assert judged["unit"].tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match=r"3 live units .*candidates=4"):
        judge_units(activations, images, EmbeddingJudge(mean_colour), top=4, candidates=4)
    for unit in (2, 4, -1):
        with pytest.raises(ValueError, match=f"Unit {unit} is constant or does not exist"):
            judge_units(activations, images, EmbeddingJudge(mean_colour), units=[0, unit], top=4, candidates=3)


@pytest.mark.parametrize("fit", [math.nan, math.inf, [1.0, 2.0, 3.0], []])
def test_what_is_no_fit_is_refused(fit) -> None:
    activations = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"match\(\) gave .* a finite number, or one an image"):
        judge_units(activations, numbered(20), Spy(lambda images: fit), top=4, candidates=2)


@pytest.mark.parametrize(
    ("shape", "images", "settings_", "message"),
    [
        ((20, 3), 19, {}, r"19 images .* 20"),
        ((8, 3), 8, {"top": 9}, r"top=9 .*2 and 8"),
        ((8, 3), 8, {"top": 1}, "top=1 "),
        ((8, 3), 8, {"candidates": 1}, "candidates=1 "),
        ((8, 3), 8, {"candidates": 4}, r"3 live units .*candidates=4"),
    ],
)
def test_questions_that_cannot_be_put_are_refused(shape, images, settings_, message) -> None:
    chosen = {"top": 4, "candidates": 2, **settings_}
    with pytest.raises(ValueError, match=message):
        judge_units(torch.rand(shape), numbered(images), Spy(lambda shown: 0.0), **chosen)


# Shares.


def test_shares_of_ranks_are_means_with_their_intervals() -> None:
    judged = pd.DataFrame({"rank": [1, 2, 5, 1], "candidates": [8, 8, 8, 8]})
    table = rank_scores(judged)
    assert table["rank"].tolist() == [1, 4]
    assert table["share"].tolist() == [0.5, 0.75]
    assert table["chance"].tolist() == [0.125, 0.5]
    found = mean_interval([1.0, 0.0, 0.0, 1.0])
    assert (table["low"][0], table["high"][0]) == (found.low, found.high)
    assert rank_scores(judged.assign(candidates=2), ranks=[4])["chance"].tolist() == [1.0]
    with pytest.raises(ValueError, match="ranks=0 "):
        rank_scores(judged, ranks=[0])


def test_without_units_there_is_no_share() -> None:
    judged = judge_units(torch.rand(9, 3), numbered(9), Spy(lambda images: 0.0), units=[], top=2, candidates=2)
    assert list(judged.columns) == ["unit", "description", "rank", "candidates"]
    assert rank_scores(judged)[["share", "low", "high", "chance"]].isna().all(axis=None)


# The judge by embeddings.


def test_the_embedding_judge_is_the_mean_cosine_with_the_mean_unit_embedding() -> None:
    table = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    judge = EmbeddingJudge(lambda images: table[[number_of(image) for image in images]])
    images = list(numbered(4))
    description = judge.describe(images[:2])
    assert description.tolist() == pytest.approx([0.3, 0.9])
    length = math.hypot(0.3, 0.9)
    assert judge.match(description, [images[2]]) == pytest.approx(0.3 / length)
    assert judge.match(description, [images[1], images[3]]) == pytest.approx(0.9 / length / 2)  # zeros are like nothing


def test_an_embedder_that_tracks_gradients_leaves_none_and_bad_embeddings_are_refused() -> None:
    weight = torch.nn.Parameter(torch.eye(3).double())
    tracked = []

    def embed(images) -> torch.Tensor:
        tracked.append(torch.is_grad_enabled())
        return mean_colour(images) @ weight

    judge = EmbeddingJudge(embed)
    images = list(coloured(2, 2)[0])
    assert not judge.describe(images).requires_grad
    assert judge.match(judge.describe(images[:1]), images[:1]) == pytest.approx(1)
    assert tracked == [False] * 3
    with pytest.raises(ValueError, match="over the same images"):
        EmbeddingJudge(lambda shown: torch.ones(1, 3)).describe(images)
    with pytest.raises(ValueError, match="NaN or infinite"):
        EmbeddingJudge(lambda shown: torch.full((len(shown), 3), math.nan)).describe(images)


# The judge behind a chat client.


class Client:
    """Gives the answers that it was made with, and keeps what it was asked."""

    def __init__(self, *answers) -> None:
        self.asked = []  # type: ignore[var-annotated]
        self._answers = iter(answers)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def _create(self, **request):
        self.asked.append(request)
        content = next(self._answers)
        if content is KeyError:
            return SimpleNamespace(choices=[])
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=content))])


def opened(part) -> Image.Image:
    """Open an image of a message again."""
    assert set(part) == {"type", "image_url"}
    assert part["type"] == "image_url"
    kind, data = part["image_url"]["url"].split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_the_chat_judge_sends_words_and_images_and_reads_the_answer() -> None:
    client = Client("  petals of flowers\n", "85")
    judge = ChatJudge(client, "some-model", side=16)
    images = [Image.new("RGB", (64, 32), "red"), Image.new("RGBA", (10, 10), "blue")]
    assert judge.describe(images) == "petals of flowers"
    assert judge.match("petals of flowers", images[:1]) == 85
    first, second = client.asked
    assert set(first) == {"model", "messages"}
    assert first["model"] == second["model"] == "some-model"
    (message,) = first["messages"]
    assert message["role"] == "user"
    words, *sent = message["content"]
    assert words == {"type": "text", "text": DESCRIBE}
    found = [opened(part) for part in sent]
    assert [(image.size, image.mode) for image in found] == [((16, 8), "RGB"), ((10, 10), "RGB")]
    assert [image.getpixel((3, 3)) for image in found] == [(255, 0, 0), (0, 0, 255)]
    assert [image.size for image in images] == [(64, 32), (10, 10)]  # what was handed in stays as it is
    (asked,) = second["messages"]
    assert "petals of flowers" in asked["content"][0]["text"]
    assert len(asked["content"]) == 2


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("85", 85),
        ("0", 0),
        (" 100.\n", 100),
        ("85%", 85),
        ("72.5", 72.5),
        ("**85**", 85),
        ("Score: 85", 85),
        ("85/100", 85),
        ("I would say 85 out of 100, as 3 of 4 images fit.", 85),
        ("8.5/10", 85),
        ("On a scale from 0 to 100, I give 85.", 85),
        ("From 0 (not at all) to 100 (perfectly): 85", 85),
        ("0-100: 85", 85),
        ("85 - two of the 4 images show petals", 85),
        ("I see 4 images, 3 of them with petals. So my answer is 75.", 75),
        ('{"score": 40}', 40),
        ("eighty-five", None),
        ("", None),
        ("-5", None),
        ("185", None),
        ("I cannot judge from 0 to 100.", None),
    ],
)
def test_ratings_are_read_from_what_models_say(answer, mark) -> None:
    assert read_rating(answer) == mark


@given(mark=st.integers(0, 100), words=st.text(alphabet="abcxyz .:\n*", max_size=20))
def test_a_lone_number_is_always_the_rating(mark, words) -> None:
    assert read_rating(f"{words} {mark} {words}") == mark


def test_thoughts_are_no_answer() -> None:
    judge = ChatJudge(Client("<think>3 of 4,\nso 75?</think>\n\n80", "<think>round</think> wheels"), "thinker")
    assert judge.match("wheels", []) == 80
    assert judge.describe([]) == "wheels"


def test_answers_that_say_nothing_are_refused_with_the_words_that_came() -> None:
    judge = ChatJudge(Client("I cannot tell.", "185", None, "  ", KeyError), "some-model")
    for answer in ("I cannot tell", "185"):
        with pytest.raises(ValueError, match=f"'some-model' was asked for a number .* and answered '{answer}"):
            judge.match("wheels", [])
    for _ in range(3):
        with pytest.raises(ValueError, match="some-model"):
            judge.describe([])


@pytest.mark.parametrize("client", [None, object(), "key", SimpleNamespace(chat=SimpleNamespace())])
def test_what_is_no_chat_client_is_refused(client) -> None:
    with pytest.raises(TypeError, match=r"client must have chat\.completions\.create"):
        ChatJudge(client, "some-model")


def test_a_chat_judge_ranks_units() -> None:
    """A client that looks at the images: it names the colour, and rates by it."""

    def answer(model, messages):
        words, *sent = messages[0]["content"]
        means = [np.asarray(opened(part)).mean((0, 1)) for part in sent]
        seen = [("red", "green", "blue")[int(mean.argmax())] for mean in means]
        said = seen[0] if words["text"] == DESCRIBE else str(100 * int(f"Description: {seen[0]}\n" in words["text"]))
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=said))])

    images, activations = coloured(3, 8)
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=answer)))
    judged = judge_units(activations, images, ChatJudge(client, "some-model"), top=6, candidates=3)
    assert judged["description"].tolist() == ["red", "green", "blue"]
    assert judged["rank"].tolist() == [1, 1, 1]


# The judge by CLIP.

WORDS = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "blue": [0.0, 0.0, 1.0]}


def word_vectors(texts) -> torch.Tensor:
    return torch.tensor([WORDS[text] for text in texts]).double()


def test_the_clip_judge_names_the_nearest_phrase_and_rates_by_it() -> None:
    images, activations = coloured(3, 8)
    calls = []
    judge = ClipJudge(mean_colour, lambda texts: calls.append(list(texts)) or word_vectors(texts), tuple(WORDS))  # type: ignore[func-returns-value]
    judged = judge_units(activations, images, judge, top=6, candidates=3)
    assert judged["description"].tolist() == ["red", "green", "blue"]
    assert judged["rank"].tolist() == [1, 1, 1]
    assert calls.count(list(WORDS)) == 1  # the vocabulary is embedded once
    half = Image.new("RGB", (4, 4), (200, 200, 0))
    assert judge.match("red", [images[0], half]) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    with pytest.raises(ValueError, match="phrases is empty"):
        ClipJudge(mean_colour, word_vectors, ())


class FakeClip(torch.nn.Module):
    """Has the methods of both libraries' models; pixels (n, 3) and words are their own embeddings, but for a scale."""

    def __init__(self, *, wrapped: bool) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self._wrapped = wrapped

    def encode_image(self, pixels):
        return self.scale * pixels

    def encode_text(self, tokens):
        return self.scale * tokens

    def get_image_features(self, pixel_values):
        return self._out(self.scale * pixel_values)

    def get_text_features(self, input_ids, attention_mask):
        return self._out(self.scale * input_ids * attention_mask)

    def _out(self, embeddings):
        return SimpleNamespace(pooler_output=embeddings, last_hidden_state=None) if self._wrapped else embeddings


class Batch(dict):  # type: ignore[type-arg]
    def to(self, device):
        assert device == torch.device("cpu")
        return self


def fake_processor(images=None, text=None, **settings_):
    assert settings_.pop("return_tensors") == "pt"
    if images is not None:
        return Batch(pixel_values=mean_colour(images))
    assert settings_ == {"padding": "max_length", "truncation": True}
    return Batch(input_ids=word_vectors(text), attention_mask=torch.ones(len(text), 1))


@pytest.mark.parametrize("source", ["open_clip", "transformers 4", "transformers 5"])
def test_models_of_both_libraries_make_a_clip_judge(source) -> None:
    images, _ = coloured(3, 2)
    model = FakeClip(wrapped=source.endswith("5"))
    if source == "open_clip":
        judge = ClipJudge.from_open_clip(model, lambda image: mean_colour([image])[0], word_vectors, list(WORDS))
    else:
        judge = ClipJudge.from_transformers(model, fake_processor, list(WORDS))
    assert judge.phrases == ("red", "green", "blue")
    assert [judge.describe([images[i], images[i + 3]]) for i in range(3)] == list(WORDS)
    assert judge.match("red", [images[0], images[1]]) == pytest.approx(0.5)
    assert model.scale.grad is None
    assert ClipJudge.from_transformers(model, fake_processor, "red").phrases == ("red",)  # a word, not its letters


def test_clients_are_not_imported() -> None:
    code = (
        "import sys, elude_nb; "
        "import elude_nb.scores.judges, elude_nb.scores.chat; "
        "print(sorted({'openai', 'open_clip', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_judges_by_its_outputs_less_their_mean(mlp, smallest_images) -> None:
    judge = EmbeddingJudge.of(mlp, smallest_images[:20])
    shown, others = list(smallest_images[20:24]), list(smallest_images[30:33])
    with torch.no_grad():
        mean, first, second = (
            torch.stack([mlp(mlp.prepare([image]))[0] for image in some])
            for some in (smallest_images[:20], shown, others)
        )
    first, second = (
        (some - mean.mean(0)) / (some - mean.mean(0)).norm(dim=1, keepdim=True) for some in (first, second)
    )
    description = judge.describe(shown)
    assert description.tolist() == pytest.approx(first.mean(0).tolist(), abs=1e-6)
    expected = np.mean([float(row @ first.mean(0) / first.mean(0).norm()) for row in second])
    assert judge.match(description, others) == pytest.approx(expected, abs=1e-6)
    assert hook_count(mlp.network) == 0
    runs: list[int] = []
    handle = mlp.network.register_forward_hook(lambda *found: runs.append(len(found[2])))
    try:  # only the picture that it has not seen runs
        again = judge.match(description, [*others, smallest_images[25], smallest_images[0], smallest_images[25]])
    finally:
        handle.remove()
    assert runs == [1]
    assert again == pytest.approx(
        EmbeddingJudge.of(mlp, smallest_images[:20]).match(
            description, [*others, smallest_images[25], smallest_images[0], smallest_images[25]]
        ),
        abs=1e-6,
    )


@pytest.mark.parametrize("side", [0, -1])
def test_images_of_no_size_cannot_be_sent(side) -> None:
    with pytest.raises(ValueError, match=f"side={side} "):
        ChatJudge(Client(), "some-model", side=side)
