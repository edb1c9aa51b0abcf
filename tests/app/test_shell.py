"""What Python calls an argument, the shell calls an option."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import elude_nb
from elude_nb.app import shell
from elude_nb.app.cli import _options_of
from elude_nb.app.shell import in_shell_words

OPTIONS = _options_of(["disentangle"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("add architecture='...' with timm's name", "add --architecture with timm's name"),
        ("image_size=65 is wrong; pass pretrained=False.", "--image-size 65 is wrong; pass --no-pretrained."),
        ("'runs/units=3(a)/x.pt' is damaged.", "'runs/units=3(a)/x.pt' is damaged."),
        ("site='a b' is none; find_sites(model) lists them.", "--site 'a b' is none; `elude-nb sites` lists them."),
        ("Random: load_model('dinov2-small', pretrained=False).", "Random: --model dinov2-small --no-pretrained."),
        ("pass it: Disentanglement.load(path, model).", "pass it: --model."),
        ("Too large; fewer tokens_per_image.", "Too large; fewer --tokens-per-image."),
        ("It reads words: elude_nb.text.load_text_model('minilm') loads it.", "It reads words."),
        ("Give others, or make it: wrap_network(network, input_size=...), load_model(name, image_size=...).",
         "Give others, or make it: --model --image-size."),
        ("device='moon' (str) cannot be used.", "--device moon cannot be used."),
        ("top_k=0.6 is too little; use a larger top_k=1.0, or fewer.", "top k 0.6 is too little; or fewer."),
    ],
)  # fmt: skip
def test_a_message_in_the_words_of_the_shell(message: str, expected: str) -> None:
    assert in_shell_words(message, OPTIONS) == expected


def messages() -> list[str]:
    """Return every message that the rooms below the command line raise, with X for what it names."""
    found = []
    root = Path(elude_nb.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in {"widgets", "figures", "notebooks"} or path.name == "chat.py":
            continue
        raised = (node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise))
        for call in raised:
            for text in call.args if isinstance(call, ast.Call) else ():
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                texts = [part.value if isinstance(part, ast.Constant) else "X" for part in parts]
                found.append("".join(str(part) for part in texts))
    return found


def test_no_message_of_the_library_names_an_argument_where_there_is_an_option() -> None:
    several = messages()
    assert len(several) > 200
    code = re.compile(rf"(?<![\w.])({'|'.join(OPTIONS)})=|\b(load_model|find_sites|list_models)\(")
    assert sum(bool(code.search(message)) for message in several) > 15
    for message in several:
        said = in_shell_words(message, OPTIONS)
        assert not code.search(re.sub(r"(?<!\w)'[^']*'", "", said)), said
        assert shell._NOT_HERE not in said
