"""Live panels for notebooks: traits and callbacks. What they show is computed by the library and drawn by `tiles`."""

from elude_nb.interpret.gallery import Gallery
from elude_nb.widgets.channel_explorer import ChannelExplorer
from elude_nb.widgets.concept_atlas import ConceptAtlas
from elude_nb.widgets.image_inspector import ImageInspector
from elude_nb.widgets.intruder_quiz import IntruderQuiz
from elude_nb.widgets.quiz_board import QuizBoard
from elude_nb.widgets.steering_panel import SteeringPanel
from elude_nb.widgets.workbench import Workbench

__all__ = [
    "ChannelExplorer",
    "ConceptAtlas",
    "Gallery",
    "ImageInspector",
    "IntruderQuiz",
    "QuizBoard",
    "SteeringPanel",
    "Workbench",
]
