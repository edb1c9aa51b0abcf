"""Still pictures: each function takes a result and returns a `Picture`; none runs a model."""

from elude_nb.figures.atlas import concept_atlas
from elude_nb.figures.bars import contributions_by_block, score_distributions
from elude_nb.figures.flows import routing_sankey
from elude_nb.figures.grids import before_after, contact_sheet
from elude_nb.figures.maps import activation_map, unit_maps
from elude_nb.figures.methods import score_intervals, tradeoff
from elude_nb.figures.plotly_theme import plotly_template
from elude_nb.figures.profiles import concept_profile
from elude_nb.figures.routes import routing_bars
from elude_nb.figures.scoring import factor_heatmap, trial_sheet
from elude_nb.figures.steering import (
    accuracy_bars,
    class_drops,
    dose_response,
    neighbour_grid,
    side_effects,
    similarity_bars,
)
from elude_nb.figures.theme import Picture, house_style, theme

__all__ = [
    "Picture",
    "accuracy_bars",
    "activation_map",
    "before_after",
    "class_drops",
    "concept_atlas",
    "concept_profile",
    "contact_sheet",
    "contributions_by_block",
    "dose_response",
    "factor_heatmap",
    "house_style",
    "neighbour_grid",
    "plotly_template",
    "routing_bars",
    "routing_sankey",
    "score_distributions",
    "score_intervals",
    "side_effects",
    "similarity_bars",
    "theme",
    "tradeoff",
    "trial_sheet",
    "unit_maps",
]
