"""The front door for text: a sentence encoder split, read and steered by the same primitives as a vision model.

>>> from elude_nb import text
>>> text.load_sentences("topics")
SentenceSet(200 sentences from topics, 10 labels)
"""

from elude_nb.text.exemplars import Reading, TopSentences, top_sentences
from elude_nb.text.models import MINILM_SITE, SentenceEncoder, TextModel, Vocabulary, load_text_model
from elude_nb.text.sentences import SentenceSet, load_sentences
from elude_nb.text.similarity import SimilarityEffect, similarities, similarity_effect

__all__ = [
    "MINILM_SITE",
    "Reading",
    "SentenceEncoder",
    "SentenceSet",
    "SimilarityEffect",
    "TextModel",
    "TopSentences",
    "Vocabulary",
    "load_sentences",
    "load_text_model",
    "similarities",
    "similarity_effect",
    "top_sentences",
]
