"""What a unit means: exemplars, galleries, profiles, names, attribution, and the intruder quiz.

>>> from elude_nb import interpret
>>> interpret.Gallery.__doc__.partition(",")[0]
'Cached images'
"""

from elude_nb.interpret.attribution import Attribution, attribute
from elude_nb.interpret.concept_map import Atlas, lay_out
from elude_nb.interpret.descriptions import describe_concepts
from elude_nb.interpret.encoders import open_clip_encoder, transformers_encoder
from elude_nb.interpret.exemplars import Exemplars, find_exemplars
from elude_nb.interpret.find_units import find_units
from elude_nb.interpret.gallery import Gallery, look
from elude_nb.interpret.naming import ConceptNames, name_concepts, name_concepts_by_text
from elude_nb.interpret.neighbours import Neighbours, find_neighbours
from elude_nb.interpret.profiles import depth_profile, find_contributors, route_table, spatial_profile
from elude_nb.interpret.quiz import Question, Quiz, make_questions
from elude_nb.interpret.ranking import rank_channels
from elude_nb.interpret.scored_gallery import ScoredGallery
from elude_nb.interpret.trace import ChannelTrace, trace_channel

__all__ = [
    "Atlas",
    "Attribution",
    "ChannelTrace",
    "ConceptNames",
    "Exemplars",
    "Gallery",
    "Neighbours",
    "Question",
    "Quiz",
    "ScoredGallery",
    "attribute",
    "depth_profile",
    "describe_concepts",
    "find_contributors",
    "find_exemplars",
    "find_neighbours",
    "find_units",
    "lay_out",
    "look",
    "make_questions",
    "name_concepts",
    "name_concepts_by_text",
    "open_clip_encoder",
    "rank_channels",
    "route_table",
    "spatial_profile",
    "trace_channel",
    "transformers_encoder",
]
